"""The stages of a project as steps in order: which follows which, whose model each works on, what each reads and makes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxforge.core.config import to_dict, walk
from mlxforge.core.errors import ConfigError, did_you_mean
from mlxforge.core.events import Control, Emit
from mlxforge.core.files import bytes_hash
from mlxforge.core.settings import Settings
from mlxforge.data.sources import HUB, parse_spec
from mlxforge.runs.pipeline_state import MISSING, Ledger, Record
from mlxforge.runs.project import ELSEWHERE, Project
from mlxforge.runs.stage_settings import TRAINING
from mlxforge.runs.text import RUN, expand

BASE = "base"
# Settings of a stage that decide nothing of what it makes: they say when and on what it works, which the model and the inputs
# tell, or how fast and at what price.
IDLE = ("after", "takes", "variants", "preset", "trackers", "concurrency", "price_in", "price_out", "max_cost")


@dataclass(frozen=True)
class Step:
    """A stage, of one variant of sft where there are several."""

    stage: str
    variant: str
    settings: Settings = field(compare=False, hash=False, repr=False)

    @property
    def name(self) -> str:
        """``sft``, or ``sft.formal``: the name of its record."""
        return f"{self.stage}.{self.variant}" if self.variant else self.stage

    @property
    def label(self) -> str:
        """``sft``, or ``sft:formal``: what a user calls it."""
        return self.name.replace(".", ":")

    def suffixed(self, name: str) -> str:
        """A name that tells its variant."""
        return f"{name}-{self.variant}" if self.variant else name

    def get(self, key: str) -> Any:
        """A setting, None where its kind has none of this name."""
        return getattr(self.settings, key, None)


@dataclass(frozen=True)
class Made:
    """What a step came to: the result of its job, and the files and folders that it made."""

    result: dict[str, Any]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Stage:
    """A row of the table of stages.

    Attributes:
        about: one line.
        reads: specs of what it reads, placed: files, folders, samples, hub ids.
        makes: files and folders that others can name before they are there.
        check: what is missing for it, a line each: what, and the fix.
        run: does the work; ``record`` says whether it goes on with what was begun.
        works_on: whether it works on the model of another stage.
    """

    about: str
    reads: Callable[[Road, Step], list[str]]
    makes: Callable[[Road, Step], list[Path]]
    check: Callable[[Road, Step], Iterator[str]]
    run: Callable[[Road, Step, Record, Emit, Control], Made]
    works_on: bool = False


class Road:
    """The steps of a project in the order in which they run.

    Raises:
        ConfigError: an unknown stage or variant is named, or stages wait for each other in a circle.
    """

    def __init__(self, project: Project, table: Mapping[str, Stage]) -> None:
        self.project, self.table = project, table
        self.ledger = Ledger(project.root)
        problems = [*self._unknown(), *self._unknown_variants()]
        if problems:
            raise ConfigError("\n".join(dict.fromkeys(problems)))
        steps = [
            Step(stage, variant, self._settings(stage, variant)) for stage in project.stages for variant in self.variants(stage)
        ]
        self.steps: list[Step] = steps
        self.steps = self._ordered(steps)

    def _settings(self, stage: str, variant: str) -> Settings:
        return self.project.variants[variant] if stage == "sft" and variant else self.project.stages[stage]

    def command(self, *words: str) -> str:
        """The command line that works on this project."""
        file = self.project.file
        named = [] if file == Path(file.name) else [str(file)]
        return shlex.join(["mlxforge", "pipeline", *named, *words])

    # Whose model a stage works on

    def takes(self, stage: str) -> str:
        """The training stage whose model a stage works on, or ``base``."""
        settings = self.project.stages[stage]
        if stage == "verify":
            return self.takes("export") if "export" in self.project.stages else BASE
        if named := getattr(settings, "takes", None):
            return str(named)
        if stage in TRAINING and f"{stage}.model" in self.project.where:
            return BASE
        names = list(self.project.stages)
        before = names[: names.index(stage)]
        return next((name for name in reversed(before) if name in TRAINING and not self._said_to_take(name, stage)), BASE)

    def _said_to_take(self, name: str, stage: str) -> bool:
        """Whether a stage is told to take another, itself or by those that it takes."""
        seen: set[str] = set()
        while name in self.project.stages and name not in seen:
            seen.add(name)
            name = getattr(self.project.stages[name], "takes", None) or ""
            if name == stage:
                return True
        return False

    def variants(self, stage: str, seen: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The variants that a stage is run for; one without a name where there are none."""
        if stage == "sft":
            return tuple(self.project.variants) or ("",)
        if not self.table[stage].works_on:
            return ("",)
        taken = self.takes(stage)
        if stage == "verify" and "export" in self.project.stages:
            return self.variants("export", (*seen, stage))
        if taken == BASE or taken in seen or taken not in self.project.stages:
            return ("",)
        own = getattr(self.project.stages[stage], "variants", [])
        return tuple(own) or self.variants(taken, (*seen, stage))

    def taken(self, step: Step) -> Step | None:
        """The training step whose model a step works on; None where it is the project's base."""
        stage = self.takes(step.stage)
        if stage == BASE or not self.table[step.stage].works_on:
            return None
        return next(one for one in self.steps if one.stage == stage and one.variant in (step.variant, ""))

    def model(self, step: Step) -> str:
        """The model that a step works on, as every command takes it."""
        taken = self.taken(step)
        if taken is not None:
            return self.result_model(taken)
        own = step.get("model") if step.stage in TRAINING and f"{step.stage}.model" in self.project.where else None
        return self.project.model(str(own or self.project.settings.model))

    def result_model(self, step: Step) -> str:
        """The model that a training step has made, by its rule for what is passed on."""
        record = self.ledger.read(step.name)
        name = record.run if record and record.run else self.run_name(step)
        last = "@last" if step.get("pass_on") == "last" else ""
        return f"{RUN}{(self.project.runs_dir / name).resolve()}{last}"

    def run_name(self, step: Step) -> str:
        """The name of a training step's run, before it is numbered."""
        return step.suffixed(f"{self.project.name}-{step.stage}")

    # What a step reads

    def inputs(self, step: Step) -> dict[str, str]:
        """Name -> hash of all that decides what a step makes, besides its settings."""
        found = {self.shown(spec): self.hash(spec) for spec in self.table[step.stage].reads(self, step)}
        if self.table[step.stage].works_on or step.stage in ("ingest", "synth"):
            found["model"] = self.identity(step)
        if step.stage in ("eval", "verify"):  # models and files of other stages, which are no data that it names
            found |= {one.label: self.made(one) for one in self.needs(step)}
        return found

    def made(self, step: Step) -> str:
        """Hash of all that a step has made."""
        record = self.ledger.read(step.name)
        return bytes_hash(*sorted(record.outputs.values())) if record else MISSING

    def identity(self, step: Step) -> str:
        """Hash of the model that a step works on; of one on the hub its name."""
        taken = self.taken(step)
        if taken is not None:
            return self.made(taken)
        return base_hash(self.model(step), self.project.runs_dir)

    def hash(self, spec: str) -> str:
        """Hash of what a spec names; of what lies elsewhere its name."""
        path = Path(expand(parse_spec(spec).path)).expanduser()
        return spec if spec.startswith((HUB, RUN)) else self.ledger.hash(path)

    def shown(self, spec: str) -> str:
        """A spec as seen from the project's folder."""
        inside = not spec.startswith(ELSEWHERE) and self.project.root.resolve() in Path(spec).resolve().parents
        return self.ledger.shown(Path(spec)) if inside else spec

    def maker(self, spec: str) -> Step | None:
        """The step that makes what a spec names."""
        place = Path(parse_spec(spec).path).absolute()
        for step in self.steps:
            made = [path.absolute() for path in self.table[step.stage].makes(self, step)]
            if any(place == one or one in place.parents or place in one.parents for one in made):
                return step
        return None

    def settings(self, step: Step) -> dict[str, Any]:
        """The settings of a step that decide what it makes; those at their default are left out, so that a setting that a
        later mlxforge adds changes nothing."""
        given = {key: value for key, default, value in _leaves(step.settings) if value != default and key not in IDLE}
        # Exported files are called by the project; of other stages its name decides nothing.
        return given | ({"project": self.project.name} if step.stage == "export" else {})

    # Order

    def needs(self, step: Step) -> list[Step]:
        """The steps whose results a step takes, and those that it is told to wait for."""
        found = [self.taken(step)] if self.table[step.stage].works_on else []
        found += [self.maker(spec) for spec in self.table[step.stage].reads(self, step)]
        waits = list(step.get("after") or [])
        if step.stage == "verify":
            found += [one for one in self.steps if one.stage == "export" and one.variant == step.variant]
        if step.stage == "eval":
            waits += compared(self, step)
        found += [one for one in self.steps if one.stage in waits or one.label in waits]
        return list(dict.fromkeys(one for one in found if one is not None and one != step))

    def _ordered(self, steps: list[Step]) -> list[Step]:
        """Each after what it needs, else in the order of the table."""
        left, done = list(steps), list[Step]()
        needs = {step: self.needs(step) for step in steps}
        while left:
            ready = next((step for step in left if all(one in done for one in needs[step])), None)
            if ready is None:
                circle = _circle(left[0], needs, done)
                where = self.project.line(*(f"{one.stage}.{key}" for one in circle for key in ("takes", "after", "data")))
                shown = " -> ".join(one.label for one in circle)
                raise ConfigError(
                    f"stages wait for each other in a circle: {shown}", where=where, fix="change takes, after or data of one"
                )
            left.remove(ready)
            done.append(ready)
        return done

    def chosen(self, name: str, flag: str) -> list[Step]:
        """The steps that ``sft`` or ``sft:formal`` names.

        Raises:
            ConfigError: there is none.
        """
        found = [step for step in self.steps if name in (step.stage, step.label)]
        if not found:
            known = list(dict.fromkeys([*(step.stage for step in self.steps), *(step.label for step in self.steps)]))
            what = "is not in the project" if name in self.table else "is no stage"
            raise ConfigError(f"'{name}' {what}", where=flag, fix=did_you_mean(name, known))
        return found

    def _unknown(self) -> Iterator[str]:
        """A line for every stage that is named and not there."""
        stages = list(self.project.stages)
        trained = [name for name in stages if name in TRAINING]
        for stage, settings in self.project.stages.items():
            takes = getattr(settings, "takes", None)
            if takes and takes not in (BASE, *trained):
                hint = did_you_mean(takes, [BASE, *trained])
                yield f"{self.project.line(f'{stage}.takes')}: {stage} takes '{takes}', which trains nothing here ({hint})"
            if takes == stage:
                yield f"{self.project.line(f'{stage}.takes')}: {stage} takes its own model (leave it out)"
            for name in getattr(settings, "after", []):
                if name == stage:
                    yield f"{self.project.line(f'{stage}.after')}: {stage} waits for itself (leave it out)"
                if name not in stages:
                    hint = did_you_mean(name, stages)
                    yield f"{self.project.line(f'{stage}.after')}: {stage} waits for '{name}', which is no stage here ({hint})"

    def _unknown_variants(self) -> Iterator[str]:
        for stage, settings in self.project.stages.items():
            for name in getattr(settings, "variants", []):
                if name not in self.project.variants:
                    hint = did_you_mean(name, self.project.variants) if self.project.variants else "sft has no variants"
                    yield f"{self.project.line(f'{stage}.variants')}: '{name}' is no variant of sft ({hint})"


