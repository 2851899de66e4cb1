"""A project file, ``forge.yaml``: what the whole road shall do, stage by stage, read and checked with its lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxforge.core.config import Layer, from_dict, group_of, resolve, struct_types, to_dict, walk, yaml_layer
from mlxforge.core.errors import ConfigError, did_you_mean
from mlxforge.core.settings import CONFIGS, Settings, TrainSettings
from mlxforge.runs.stage_settings import PREFERENCES, STAGE_SETTINGS, TRAINING, GateSettings, ProjectSettings

FILE = "forge.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII)
OWN = ("name", "runs_dir")  # of a training job, which the project settles
# What begins so is no path of the project.
ELSEWHERE = ("sample:", "hub:", "run:", "http://", "https://")
PATHS = ("data", "valid", "retention", "replay", "task", "chat_replay", "adapter", "reference")
GATE = "gate"
SECTIONS = (*STAGE_SETTINGS, GATE)
VARIED = "sft.variants"


@dataclass(frozen=True)
class Project:
    """A project file, read.

    Attributes:
        stages: settings of each stage that the file has, in the order of :data:`mlxforge.runs.stage_settings.STAGE_SETTINGS`.
        variants: of sft by name, each over the settings of ``sft``; empty where there is one sft, or none.
        gate: what the report is held to; None where the file has no such section.
        where: dotted key -> ``file:line``; what it has was given.
    """

    file: Path
    settings: ProjectSettings
    stages: Mapping[str, Settings]
    variants: Mapping[str, Settings] = field(default_factory=dict)
    gate: GateSettings | None = None
    where: Mapping[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The project's folder, which its paths are meant from."""
        return self.file.parent

    @property
    def name(self) -> str:
        """What its runs and exports are called by."""
        return self.settings.name or re.sub(r"[^A-Za-z0-9_-]+", "-", self.root.resolve().name).strip("-") or "project"

    @property
    def runs_dir(self) -> Path:
        """The folder of its runs."""
        return Path(self.place(self.settings.runs_dir))

    @property
    def exports(self) -> Path:
        """The folder of what it hands over."""
        return Path(self.place(self.settings.exports))

    def place(self, spec: str) -> str:
        """A path of the file as it is from here; samples, hub ids, runs and absolute paths stay."""
        if spec.startswith(ELSEWHERE) or Path(spec).expanduser().is_absolute():
            return spec
        return str(self.root / spec)

    def model(self, name: str) -> str:
        """A model of the file as it is from here: a folder of the project, else the name itself."""
        placed = Path(self.place(name))
        return str(placed) if name != "tiny" and placed.is_dir() else name

    def line(self, *keys: str) -> str:
        """Where the first of these keys that was given stands; else the file."""
        return next((self.where[key] for key in keys if key in self.where), str(self.file))

    def job(self, stage: str, variant: str = "") -> TrainSettings:
        """The training job of a stage, its paths placed; the model, the name and data of other stages are still to come."""
        kept = to_dict(self.variants[variant] if variant else self.stages[stage])
        job = CONFIGS[stage]
        values = {name: kept[name] for name in job.__struct_fields__}
        for key in PATHS:
            if value := values.get(key):
                values[key] = [self._spec(one) for one in value] if isinstance(value, list) else self._spec(value)
        values["model"] = self.model(values["model"])
        return from_dict(job, values | {"runs_dir": str(self.runs_dir)}, where=str(self.file))

    def _spec(self, spec: str) -> str:
        return spec if spec == "run" else self.place(spec)


def find_project(path: Path | None) -> Path:
    """The project file that is meant: the one named, in the folder named, or here.

    Raises:
        ConfigError: there is none.
    """
    file = path or Path(FILE)
    file = file / FILE if file.is_dir() else file
    if not file.is_file():
        fix = "make a project: mlxforge init NAME" if path is None else f"mlxforge init NAME makes a folder with a {FILE}"
        raise ConfigError("no such project file", where=str(file), fix=fix)
    return file


