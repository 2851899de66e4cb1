"""What to do next, by what a job found: tables of conditions and the commands that fit them, each with its reason.

A line is a command, and behind ``#`` why; a shell takes it whole.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mlxforge.core.eventlog import replay
from mlxforge.core.events import Evaluated, Event, RunStarted, StepDone
from mlxforge.core.settings import PreferenceSettings, TrainSettings
from mlxforge.models.adapters import ADAPTER_CONFIG
from mlxforge.runs.record import CONFIG, EVENTS, runs_dir_flag
from mlxforge.runs.watch import FALL

RISE = 0.01  # of the best validation loss: more than noise
GAIN = 0.01  # of the validation loss, between two evaluations: still worth a pass
LATE = 0.7  # of the steps: the best one before it means that the rest was in vain
FORGOT = 0.2  # nats a token of general text
FLAT, GOOD = 0.02, 0.9  # shares of the questions answered right
RATE = 3.0  # what a learning rate is divided by
FEW = {"conversations": 50, "pairs": 50, "answers": 100, "documents": 3}  # fewer hardly teach anything
MORE = {
    "conversations": "synth qa kb.sqlite -o more.jsonl",
    "pairs": "synth pairs kb.sqlite -o more.jsonl",
    "answers": "synth pairs kb.sqlite -o more.jsonl",
    "documents": "synth expand kb.sqlite -o passages.jsonl",
}
GENERAL = "sample:general/replay.jsonl"


def tool(name: str) -> str:
    """A program of this environment as the user can call it from here."""
    beside = Path(sys.executable).parent / name
    on_path = any(Path(folder) == beside.parent for folder in os.environ.get("PATH", "").split(os.pathsep))
    return name if on_path or not beside.exists() else os.path.relpath(beside)


@dataclass
class Trained:
    """What conditions see of a training run: its result, and the curves of its log.

    ``valid``: (step, loss) of each evaluation; ``losses``: training loss by step; ``plan``: rows, tokens, steps.
    """

    path: Path
    settings: TrainSettings
    objective: str
    status: str
    result: Mapping[str, Any]
    plan: Mapping[str, Any] = field(default_factory=dict)
    valid: list[tuple[int, float]] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)

    def hear(self, event: Event) -> None:
        """Takes an event of the run's log."""
        if isinstance(event, RunStarted):
            self.plan = event.plan
        elif isinstance(event, Evaluated) and event.name == "valid":
            self.valid = [*(point for point in self.valid if point[0] < event.step), (event.step, event.loss)]
        elif isinstance(event, StepDone) and math.isfinite(event.loss):
            self.losses[event.step] = event.loss

    @property
    def best(self) -> int | None:
        """The step with the best validation loss."""
        return (self.result.get("best") or {}).get("step")

    @property
    def steps(self) -> int:
        """Updates that were made."""
        return int(self.result.get("steps") or 0)

    @property
    def folder(self) -> str:
        """``--runs-dir`` where it is not the usual one."""
        return runs_dir_flag(self.settings.runs_dir)

    @property
    def name(self) -> str:
        """The run as a model."""
        return shlex.quote(f"run:{self.path.name}")

    def again(self, flags: str) -> str:
        """The command that trains anew by the run's own settings with other ``flags``."""
        number = 2
        while self.path.with_name(f"{self.path.name}-{number}").exists():
            number += 1
        config, name = shlex.quote(str(self.path / CONFIG)), shlex.quote(f"{self.path.name}-{number}")
        return f"{tool('mlxforge')} {self.objective} -c {config} --name {name} {flags}"

    def longer(self, factor: float) -> str:
        """The flag that trains ``factor`` times as long."""
        if self.settings.steps is not None:
            return f"--steps {max(1, round(self.settings.steps * factor))}"
        return f"--epochs {max(0.01, float(f'{self.settings.epochs * factor:.2g}')):g}"

    def mean_loss(self, begin: float, end: float) -> float | None:
        """The mean training loss of the updates from ``begin`` to ``end``, both included."""
        found = [loss for step, loss in self.losses.items() if begin <= step <= end]
        return sum(found) / len(found) if found else None

    def change(self, *keys: str) -> tuple[float, float] | None:
        """Before and after of a figure of the validation set, or of a task by ``("task", NAME)``."""
        if keys[0] == "task":
            both = (self.result.get("task") or {}).get(keys[1]) or {}
            before, after = both.get("before"), both.get("after")
        else:
            before, after = ((self.result.get(part) or {}).get(keys[0]) for part in ("before", "valid"))
        return (before, after) if before is not None and after is not None else None