def _leaves(settings: Settings) -> Iterator[tuple[str, Any, Any]]:
    """Every setting as (dotted key, default, value)."""
    plain = to_dict(settings)
    for key, _, default in walk(type(settings)):
        value: Any = plain
        for part in key.split("."):
            value = value[part]
        yield key, default, value


def compared(road: Road, step: Step) -> list[str]:
    """The stages (``sft``, ``sft:formal``) whose models an evaluation compares, without the base."""
    named = list(step.get("models") or [])
    return [name for name in named if name != BASE] if named else [name for name in road.project.stages if name in TRAINING]


def base_hash(model: str, runs_dir: Path) -> str:
    """Hash of a model that lies here, adapter and all; else its name."""
    from mlxforge.models.adapters import adapter_file
    from mlxforge.models.check import model_hash
    from mlxforge.models.hub import is_folder, resolve_model
    from mlxforge.runs.opening import resolve_base

    base = resolve_base(model, runs_dir)
    if base.model != "tiny" and not is_folder(base.model):
        return base.model
    return bytes_hash(model_hash(resolve_model(base.model)), *(adapter_file(one).read_bytes() for one in base.adapters))


def _circle(start: Step, needs: Mapping[Step, Iterable[Step]], done: list[Step]) -> list[Step]:
    """Steps that wait for each other, the first one again at the end."""
    walked = [start]
    while walked.count(walked[-1]) < 2:
        walked.append(next(one for one in needs[walked[-1]] if one not in done))
    return walked[walked.index(walked[-1]) :]
