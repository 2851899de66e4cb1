"""A project file, ``forge.yaml``: what the whole road shall do, stage by stage, read and checked with its lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec

from mlxforge.core.config import Layer, from_dict, group_of, resolve, struct_types, to_dict, walk, yaml_layer
from mlxforge.core.errors import ConfigError, did_you_mean
from mlxforge.core.settings import OBJECTIVES, Count, Settings, TrainSettings
from mlxforge.core.settings import help as help  # noqa: A004 - reads as what it is in the field tables below

FILE = "forge.yaml"
PREFERENCES = ("dpo", "orpo", "simpo", "cpo", "kto")
TRAINING = ("cpt", "sft", *PREFERENCES)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII)
OWN = ("name", "runs_dir")  # of a training job, which the project settles
# What begins so is no path of the project.
ELSEWHERE = ("sample:", "hub:", "run:", "http://", "https://")
PATHS = ("data", "valid", "retention", "replay", "task", "chat_replay", "adapter", "reference")

After = Annotated[list[str], help("stages that it waits for, besides those whose results it takes")]
Takes = Annotated[str | None, help("stage whose model it works on, or base (default: the training stage before it)")]
Variants = Annotated[list[str], help("variants of sft that it is for (default: those of the stage it takes)")]


class ProjectSettings(Settings):
    """What holds for all stages."""

    name: Annotated[str | None, help("of the project and its runs (default: its folder's name)")] = None
    model: Annotated[str, help("the base: 'tiny' (shipped), a folder, a Hugging Face id, or run:NAME")] = "tiny"
    runs_dir: Annotated[str, help("folder for the runs")] = "runs"
    exports: Annotated[str, help("folder for the report, the fused model and the GGUF files")] = "exports"
    seed: Annotated[int, help("of every stage that does not say its own", ge=0, le=2**32 - 1)] = 0
    retention: Annotated[str | None, help("general text on the curve of every training stage, and in the report")] = None


class GateSettings(Settings):
    """What the report of eval must show before the result should ship."""

    require: Annotated[list[str], help("what must be reached, such as sft.exact_match>=0.6")] = []
    no_regression: Annotated[list[str], help("what must not get worse, and by how much it may: retention.bpb:0.02")] = []
    against: Annotated[str | None, help("what no_regression compares with (default: base)")] = None
    strict: Annotated[bool, help("the whole interval must meet each requirement, not the value")] = False


class StageSettings(Settings):
    """What every stage has."""

    after: After = []


class IngestStage(StageSettings):
    """Documents into a knowledge base."""

    documents: Annotated[list[str], help("files and folders to read")] = msgspec.field(default_factory=lambda: ["documents"])
    output: Annotated[str, help("the knowledge base")] = "data/kb.sqlite"
    size: Annotated[Count | None, help("tokens of a chunk at most (default: 500)")] = None
    overlap: Annotated[int | None, help("tokens that a chunk repeats of the one before (default: 50)", ge=0)] = None
    keep: Annotated[list[str], help("cleaning steps to leave out")] = []


class SynthStage(StageSettings):
    """Training data: questions and answers from the knowledge base, or the commands of a program."""

    kind: Annotated[Literal["qa", "commands"], help("qa: from the knowledge base; commands: from a schema, by a grammar")] = (
        "qa"
    )
    output: Annotated[str | None, help("qa: a .jsonl file; commands: a folder (default: in data/)")] = None
    seed: Annotated[int, help("same seed, same rows", ge=0)] = 0
    valid: Annotated[float, help("share for validation", ge=0, lt=1)] = 0.05
    test: Annotated[float, help("share for the last test", ge=0, lt=1)] = 0.05
    kb: Annotated[str | None, help("qa: the knowledge base (default: what ingest makes)")] = None
    styles: Annotated[list[str], help("qa: what is asked for, in turn (default: all)")] = []
    per_chunk: Annotated[int, help("qa: rows asked for of a chunk", ge=1, le=20)] = 3
    limit: Annotated[Count | None, help("qa: rows asked for in all")] = None
    audience: Annotated[str | None, help("qa: for whom the questions are")] = None
    temperature: Annotated[float, help("qa: 0 takes the likeliest token", ge=0, le=2)] = 0.7
    near: Annotated[float, help("qa: questions this much alike are duplicates", gt=0, le=1)] = 0.8
    judge: Annotated[str | None, help("qa: provider that scores each row")] = None
    provider: Annotated[
        str | None, help("mlx (in this process) or openai; commands: it rewords some (default for qa: mlx)")
    ] = None
    model: Annotated[str | None, help("the provider's model (default for mlx: the project's)")] = None
    url: Annotated[str | None, help("of an OpenAI-compatible server (default: $OPENAI_BASE_URL; key: $OPENAI_API_KEY)")] = None
    concurrency: Annotated[int, help("requests answered at a time", ge=1, le=256)] = 8
    price_in: Annotated[float, help("US dollars for a million tokens of prompt", ge=0)] = 0.0
    price_out: Annotated[float, help("US dollars for a million tokens of answer", ge=0)] = 0.0
    max_cost: Annotated[float, help("ceiling in US dollars; needs the prices", ge=0)] = 0.0
    schema: Annotated[str | None, help("commands: a YAML schema")] = None
    from_click: Annotated[str | None, help("commands: MODULE:COMMAND of a Click program")] = None
    rows: Annotated[int, help("commands: rows in all", ge=1, le=1_000_000)] = 1000
    share: Annotated[list[str], help("commands: parts of the cases, such as typo=30")] = []


class PairsStage(StageSettings):
    """Preference pairs from a model's own answers."""

    takes: Takes = None
    variants: Variants = []
    data: Annotated[list[str], help("conversations whose last prompt is answered (default: what the stage it takes read)")] = []
    output: Annotated[str, help("file to write; -VARIANT is added for variants")] = "data/pairs.jsonl"
    samples: Annotated[int, help("answers drawn for each prompt", ge=1, le=64)] = 4
    temperature: Annotated[float, help("1 draws as the model weighs its tokens", gt=0, le=10)] = 1.0
    max_tokens: Annotated[int, help("longer answers are dropped and counted", ge=1)] = 512
    per_row: Annotated[int, help("pairs of a prompt at most", ge=1)] = 1
    limit: Annotated[Count | None, help("take the first rows only")] = None
    seed: Annotated[int, help("same seed, same answers to a row", ge=0)] = 0
    judge: Annotated[str | None, help("command that scores answers: JSON on stdin, a number on stdout")] = None
    judge_url: Annotated[str | None, help("model behind OpenAI's protocol that compares answers")] = None
    judge_model: Annotated[str | None, help("its name on that server")] = None


