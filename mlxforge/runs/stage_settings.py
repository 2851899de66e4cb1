"""The settings of a project file: what holds for all stages, and what each stage may say."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

import msgspec

from mlxforge.core.settings import CONFIGS, Count, PreferenceSettings, Settings, TrainSettings
from mlxforge.core.settings import help as help  # noqa: A004 - reads as what it is in the field tables below

TRAINING = tuple(CONFIGS)
PREFERENCES = tuple(name for name, job in CONFIGS.items() if issubclass(job, PreferenceSettings))

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
    "cpt": _training(CONFIGS["cpt"], "cpt"),
    "synth": SynthStage,
    "sft": _training(CONFIGS["sft"], "sft"),
    "pairs": PairsStage,
    **{name: _training(CONFIGS[name], name) for name in PREFERENCES},
    "eval": EvalStage,
    "fuse": FuseStage,
    "export": ExportStage,
    "verify": VerifyStage,
}
