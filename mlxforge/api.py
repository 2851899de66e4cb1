"""The Python API: the command line's verbs as functions, with the same configs, events and results.

>>> from mlxforge import CptConfig, plain, train
>>> config = CptConfig(model="tiny", data=["notes/"], epochs=2)
>>> result = train(config, listeners=[plain()])  # doctest: +SKIP
>>> result.path, result.result["valid"]["bpb"]  # doctest: +SKIP
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mlxforge.core.blas import load_blas
from mlxforge.core.config import checked
from mlxforge.core.events import Control, Emit, fan_out
from mlxforge.core.settings import TrainSettings
from mlxforge.runs import train as training
from mlxforge.runs.execution import RunResult

if TYPE_CHECKING:
    from mlxforge.evals.report import Report
    from mlxforge.evals.road import Summary
    from mlxforge.runs.eval_job import EvalSettings

load_blas()  # before anything imports MLX


def train(config: TrainSettings, listeners: Sequence[Emit] = (), control: Control | None = None) -> RunResult:
    """Trains as the config says: ``CptConfig`` on text, ``SftConfig`` on chats, ``DpoConfig`` and kin on preferences.

    Blocks until the run ends. ``listeners`` hear every event, ``control`` steers from outside.

    Raises:
        MlxforgeError: one clear line on what is wrong, where, and the fix.
    """
    with _tracked(listeners) as heard:
        return training.train(checked(config), heard, control)


def resume(
    run: str = "last", *, runs_dir: str = "runs", listeners: Sequence[Emit] = (), control: Control | None = None
) -> RunResult:
    """Goes on with an interrupted or killed run, by name, path or ``last``."""
    with _tracked(listeners) as heard:
        return training.resume(run, runs_dir, heard, control)


@contextmanager
def _tracked(listeners: Sequence[Emit]) -> Iterator[list[Emit]]:
    """The listeners, and the trackers that the settings name."""
    from mlxforge.ui.trackers import Trackers

    with Trackers(fan_out(listeners)) as following:
        yield [*listeners, following]


def plan(
    config: TrainSettings, listeners: Sequence[Emit] = (), *, probe: bool = False, memory: int | None = None
) -> dict[str, Any]:
    """What a run would do and need (rows, tokens, steps, memory in bytes by part, seconds); writes nothing.

    Args:
        probe: measure memory and time in two updates on this machine.
        memory: bytes that the run may take: ``fit`` of the result is what to change so that it does.

    Raises:
        ConfigError: no settings fit into ``memory``.
    """
    from mlxforge.runs.plan import plan

    return plan(checked(config), listeners, probe=probe, memory=memory)


def evaluate(settings: EvalSettings, listeners: Sequence[Emit] = ()) -> Report:
    """Evaluates models side by side on the same rows; the report's folder is ``settings.output``.

    What a model gave is kept as it comes: the same call goes on where it was stopped.

    Raises:
        MlxforgeError: one clear line on what is wrong, where, and the fix.
    """
    from mlxforge.runs.evaluate import evaluate

    return evaluate(settings, fan_out(listeners))


def gate(
    report: str | Path,
    require: str | Sequence[str] = (),
    no_regression: str | Sequence[str] = (),
    *,
    against: str | None = None,
    confidence: float = 0.95,
    strict: bool = False,
    runs_dir: str = "runs",
) -> dict[str, Any]:
    """Holds a report to requirements, such as ``sft.exact_match>=0.6`` and ``retention.bpb:0.02``.

    Returns:
        What ``gate.json`` holds: ``passed``, and ``requirements`` with the value, interval and reason of each.

    Raises:
        ConfigError: a requirement that cannot be read, or names what the report has not.
        DataError: no report.
    """
    from mlxforge.runs.gate import gate

    texts = [[given] if isinstance(given, str) else given for given in (require, no_regression)]
    return gate(Path(report), *texts, against=against, confidence=confidence, strict=strict, runs_dir=Path(runs_dir))


def pipeline(
    project: str | Path = ".",
    *,
    start: str | None = None,
    only: str | None = None,
    listeners: Sequence[Emit] = (),
    control: Control | None = None,
) -> Summary:
    """Does what is to be done of a project: ``project`` is its ``forge.yaml`` or the folder. Nobody is asked.

    Args:
        start: a stage that is done again, with what follows from it.
        only: a stage that alone is done again.

    Returns:
        Of each stage what it gained and what it cost; ``ships`` tells whether the report reaches what the gate requires.

    Raises:
        ConfigError: mistakes in the file, or what is missing for a stage, a line each.
        Interrupted: stopped by the user; the same call goes on.
    """
    from mlxforge.runs.pipeline import open_pipeline, run
    from mlxforge.runs.pipeline_report import summarise

    found = open_pipeline(Path(project), start, only)
    with _tracked(listeners) as heard:

        @contextmanager
        def shown(*_: object) -> Iterator[tuple[Emit, Control]]:
            yield fan_out(heard), control or Control()

        if found.work:
            run(found, shown)
    return summarise(found)


def list_runs(runs_dir: str = "runs") -> list[Any]:
    """Summaries of the run directories, newest first."""
    from mlxforge.runs import record

    return record.list_runs(Path(runs_dir))


def detect_model(name: str) -> dict[str, Any]:
    """Family, template and end-of-turn tokens of a model folder or hub id, without its weights."""
    from mlxforge.runs import models

    return models.detect_model(name)


def plain(stream: TextIO | None = None) -> Emit:
    """A listener that writes one line for each thing worth knowing."""
    from mlxforge.ui.plain import Plain

    return Plain(stream or sys.stdout)


def dashboard(control: Control | None = None) -> Any:
    """The live dashboard as a context manager that yields a listener: ``with dashboard() as show: train(c, [show])``."""
    from mlxforge.ui.listen import listeners

    return listeners("auto", control, trackers=False)
