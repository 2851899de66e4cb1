"""Continued pre-training: from settings to a trained adapter in a run directory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.blas import load_blas
from mlxforge.core.config import CptConfig, LoraSettings
from mlxforge.core.events import Control, Emit, Progress, Warned, fan_out
from mlxforge.runs.execution import RunResult, execute, lineage_of, resumed
from mlxforge.runs.record import find_run
from mlxforge.runs.text import TextData, anchored, make_encoder, prompts, read_text

OBJECTIVE = "cpt"


def cpt(
    config: CptConfig,
    listeners: Sequence[Emit] = (),
    control: Control | None = None,
) -> RunResult:
    """Trains. Blocks until the run ends; listeners hear every event.

    Raises:
        MlxforgeError: see its tree; nothing is left half-written.
    """
    emit = fan_out(listeners)
    config = anchored(config)
    prepared = prepare(config, emit)
    return execute(config, OBJECTIVE, prepared, emit, control or Control())


def resume(
    run: str = "last", runs_dir: str = "runs", listeners: Sequence[Emit] = (), control: Control | None = None
) -> RunResult:
    """Goes on with a run that was interrupted or killed; ends with the same bits as if it had not been."""
    emit = fan_out(listeners)
    path, config, record = resumed(CptConfig, runs_dir, run)
    prepared = prepare(config, emit)
    return execute(config, OBJECTIVE, prepared, emit, control or Control(), (path, record))


def dry_run(config: CptConfig, listeners: Sequence[Emit] = ()) -> dict[str, Any]:
    """The plan of a run, with time and memory from a probe of its largest batch. Writes nothing."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="mlxforge-") as cache:
        prepared = prepare(config, fan_out(listeners), cache=Path(cache))
        from mlxforge.training.probe import probe

        job = prepared.job(None, lambda: 0)
        return prepared.plan | probe(job, prepared.evaluation_slots)


@dataclass
class PreparedText:
    """A text job, read and checked."""

    config: CptConfig
    loaded: Any
    data: TextData
    scorer: Any
    adapter: dict[str, Any]
    stream: Any
    mode: Any
    plan: dict[str, Any]
    lineage: dict[str, Any]

    @property
    def evaluation_slots(self) -> int:
        """Slots of all fixed sets together."""
        return sum(plan.slots for batches, _ in self.fixed.values() for plan in batches.plans)

    @property
    def fixed(self) -> dict[str, tuple[Any, int]]:
        """name -> (batches, UTF-8 bytes) of the sets that are scored."""
        from mlxforge.training.streams import FixedBatches

        sets = {"valid": self.data.valid, "retention": self.data.retention}
        return {
            name: (FixedBatches(rows, self.config, self.mode), int(rows.tokens.bytes.sum()))
            for name, rows in sets.items()
            if rows is not None
        }

    def job(self, run: Path | None, event_offset: Callable[[], int]) -> Any:
        """The loop's job; checkpoints go to ``run``."""
        from mlxforge.models.generate import continue_greedily
        from mlxforge.training.checkpoint import CheckpointStore
        from mlxforge.training.evaluate import score
        from mlxforge.training.loop import Job
        from mlxforge.training.objectives import OBJECTIVES

        loss = OBJECTIVES[OBJECTIVE].loss
        tokenizer, model, fixed = self.loaded.tokenizer, self.loaded.model, self.fixed
        texts = prompts(self.data, self.config)
        stop = {self.data.encoder.end_id, *tokenizer.eos_token_ids}

        def sample() -> list[tuple[str, str]]:
            length = self.config.sample_tokens
            return [
                (tokenizer.decode(ids, skip_special_tokens=True), continue_greedily(model, tokenizer, ids, length, stop))
                for ids in texts
            ]

        return Job(
            scorer=self.scorer,
            loss=loss,
            stream=self.stream,
            settings=self.config,
            evaluate=lambda: {name: score(self.scorer, loss, batches, size) for name, (batches, size) in fixed.items()},
            sample=sample,
            store=CheckpointStore(run, self.adapter, self.config.keep) if run else None,
            event_offset=event_offset,
            memory_limit=memory_limit(),
        )