def read_project(file: Path) -> Project:
    """Reads a project file.

    Raises:
        ConfigError: a line for every mistake, with its place.
    """
    layer = yaml_layer(file, _nested)
    problems: list[str] = []
    sections = {name: _section(layer, name) for name in STAGE_SETTINGS if name in layer.where}
    top = Layer({}, layer.where)
    for key, value in layer.values.items():
        if key in SECTIONS:
            if value is not None:
                problems.append(f"{layer.where[key]}: {key}: a stage is a mapping of settings")
        elif key.partition(".")[0] not in SECTIONS:
            top.values[key] = value
    known = [*(key for key, _, _ in walk(ProjectSettings)), *SECTIONS]
    for key in [key for key in top.values if key not in known]:
        problems.append(f"{layer.where[key]}: unknown stage or setting '{key}' ({did_you_mean(key, known)})")
        del top.values[key]
    settings = _resolved(ProjectSettings, problems, top) or ProjectSettings()
    stages: dict[str, Settings] = {}
    variants: dict[str, Settings] = {}
    for name, section in sections.items():
        varied = _take_variants(section, name)
        if name == "sft" and section.values.pop("variants", None) is not None:
            problems.append(
                f"{section.where['variants']}: variants: a list of mappings with names: - {{name: formal, epochs: 2}}"
            )
        lower = _lower(file, name, section, settings, problems)
        if found := _resolved(STAGE_SETTINGS[name], problems, *lower, section):
            stages[name] = found
        for place, one in varied:
            variants |= _variant(place, one, name, [*lower, section], variants, problems)
    gate = _resolved(GateSettings, problems, _section(layer, GATE)) if GATE in layer.where else None
    if gate and "eval" not in stages:
        problems.append(f"{layer.where[GATE]}: gate holds the report of eval to something, but there is no stage eval")
    if settings.name is not None and not NAME.fullmatch(settings.name):  # of folders and files
        problems.append(
            f"{layer.where['name']}: name: '{settings.name}' is no name for a project (letters, digits, '-' and '_')"
        )
    problems += _own(layer)
    if not problems and not stages:
        problems.append(f"{file}: no stage ({', '.join(STAGE_SETTINGS)}: write the ones you want as mappings)")
    both = [name for name in PREFERENCES if name in stages]
    if len(both) > 1:
        problems.append(f"{layer.where[both[1]]}: {both[0]} and {both[1]}: a project has one of {', '.join(PREFERENCES)}")
    if problems:
        raise ConfigError("\n".join(problems))
    return Project(file, settings, stages, variants, gate, layer.where)


def _nested(key: str) -> bool:
    return key in SECTIONS or key == VARIED or key.endswith(".lora")


def _section(layer: Layer, name: str) -> Layer:
    """The keys of one stage, without its name."""
    cut = len(name) + 1
    values = {key[cut:]: value for key, value in layer.values.items() if key.startswith(f"{name}.")}
    return Layer(values, {key: layer.where[f"{name}.{key}"] for key in values})


def _take_variants(section: Layer, name: str) -> list[tuple[str, Layer]]:
    """The variants of a stage's section by number, which leave it."""
    if f"{name}.variants" != VARIED:
        return []
    found: dict[str, Layer] = {}
    for key in [key for key in section.values if key.startswith("variants.")]:
        _, number, rest = key.split(".", 2)
        one = found.setdefault(number, Layer({}, {}))
        one.values[rest], one.where[rest] = section.values.pop(key), section.where[key]
    return list(found.items())


def _lower(file: Path, name: str, section: Layer, settings: ProjectSettings, problems: list[str]) -> list[Layer]:
    """What lies below a stage's own settings: the project's, then its preset."""
    common = {"seed": settings.seed} | ({"retention": settings.retention} if name in TRAINING else {})
    lower = [Layer({key: value for key, value in common.items() if key in _keys(STAGE_SETTINGS[name])}, {})]
    if isinstance(preset := section.values.get("preset"), str):
        beside = file.parent / preset
        try:
            layer = yaml_layer(beside if beside.is_file() else Path(preset))
        except ConfigError as error:
            problems.append(f"{section.where['preset']}: preset: {error}")
        else:
            layer.values.pop("model", None)  # what a preset is tried on; here the stage before settles it
            lower.append(layer)
    return lower


def _variant(
    number: str, one: Layer, stage: str, lower: list[Layer], known: Mapping[str, Settings], problems: list[str]
) -> dict[str, Settings]:
    name, where = one.values.pop("name", None), next(iter(one.where.values()), "")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        problems.append(f"{where}: variant {int(number) + 1} of {stage} needs a name of letters, digits, '-' and '_'")
        return {}
    if name in known:
        problems.append(f"{where}: two variants of {stage} are called '{name}'")
    for key in ("takes", "after", "preset"):
        if key in one.values:
            problems.append(f"{one.where[key]}: {key} holds for all variants: write it in {stage}")
            one.values.pop(key)
    found = _resolved(STAGE_SETTINGS[stage], problems, *lower, one)
    return {name: found} if found else {}


def _resolved(kind: type[Any], problems: list[str], *layers: Layer) -> Any:
    """The settings, or None with their mistakes noted."""
    try:
        return resolve(kind, *layers)
    except ConfigError as error:
        problems += [line for line in str(error).splitlines() if line not in problems]
        return None


def _own(layer: Layer) -> list[str]:
    """What a training stage says though the project does."""
    return [
        f"{layer.where[f'{stage}.{key}']}: {key} is the project's: write it at the top of the file"
        for stage in TRAINING
        for key in OWN
        if f"{stage}.{key}" in layer.where
    ]


def _keys(settings: type[Settings]) -> set[str]:
    return {key for key, annotation in struct_types(settings).items() if group_of(annotation) is None}
