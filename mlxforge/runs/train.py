"""Training of every kind: from settings to an adapter in a run directory."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.blas import load_blas
from mlxforge.core.errors import ConfigError
from mlxforge.core.events import Control, Emit, Noted, Progress, Warned, fan_out
from mlxforge.core.files import bytes_hash
from mlxforge.core.settings import LoraSettings, TrainSettings
from mlxforge.core.trackers import check_trackers
from mlxforge.data.sources import parse_spec
from mlxforge.runs.execution import RunResult, execute, free_path, lineage_of, resumed
from mlxforge.runs.material import Base, Material, Reader
from mlxforge.runs.opening import Base as Opening
from mlxforge.runs.opening import resolve_base
from mlxforge.runs.record import LAST, beside, list_runs, objective_of, read_config, read_record
from mlxforge.runs.text import RUN, anchored

# When an answer is right, by the setting of that name.
MATCHES: dict[str, Callable[[str, str], bool]] = {
    "exact": lambda said, answer: said == answer,
    "start": lambda said, answer: said.startswith(answer),
}
RUN_TEXT = "run"  # as a replay: what the base run was trained on
# objective -> the module whose ``read`` makes its material
READERS = {"cpt": "mlxforge.runs.text", "sft": "mlxforge.runs.chats"} | dict.fromkeys(
    ("dpo", "orpo", "simpo", "cpo", "kto"), "mlxforge.runs.pairs"
)


def train(config: TrainSettings, listeners: Sequence[Emit] = (), control: Control | None = None) -> RunResult:
    """Trains as the class of ``config`` says. Blocks until the run ends; listeners hear every event.

    Raises:
        MlxforgeError: see its tree; nothing is left half-written.
    """
    check_trackers(config.trackers)
    emit = fan_out(listeners)
    config = anchored(settled(config))
    objective = objective_of(config)
    free_path(config, objective)  # a name that is taken is told before an hour of reading
    return execute(config, objective, prepare(config, emit), emit, control or Control())


def resume(
    run: str = LAST,
    runs_dir: str = "runs",
    listeners: Sequence[Emit] = (),
    control: Control | None = None,
    objective: str | None = None,
) -> RunResult:
    """Goes on with a run that was interrupted or killed; ends with the same bits as if it had not been.

    Args:
        objective: of this one alone; ``last`` is then the newest of its runs.

    Raises:
        RunError: no such run, a damaged one, one that is finished, or one of another objective.
    """
    emit = fan_out(listeners)
    if objective and run == LAST:
        run = next((one.name for one in reversed(list_runs(Path(runs_dir))) if one.objective == objective), LAST)
    path, config, record = resumed(runs_dir, run, objective)
    check_trackers(config.trackers)
    return execute(config, objective_of(config), prepare(config, emit), emit, control or Control(), (path, record))


def settled(config: TrainSettings) -> TrainSettings:
    """``from_run`` as what it means: the run's base, and its adapter to start from."""
    config = _with_run_text(config)
    if config.from_run is None:
        return config
    if config.adapter is not None:
        raise ConfigError("from_run and adapter both name an adapter", where="from_run", fix="leave one of them out")
    base = resolve_base(f"{RUN}{config.from_run.removeprefix(RUN)}", Path(config.runs_dir))
    default = type(config)().model
    if config.model not in (default, base.model):
        raise ConfigError(
            f"the run's base is {base.model}, not {config.model}", where="model", fix="leave model out where from_run is given"
        )
    return msgspec.structs.replace(config, model=base.model, adapter=str(base.adapter))


def _with_run_text(config: TrainSettings) -> TrainSettings:
    """A replay of ``run`` as the text that the base run, or the run below it, was trained on."""
    replay: list[str] = getattr(config, "replay", [])
    if RUN_TEXT not in replay:
        return config
    name = f"{RUN}{config.from_run.removeprefix(RUN)}" if config.from_run else config.model
    while (run := resolve_base(name, Path(config.runs_dir)).run) is not None:
        kept = read_config(run)
        if read_record(run).get("objective") == "cpt":
            # Only the run knows where its rows have their text.
            own = [f"{RUN}{run.resolve()}"] if kept.get("map") else [parse_spec(spec).path for spec in kept["data"]]
            texts = [spec for one in replay for spec in (own if one == RUN_TEXT else [one])]
            return msgspec.structs.replace(config, replay=texts)
        name = beside(str(kept["adapter"] if kept.get("from_run") else kept.get("model")), run)
    what = "replay of the base run's text, but the base is no run of cpt"
    raise ConfigError(what, where="replay", fix="name the run, --model run:NAME, or the text, --replay PATH")


def start_adapter(config: TrainSettings) -> Path | None:
    """The folder of the adapter to start from: a run's best weights, or any folder with an adapter."""
    if config.adapter is None:
        return None
    folder = Path(config.adapter).expanduser()
    if folder.is_dir():
        return folder
    return resolve_base(f"{RUN}{config.adapter.removeprefix(RUN)}", Path(config.runs_dir)).adapter