class Rule(NamedTuple):
    """One line of the table: ``when`` gives the reason, or nothing where the advice does not fit."""

    name: str
    when: Callable[[Trained], str]
    commands: Callable[[Trained], Iterable[str]]


# --- conditions -------------------------------------------------------------------------------------------------------------


def overfitted(run: Trained) -> str:
    """Validation loss rose after its best while training loss fell."""
    if not run.best or not run.valid or run.valid[-1][0] <= run.best:
        return ""
    lowest = dict(run.valid).get(run.best, math.inf)
    (step, last), span = run.valid[-1], max(1, run.steps // 5)
    then, now = run.mean_loss(run.best - span, run.best), run.mean_loss(run.steps - span, run.steps)
    if last - lowest <= RISE * abs(lowest) or then is None or now is None or now >= then:
        return ""
    return (
        f"over-fitted: valid loss rose from {lowest:.3g} at step {run.best} to {last:.3g} at {step}; the best weights are kept"
    )


def in_vain(run: Trained) -> str:
    """The best evaluation came early, without over-fitting."""
    if not run.best or run.best >= LATE * run.steps or overfitted(run):
        return ""
    return f"no gain after step {run.best} of {run.steps}; its weights are kept"


def unimproved(run: Trained) -> str:
    """No evaluation was better than the one before training."""
    return "no evaluation was better than before training: the weights are those of the start" if run.best == 0 else ""


def unfinished(run: Trained) -> str:
    """Validation loss fell to the very end."""
    losses = [loss for _, loss in run.valid[-3:]]
    if len(losses) < 3 or run.best != run.valid[-1][0]:
        return ""
    falls = [(before - after) / (abs(before) or 1.0) for before, after in pairwise(losses)]
    return f"valid loss was still falling at the end, by {falls[-1]:.1%} an evaluation" if min(falls) > GAIN else ""


def forgot(run: Trained) -> str:
    """General text got harder."""
    kept = run.result.get("retention") or {}
    before, after = ((kept.get(part) or {}).get("loss") for part in ("before", "after"))
    if before is None or after is None or after <= before + FORGOT:
        return ""
    return f"general text got harder: loss {before:.3g} to {after:.3g}"


def flat(run: Trained) -> str:
    """Answers got no better."""
    found = run.change("task", "exact_match")
    if found is None or found[1] - found[0] >= FLAT or found[1] >= GOOD:
        return ""
    return f"exact match went from {found[0]:.0%} to {found[1]:.0%}: see the answers"


def undecided(run: Trained) -> str:
    """Pairs are ranked no better."""
    found = run.change("accuracy")
    if found is None or found[1] - found[0] >= FLAT or found[1] >= GOOD:
        return ""
    return f"pairs are ranked right in {found[1]:.0%}, {found[0]:.0%} before"


def chosen_fell(run: Trained) -> str:
    """The wanted answers became less likely."""
    found = run.change("logp_chosen")
    if found is None or found[1] >= found[0] - FALL * abs(found[0]):
        return ""
    return f"the chosen answers became less likely: log p {found[0]:.1f} to {found[1]:.1f}"


def few(run: Trained) -> str:
    """Too few rows to learn from."""
    kind, many = _rows(run)
    return f"only {many} {kind}: {FEW[kind]} are the least that teach anything" if kind and many < FEW[kind] else ""


def _rows(run: Trained) -> tuple[str, int]:
    return next(((kind, int(run.plan[kind])) for kind in FEW if kind in run.plan), ("", 0))


# --- commands ---------------------------------------------------------------------------------------------------------------


def _uses(run: Trained) -> list[str]:
    mlxforge, folder, name = tool("mlxforge"), run.folder, run.name
    if run.objective == "cpt":
        base = json.loads((run.path / ADAPTER_CONFIG).read_text())["model"]
        base = os.path.relpath(base) if Path(base).is_dir() else base
        theirs = f"--model {shlex.quote(base)} --adapter-path {shlex.quote(str(run.path))} --ignore-chat-template"
        return [
            f'{mlxforge} generate{folder} --raw --model {name} "..."',
            f'{tool("mlx_lm.generate")} {theirs} --prompt "..."',
            f"{mlxforge} sft{folder} --model {name} --data CHATS.jsonl",
        ]
    return [f"{mlxforge} chat{folder} --model {name}", *_judged(run), *_onward(run)]


def _judged(run: Trained) -> list[str]:
    task = getattr(run.settings, "task", None)
    return [f"{tool('mlxforge')} eval{run.folder} {run.name} --data {shlex.quote(task)}"] if task else []


def _onward(run: Trained) -> list[str]:
    mlxforge, file = tool("mlxforge"), shlex.quote(f"{run.path.name}.gguf")
    prefer = [f"{mlxforge} dpo{run.folder} --model {run.name} --data PAIRS.jsonl"] if run.objective == "sft" else []
    return [*prefer, f"{mlxforge} export gguf{run.folder} {shlex.quote(run.path.name)} -o {file}"]


def _replay(run: Trained) -> list[str]:
    if isinstance(run.settings, PreferenceSettings):
        return [run.again(f"--learning-rate {run.settings.learning_rate / 2:.2g}")]
    ratio = min(0.5, max(0.25, 2 * getattr(run.settings, "replay_ratio", 0.0)))
    text = "" if getattr(run.settings, "replay", []) else f"--replay {GENERAL} "
    return [run.again(f"{text}--replay-ratio {ratio:g}")]


def _held(run: Trained) -> list[str]:
    if getattr(run.settings, "loss", "") == "sigmoid":
        return [run.again("--loss dpop")]
    if hasattr(run.settings, "sft_weight"):
        return [run.again(f"--sft-weight {max(0.1, 2 * run.settings.sft_weight):g}")]
    return [run.again(f"--beta {2 * getattr(run.settings, 'beta', 0.1):g}")]


def _lower(run: Trained) -> list[str]:
    config = shlex.quote(str(run.path / CONFIG))
    return [
        run.again(f"--learning-rate {run.settings.learning_rate / RATE:.2g}"),
        f"{tool('mlxforge')} lr-find {run.objective} -c {config}",
    ]


def _share(run: Trained) -> float:
    return (run.best or 0) / max(1, run.steps)


# Uses first, then what to mend; of a finished run.
RULES: tuple[Rule, ...] = (
    Rule("over-fitted", overfitted, lambda run: [run.again(run.longer(_share(run)))]),
    Rule("in vain", in_vain, lambda run: [run.again(run.longer(_share(run)))]),
    Rule("not improved", unimproved, _lower),
    Rule("still falling", unfinished, lambda run: [run.again(run.longer(2))]),
    Rule("forgot", forgot, _replay),
    Rule("flat answers", flat, _judged),
    Rule("flat pairs", undecided, lambda run: [run.again(f"--learning-rate {run.settings.learning_rate * RATE:.2g}")]),
    Rule("chosen fell", chosen_fell, _held),
    Rule("few rows", few, lambda run: [f"{tool('mlxforge')} {MORE[_rows(run)[0]]}"]),
)


def after_training(path: Path, settings: TrainSettings, objective: str, status: str, result: Mapping[str, Any]) -> list[str]:
    """What to run after a training run, by how it ended and what its log shows."""
    run = Trained(path, settings, objective, status, result)
    if status == "failed" and result["skipped_updates"] >= settings.max_skipped:
        return lines(dict.fromkeys(_lower(run), "diverged: loss or gradient was no longer finite"))
    if status != "finished":
        return [f"{tool('mlxforge')} {objective}{run.folder} --resume {shlex.quote(path.name)}"]
    for event in replay(path / EVENTS):
        run.hear(event)
    curves = f"{tool('mlxforge')} runs plot{run.folder} {shlex.quote(path.name)} -o curves.png"
    return lines(dict.fromkeys([*_uses(run), curves], "") | remedies(run))


def remedies(run: Trained, rules: Sequence[Rule] = RULES) -> dict[str, str]:
    """Commands that fit what a finished run shows, with the reason of the first rule that gives each."""
    found: dict[str, str] = {}
    for rule in rules:
        if reason := rule.when(run):
            for command in rule.commands(run):
                found.setdefault(command, reason)
    return found


def lines(reasons: Mapping[str, str]) -> list[str]:
    """Commands with their reasons, as a shell takes them."""
    return [f"{command}  # {reason}" if reason else command for command, reason in reasons.items()]