def prepare(config: CptConfig, emit: Emit, cache: Path | None = None) -> PreparedText:
    """Reads the data first (its mistakes show in seconds), then loads the model and plans."""
    from mlxforge.models.load import check_model_files, fast_tokenizer, load, load_tokenizer, model_hash, resolve_model

    if slow := load_blas():
        emit(Warned(message=slow))
    path = resolve_model(config.model)
    check_model_files(path)
    start = start_adapter(config)
    data = read_text(config, make_encoder(load_tokenizer(path), path, fast_tokenizer(path)), emit, cache)
    emit(Progress(task="loading the model", done=0))
    loaded = load(config.model, config.dtype)

    from mlxforge.models.hooks import add_embedding_noise, checkpoint_layers
    from mlxforge.models.lora import adapter_config, load_weights, make_trainable, read_adapter
    from mlxforge.models.scoring import Scorer
    from mlxforge.training.streams import RowStream, choose_mode

    model = loaded.model
    adapter = adapter_config(model, config.lora, str(path) if config.model == "tiny" else config.model)
    scorer = Scorer(model)
    make_trainable(model, adapter, config.seed)
    if start is not None:
        load_weights(model, read_adapter(start)[0], str(start))
    add_embedding_noise(model, config.neftune_alpha)
    if config.grad_checkpoint:
        checkpoint_layers(model)
    mode = choose_mode(data.train, config, loaded.detected.packable)
    _warn(config, loaded, mode, emit)
    stream = RowStream(data.mixture(config.replay_ratio), config, mode)
    identity = {
        "name": config.model,
        "hash": model_hash(path),
        "tokenizer": data.encoder.key,
        "family": loaded.detected.family.name,
    }
    return PreparedText(
        config, loaded, data, scorer, adapter, stream, mode,
        plan=_plan(config, data, stream, mode, model),
        lineage=lineage_of(config, identity, data.hashes(), start),
    )  # fmt: skip


def start_adapter(config: CptConfig) -> Path | None:
    """The folder of the adapter to start from: a run's best weights, or any folder with an adapter."""
    if config.adapter is None:
        return None
    folder = Path(config.adapter).expanduser()
    return folder if folder.is_dir() else find_run(config.adapter, Path(config.runs_dir))


def _warn(config: CptConfig, loaded: Any, mode: str, emit: Emit) -> None:
    default = LoraSettings(kind="full")
    if config.lora.kind == "full" and msgspec.structs.replace(config.lora, layers=None) != default:
        emit(Warned(message="lora.kind is full: of the other lora settings only layers has an effect"))
    if config.batching == "packed" and mode != "packed":
        emit(Warned(message=f"{loaded.detected.family.name} models cannot be packed: rows are bucketed instead"))
    limit = loaded.config.get("max_position_embeddings")
    if isinstance(limit, int) and config.max_length > limit:
        emit(Warned(message=f"max_length {config.max_length} is more than the {limit} positions of the model"))


def _plan(config: CptConfig, data: TextData, stream: Any, mode: str, model: Any) -> dict[str, Any]:
    from mlx.utils import tree_flatten

    from mlxforge.models.lora import trainable

    rows = stream.mixture
    return {
        "documents": len(data.train.tokens),
        "valid_documents": len(data.valid.tokens) if data.valid else 0,
        "duplicates": data.counts.get("duplicates", 0),
        "tokens": int(data.train.tokens.trained),
        "windows": len(data.train),
        "replay_tokens_per_epoch": round(rows.replay_budget) if data.replay else 0,
        "batching": mode,
        "padding": round(stream.padding(), 4),
        "epochs": round(stream.epoch(len(stream)), 4),
        "micro_batches": len(stream),
        "steps": math.ceil(len(stream) / config.accumulate),
        "parameters": sum(int(array.size) for _, array in tree_flatten(model.parameters())),
        "trained_parameters": sum(int(array.size) for array in trainable(model).values()),
    }


def memory_limit() -> int:
    """Bytes that MLX may use: Metal's recommended working set, else the machine's memory."""
    import os

    import mlx.core as mx

    limit = mx.device_info().get("max_recommended_working_set_size") if mx.metal.is_available() else None
    return int(limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