@dataclass
class Prepared:
    """A job, read and checked."""

    config: TrainSettings
    objective: str
    loaded: Any
    material: Material
    scorer: Any
    adapter: dict[str, Any]
    publish: Any
    stream: Any
    mode: Any
    make: Any
    reference: Callable[[], None] | None
    plan: dict[str, Any]
    lineage: dict[str, Any]

    @property
    def fixed(self) -> dict[str, tuple[Any, int]]:
        """name -> (batches, UTF-8 bytes) of the sets that are scored."""
        from mlxforge.training.streams import FixedBatches

        sets, pairs = self.material.fixed, self.material.pairs
        return {
            name: (FixedBatches(rows, self.config, self.mode, *([self.make] if rows is pairs.get(name) else [])), size)
            for name, (rows, size) in sets.items()
        }

    @property
    def evaluation_slots(self) -> int:
        """Slots of all fixed sets together."""
        return sum(plan.slots for batches, _ in self.fixed.values() for plan in batches.plans)

    def save(self, folder: Path) -> None:
        """Writes what goes with the adapter into the run's folder."""
        self.material.save(folder)

    def job(self, run: Path | None, event_offset: Callable[[], int]) -> Any:
        """The loop's job; checkpoints go to ``run``."""
        from mlxforge.training.checkpoint import CheckpointStore
        from mlxforge.training.evaluate import score
        from mlxforge.training.loop import Job
        from mlxforge.training.losses import next_token
        from mlxforge.training.objectives import OBJECTIVES

        loss, fixed = OBJECTIVES[self.objective].loss(self.config), self.fixed
        if run is not None and self.reference is not None:
            self.reference()  # before the first update: the policy is still the model that it starts from
        return Job(
            scorer=self.scorer,
            loss=loss,
            stream=self.stream,
            settings=self.config,
            # What is a text is scored as one, whatever the objective.
            evaluate=lambda: {
                name: score(self.scorer, next_token if size else loss, batches, size) for name, (batches, size) in fixed.items()
            },
            sample=self._sample,
            task=self._task,
            store=CheckpointStore(run, self.adapter, self.config.keep, self.publish) if run else None,
            event_offset=event_offset,
            memory_limit=memory_limit(),
        )

    def _replies(self, questions: Any, length: int) -> list[list[int]]:
        from mlxforge.models.generate import answer_greedily

        return answer_greedily(self.loaded.model, [question.ids for question in questions], length, self.material.stop)

    def _sample(self) -> list[tuple[str, str]]:
        prompts, decode = self.material.prompts, self.loaded.tokenizer.decode
        replies = self._replies(prompts, self.config.sample_tokens)
        return [(prompt.shown, decode(ids, skip_special_tokens=False)) for prompt, ids in zip(prompts, replies, strict=True)]

    def _task(self, scores: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """How many held-out pairs the policy ranks right, as its evaluation has found, and how many questions it answers."""
        pairs = {"preference_accuracy": scores["valid"]["accuracy"]} if "valid" in self.material.pairs else {}
        return pairs | (self._exact_match() if self.material.questions else {})

    def _exact_match(self) -> dict[str, float]:
        from mlxforge.models.streaming import answer_in, markers

        questions, tokenizer, detected = self.material.questions, self.loaded.tokenizer, self.loaded.detected
        cuts = markers(detected, detected.family.think)
        replies = self._replies(questions, self.config.answer_tokens)  # type: ignore[attr-defined]
        said = [answer_in(tokenizer, cuts, question.ids, ids) for question, ids in zip(questions, replies, strict=True)]
        right = sum(map(MATCHES[self.config.match], said, (question.answer for question in questions)))  # type: ignore[attr-defined]
        return {self.config.score: right / len(questions)}  # type: ignore[attr-defined]


def read_material(
    config: TrainSettings, emit: Emit, cache: Path | None = None, files: list[str] | None = None
) -> tuple[Opening, Base, Material]:
    """What the settings' model is, its tokenizer, and the data, read and checked. No weights are loaded.

    Args:
        files: of a hub model, what to fetch; by default all, and then the weights are looked over too.
    """
    from mlxforge.models.check import check_tokenizer_files
    from mlxforge.models.detect import detect_folder
    from mlxforge.models.load import check_model_files, fast_tokenizer, load_tokenizer, resolve_model

    if slow := load_blas():
        emit(Warned(message=slow))
    given = resolve_base(config.model, Path(config.runs_dir))
    path = resolve_model(given.model, files)
    (check_tokenizer_files if files else check_model_files)(path)
    start = start_adapter(config)
    base = Base(path, load_tokenizer(path), fast_tokenizer(path), detect_folder(path), start or given.adapter)
    reader: Reader = importlib.import_module(READERS[objective_of(config)]).read
    material = reader(config, base, emit, cache)
    if getattr(config, "reference", None):
        from mlxforge.runs.reference import other_reference

        other_reference(config, material.pairs, base.fast, emit, take=cache is None)
    return given, base, material


def prepare(config: TrainSettings, emit: Emit, cache: Path | None = None) -> Prepared:
    """Reads the data first (its mistakes show in seconds), then loads the model and plans."""
    from mlxforge.models.load import load, model_hash

    objective, start = objective_of(config), start_adapter(config)
    given, base, material = read_material(config, emit, cache)
    path = base.path
    emit(Progress(task="loading the model", done=0))
    loaded = load(given.model, config.dtype)

    from mlxforge.models.scoring import Scorer
    from mlxforge.training.streams import RowStream

    scorer = Scorer(loaded.model)
    adapter, publish = adapted(loaded.model, config, str(path) if given.model == "tiny" else given.model, given, start, emit)
    mode, make = batching(config, scorer, material, loaded.detected.packable)
    reference = None
    if material.pairs and hasattr(config, "reference") and config.reference is None:
        from mlxforge.runs.reference import fill_reference, numbers_of

        whose = numbers_of(path, [given.adapter, start], loaded.dtype)
        reference = partial(fill_reference, material.pairs, scorer, make, config, whose, emit)
    _warn(config, loaded, mode, emit)
    stream = RowStream(material.mixture, config, mode, make)
    identity = {
        "name": given.model,
        "hash": model_hash(path),
        "tokenizer": material.tokenizer,
        "family": loaded.detected.family.name,
    }
    return Prepared(
        config, objective, loaded, material, scorer, adapter, publish, stream, mode, make, reference,
        plan=plan_of(config, material, stream, mode, loaded.model),
        lineage=lineage_of(config, identity, _hashes(material), start or given.adapter),
    )  # fmt: skip


def adapted(
    model: Any, config: TrainSettings, name: str, given: Opening, start: Path | None, emit: Emit
) -> tuple[dict[str, Any], Any]:
    """Makes the model trainable, over the adapter of its run or from ``start`` on.

    Returns:
        The adapter's config under the model's ``name``, and what makes the published adapter where one lies below, or None.
    """
    from mlxforge.models.hooks import add_embedding_noise, checkpoint_layers
    from mlxforge.models.lora import adapter_config, continued_config, load_adapter, make_trainable, read_adapter
    from mlxforge.models.stack import stack

    adapter = adapter_config(model, config.lora, name)
    if start is not None:
        weights, kept = read_adapter(start, model)
        adapter, changed = continued_config(kept, adapter)
        if changed:
            emit(Noted(message=f"the adapter keeps its own {changed}; those lora settings have no effect"))
    publish = stack(model, adapter, config.seed, given.adapter) if given.adapter else None
    if publish is None:
        make_trainable(model, adapter, config.seed)
    if start is not None:
        load_adapter(model, weights, kept, str(start))
    add_embedding_noise(model, config.neftune_alpha)
    if config.grad_checkpoint:
        checkpoint_layers(model)
    return adapter, publish


def batching(config: TrainSettings, scorer: Any, material: Material, packable: bool) -> tuple[Any, Any]:
    """How rows stand in batches, and what makes a batch of a plan."""
    from mlxforge.training.streams import choose_mode, collated

    if not material.pairs:
        return choose_mode(material.mixture.train, config, packable), collated
    from mlxforge.runs.reference import arrange

    return "bucketed", arrange(config, scorer, material.pairs, packable)


def _warn(config: TrainSettings, loaded: Any, mode: str, emit: Emit) -> None:
    default = LoraSettings(kind="full")
    if config.lora.kind == "full" and msgspec.structs.replace(config.lora, layers=None) != default:
        emit(Warned(message="lora.kind is full: of the other lora settings only layers has an effect"))
    if config.batching == "packed" and mode != "packed":
        emit(Warned(message=f"{loaded.detected.family.name} models cannot be packed: rows are bucketed instead"))
    limit = loaded.config.get("max_position_embeddings")
    if isinstance(limit, int) and config.max_length > limit:
        emit(Warned(message=f"max_length {config.max_length} is more than the {limit} positions of the model"))


def plan_of(config: TrainSettings, material: Material, stream: Any, mode: str, model: Any) -> dict[str, Any]:
    """The figures of a run that its data and its model decide."""
    from mlx.utils import tree_flatten

    from mlxforge.models.lora import trainable

    return {
        **material.plan,
        **({} if material.pairs else {"replay_tokens_per_epoch": round(sum(stream.mixture.budgets))}),
        "batching": mode,
        "padding": round(stream.padding(), 4),
        "epochs": round(stream.epoch(len(stream)), 4),
        "micro_batches": len(stream),
        "steps": math.ceil(len(stream) / config.accumulate),
        "parameters": sum(int(array.size) for _, array in tree_flatten(model.parameters())),
        "trained_parameters": sum(int(array.size) for array in trainable(model).values()),
    }


def _hashes(material: Material) -> dict[str, str]:
    """The content of all that a resumed run has to find again."""
    asked = [text for question in material.questions for text in (str(question.ids), question.answer)]
    return dict(material.hashes) | ({"task": bytes_hash(*asked)} if asked else {})


def memory_limit() -> int:
    """Bytes that MLX may use: Metal's recommended working set, else the machine's memory."""
    import mlx.core as mx

    limit = mx.device_info().get("max_recommended_working_set_size") if mx.metal.is_available() else None
    return int(limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