class EvalStage(StageSettings):
    """Models side by side on sets that training never saw."""

    data: Annotated[list[str], help("files, NAME=FILE or FILE: text, conversations, choices, pairs, commands")] = []
    models: Annotated[list[str], help("stages whose models are compared (default: base and all that train)")] = []
    metrics: Annotated[list[str], help("names or groups (default: all that fit a set)")] = []
    limit: Annotated[Count | None, help("take the first rows of each set only")] = None
    max_tokens: Annotated[int, help("longest answer", ge=1)] = 256
    max_length: Annotated[
        int | None, help("tokens that a text is read in at a time (default: the least of the compared runs)", ge=16)
    ] = None


class FuseStage(StageSettings):
    """The adapter merged into the base."""

    takes: Takes = None
    variants: Variants = []
    dequantize: Annotated[bool, help("a packed base becomes floats; else it is packed again")] = True
    max_shard_size: Annotated[float, help("GB a file", gt=0)] = 5.0


class ExportStage(StageSettings):
    """GGUF files for llama.cpp and what builds on it."""

    takes: Takes = None
    variants: Variants = []
    quants: Annotated[list[str], help("kinds of numbers, a file each")] = msgspec.field(default_factory=lambda: ["q4_k_m"])


class VerifyStage(StageSettings):
    """Each GGUF file held against the model that it was made of, in llama.cpp."""

    texts: Annotated[Count | None, help("texts that the tokenizers are compared on (default: as mlxforge verify)")] = None


# What a training stage has besides the settings of its job.
TRAIN_FIELDS: list[tuple[str, Any, Any]] = [
    ("after", After, msgspec.field(default_factory=list)),
    ("takes", Takes, None),
    ("preset", Annotated[str | None, help("settings below these: a shipped preset's name, or a YAML file")], None),
    ("pass_on", Annotated[Literal["best", "last"], help("weights that the next stages get")], "best"),
]
VARIANTS_FIELD: tuple[str, Any, Any] = ("variants", Variants, msgspec.field(default_factory=list))


def _training(job: type[TrainSettings], objective: str) -> type[Settings]:
    """The settings of a job and of its stage in one: two classes with fields cannot both be bases."""
    more = [*TRAIN_FIELDS, VARIANTS_FIELD] if objective in PREFERENCES else TRAIN_FIELDS
    made: Any = msgspec.defstruct(
        f"{objective.capitalize()}Stage", more, bases=(job,), kw_only=True, forbid_unknown_fields=True
    )
    return cast(type[Settings], made)


# Every stage, in the order in which they run where nothing says otherwise.
STAGE_SETTINGS: dict[str, type[Settings]] = {
    "ingest": IngestStage,
    "cpt": _training(OBJECTIVES["cpt"], "cpt"),
    "synth": SynthStage,
    "sft": _training(OBJECTIVES["sft"], "sft"),
    "pairs": PairsStage,
    **{name: _training(OBJECTIVES[name], name) for name in PREFERENCES},
    "eval": EvalStage,
    "fuse": FuseStage,
    "export": ExportStage,
    "verify": VerifyStage,
}
GATE = "gate"
SECTIONS = (*STAGE_SETTINGS, GATE)
VARIED = "sft.variants"


@dataclass(frozen=True)
class Project:
    """A project file, read.

    Attributes:
        stages: settings of each stage that the file has, in the order of :data:`STAGE_SETTINGS`.
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
        job = OBJECTIVES[stage]
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
