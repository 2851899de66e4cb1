"""Settings: each is one typed field with its default, bounds and help.

From a field come the YAML key, the flag, the docs and the error message; :mod:`mlxforge.core.config` reads them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]


def help(text: str, **bounds: Any) -> Meta:  # noqa: A001 - reads as what it is in the field tables below
    """A field's help text and bounds."""
    return Meta(description=text, **bounds)


class Settings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of every group of settings."""


class LoraSettings(Settings):
    """What is trained."""

    kind: Annotated[
        Literal["lora", "dora", "rslora", "full"],
        help("lora; dora (learns magnitudes too); rslora (scale alpha/sqrt(rank)); full trains every weight"),
    ] = "lora"
    rank: Annotated[int, help("rank of the update", ge=1)] = 32
    alpha: Annotated[float, help("scale of the update: alpha / rank", gt=0)] = 64.0
    dropout: Annotated[float, help("share of the inputs dropped before the update", ge=0, lt=1)] = 0.0
    layers: Annotated[Count | None, help("train the last N layers only (default: all)")] = None
    targets: Annotated[list[str], help("names of the linear layers, such as q_proj; 'all' for every one")] = msgspec.field(
        default_factory=lambda: ["all"]
    )
    plus_ratio: Annotated[float, help("LoRA+: learning rate of the B matrices over that of the A matrices", gt=0)] = 1.0


# Settings of several jobs, though not of all.
Replay = Annotated[
    list[str],
    help("text mixed into training against forgetting: files, folders, or run for what the base run was trained on"),
]
ReplayRatio = Annotated[float, help("share of the trained tokens that comes from replay", ge=0, lt=1)]
Reference = Annotated[
    Union[str, None], help("model whose log-probabilities are the reference (default: the model as it is before training)")
]
SftWeight = Annotated[float, help("weight of the cross-entropy of the chosen answer, a token, added to the loss", ge=0)]
SharePrompt = Annotated[
    Literal["auto", "on", "off"],
    help("compute the prompt of a pair once for both answers, with the same result; auto: where prompts are long enough"),
]


class TrainSettings(Settings):
    """What every training job has."""

    model: Annotated[
        str, help("'tiny' (shipped), a folder, a Hugging Face id, or run:NAME[@STEP] for a run's base with its adapter")
    ] = "tiny"
    from_run: Annotated[
        str | None, help("go on training the adapter of this run, or NAME@STEP, on its base; see also adapter")
    ] = None
    adapter: Annotated[
        str | None, help("start from this adapter (a folder or a run of the same base) instead of from zero")
    ] = None
    data: Annotated[list[str], help("files, folders or hub:ID[:split]; PATH@2 counts twice, PATH@0.5 half")] = []
    map: Annotated[dict[str, str], help("where a row's text is: text=content reads the key 'content'")] = {}
    valid: Annotated[str | None, help("validation data; by default valid_split of the documents, chosen by hash")] = None
    valid_split: Annotated[float, help("share of the documents held out where no valid is given", ge=0, lt=1)] = 0.05
    retention: Annotated[str | None, help("general text on the same curve, so that forgetting is seen")] = None
    name: Annotated[str | None, help("name of the run (default: objective and time)")] = None
    runs_dir: Annotated[str, help("folder that holds the runs")] = "runs"
    seed: Annotated[int, help("seed of everything random: same seed, same run", ge=0, le=2**32 - 1)] = 0
    epochs: Annotated[float, help("passes over the data", gt=0)] = 3.0
    steps: Annotated[Count | None, help("optimizer updates; overrides epochs")] = None
    batch_tokens: Annotated[int, help("tokens a micro-batch holds at most, padding included", ge=16)] = 4096
    max_length: Annotated[int, help("longest row in tokens; longer documents become several windows", ge=16)] = 1024
    batching: Annotated[
        Literal["auto", "packed", "bucketed"],
        help("packed: several rows share a line and cannot see each other; bucketed: rows of like length; same loss a row"),
    ] = "auto"
    accumulate: Annotated[int, help("micro-batches an update", ge=1)] = 1
    learning_rate: Annotated[float, help("peak learning rate", gt=0)] = 3e-4
    schedule: Annotated[
        Literal["constant", "linear", "cosine", "wsd"], help("after warm-up; wsd holds, then falls in the last fifth")
    ] = "cosine"
    warmup: Annotated[float, help("updates of linear warm-up; a value below 1 is a share of all updates", ge=0)] = 0.03
    min_lr_ratio: Annotated[float, help("where the schedule ends, as a share of the peak", ge=0, le=1)] = 0.0
    optimizer: Annotated[Literal["adamw", "adafactor", "muon", "lion", "sgd"], help("update rule")] = "adamw"
    weight_decay: Annotated[float, help("decoupled weight decay", ge=0)] = 0.0
    clip_norm: Annotated[Positive | None, help("largest norm of the gradient; null for no clipping")] = 1.0
    neftune_alpha: Annotated[float, help("NEFTune noise on the embeddings; 5 is usual, 0 is off", ge=0)] = 0.0
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], help("auto: float32 on a CPU, the model's own on Metal")
    ] = "auto"
    grad_checkpoint: Annotated[bool, help("recompute each layer in the backward pass: less memory, more time")] = False
    eval_every: Annotated[Count | None, help("updates between evaluations (default: ten in a run)")] = None
    save_every: Annotated[Count | None, help("updates between checkpoints (default: at every evaluation)")] = None
    keep: Annotated[int, help("checkpoints kept besides the best one", ge=1)] = 2
    patience: Annotated[Count | None, help("stop after this many evaluations without a better one")] = None
    max_skipped: Annotated[int, help("stop after this many updates in a row with a non-finite loss or gradient", ge=1)] = 5
    samples: Annotated[list[str], help("prompts continued at each evaluation (default: the start of a held-out row)")] = []
    sample_tokens: Annotated[int, help("length of a sample in tokens; 0 for none", ge=0)] = 32
    trackers: Annotated[
        list[Literal["tensorboard", "wandb", "mlflow", "trackio"]],
        help("follow the run there too, by its numbers and settings: tensorboard, wandb, mlflow, trackio (extras)"),
    ] = []
    lora: LoraSettings = msgspec.field(default_factory=LoraSettings)


class CptConfig(TrainSettings):
    """Continued pre-training on raw text."""

    replay: Replay = []
    replay_ratio: ReplayRatio = 0.0


class ChatSettings(TrainSettings):
    """What every job has that learns from conversations."""

    format: Annotated[str | None, help("format of the rows, such as alpaca (default: found row by row)")] = None
    skip_bad: Annotated[bool, help("leave bad rows out and count them, instead of stopping")] = False
    overlong: Annotated[
        Literal["error", "split", "drop", "left"],
        help("rows over max_length: error; split (a row a turn, with the context that fits); drop; left (cut the start off)"),
    ] = "split"
    task: Annotated[str | None, help("conversations whose last answer is asked for, greedily, before and after")] = None
    answer_tokens: Annotated[int, help("longest answer in the task", ge=1)] = 64
    match: Annotated[
        Literal["exact", "start"],
        help("when an answer in the task is right: it is the given one (exact_match), or begins with it (prefix_match)"),
    ] = "exact"

    @property
    def score(self) -> str:
        """What the share of right answers is called in results."""
        return "exact_match" if self.match == "exact" else "prefix_match"


class SftConfig(ChatSettings):
    """Supervised fine-tuning on conversations."""

    replay: Replay = []
    replay_ratio: ReplayRatio = 0.0
    train_on: Annotated[
        Literal["all", "last", "whole"],
        help("all assistant turns; the last one; or whole, which is every token of the conversation"),
    ] = "all"
    chat_replay: Annotated[list[str], help("general conversations mixed into training against forgetting")] = []
    chat_replay_ratio: Annotated[float, help("share of the trained tokens that comes from chat_replay", ge=0, lt=1)] = 0.0


class PreferenceSettings(ChatSettings):
    """What every job has that learns from preferences. ``overlong`` shortens prompts, never answers."""

    learning_rate: Annotated[float, help("peak learning rate", gt=0)] = 5e-6


class DpoConfig(PreferenceSettings):
    """Direct preference optimisation, arXiv 2305.18290, and its variants."""

    loss: Annotated[
        Literal["sigmoid", "hinge", "ipo", "robust", "apo_zero", "dpop", "exo", "nca"],
        help("sigmoid is DPO itself; the others are variants of it, see docs/preferences.md"),
    ] = "sigmoid"
    beta: Annotated[float, help("how strongly the policy is held to the reference", gt=0)] = 0.1
    label_smoothing: Annotated[float, help("share of the labels taken to be wrong: sigmoid, robust and exo", ge=0, lt=0.5)] = (
        0.0
    )
    dpop_weight: Annotated[float, help("dpop: weight of the penalty where the chosen answer becomes less likely", ge=0)] = 50.0
    sft_weight: SftWeight = 0.0
    reference: Reference = None
    share_prompt: SharePrompt = "auto"


class OrpoConfig(PreferenceSettings):
    """Odds-ratio preference optimisation, arXiv 2403.07691: no reference."""

    beta: Annotated[float, help("weight of the odds ratio beside the cross-entropy of the chosen answer", gt=0)] = 0.1
    share_prompt: SharePrompt = "auto"


class SimpoConfig(PreferenceSettings):
    """Simple preference optimisation, arXiv 2405.14734: no reference, log-probabilities a token."""

    beta: Annotated[float, help("scale of the rewards", gt=0)] = 2.0
    gamma: Annotated[float, help("margin that the rewards shall have", ge=0)] = 1.0
    sft_weight: SftWeight = 0.0
    share_prompt: SharePrompt = "auto"


class CpoConfig(PreferenceSettings):
    """Contrastive preference optimisation, arXiv 2401.08417: no reference."""

    beta: Annotated[float, help("scale of the rewards", gt=0)] = 0.1
    sft_weight: SftWeight = 1.0
    share_prompt: SharePrompt = "auto"


class KtoConfig(PreferenceSettings):
    """Kahneman-Tversky optimisation, arXiv 2402.01306: answers that are wanted or not, without pairs."""

    beta: Annotated[float, help("how strongly the policy is held to the reference", gt=0)] = 0.1
    desirable_weight: Annotated[float, help("weight of wanted answers", gt=0)] = 1.0
    undesirable_weight: Annotated[float, help("weight of unwanted answers", gt=0)] = 1.0
    reference: Reference = None


# objective -> its settings
CONFIGS: dict[str, type[TrainSettings]] = {
    "cpt": CptConfig,
    "sft": SftConfig,
    "dpo": DpoConfig,
    "orpo": OrpoConfig,
    "simpo": SimpoConfig,
    "cpo": CpoConfig,
    "kto": KtoConfig,
}
