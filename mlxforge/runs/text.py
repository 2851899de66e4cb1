"""From the data settings of a text job to what the loop reads: rows, streams, fixed sets, prompts, and the plan's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from mlxforge.core.errors import ConfigError, DataError, ModelError
from mlxforge.core.events import Emit
from mlxforge.core.files import cache_dir, embedded
from mlxforge.core.settings import CptConfig, SftConfig, TrainSettings
from mlxforge.data.mix import Mixture
from mlxforge.data.sources import Source, parse_spec
from mlxforge.data.tokens import Encoder, TokenSet, prepare
from mlxforge.data.windows import Windows, windows
from mlxforge.runs.checkpoints import checkpoint, step_of
from mlxforge.runs.material import Base, Material, Question
from mlxforge.runs.parts import hashes_of, held_out, measured
from mlxforge.runs.record import find_checkpoint, find_run, read_config

SAMPLE = "sample:"
RUN = "run:"
PROMPT_TOKENS = 16


def expand(spec: str) -> str:
    """``sample:handbook/documents`` names data that mlxforge ships, wherever it is installed."""
    return str(embedded("data", *spec.removeprefix(SAMPLE).split("/"))) if spec.startswith(SAMPLE) else spec


S = TypeVar("S", bound=TrainSettings)


def anchored(settings: S) -> S:
    """The settings with every local path absolute, so that the run can be resumed from any folder."""

    def anchor(spec: str) -> str:
        head = "hub:" if spec.startswith("hub:") else ""
        path, at, weight = spec.removeprefix(head).rpartition("@")
        if Path(spec.removeprefix(head)).expanduser().exists():
            path, at, weight = spec.removeprefix(head), "", ""
        place = Path(path).expanduser()
        return f"{head}{place.resolve()}{at}{weight}" if path and place.exists() else spec

    changes: dict[str, Any] = {}
    for name in ("data", "adapter", "valid", "retention", "replay", "task", "chat_replay", "reference"):
        if value := getattr(settings, name, None):
            changes[name] = [anchor(spec) for spec in value] if isinstance(value, list) else anchor(value)
    if settings.model != "tiny" and Path(settings.model).expanduser().is_dir():
        changes["model"] = str(Path(settings.model).expanduser().resolve())
    elif settings.model.startswith(RUN):
        changes["model"] = _pinned(settings.model, Path(settings.runs_dir))
    if settings.adapter and not Path(settings.adapter).expanduser().exists():
        changes["adapter"] = _pinned(settings.adapter, Path(settings.runs_dir))
    return msgspec.structs.replace(settings, **changes)


def _pinned(name: str, runs_dir: Path) -> str:
    """A run by its place, and a checkpoint of it by its step: ``@last`` is another one once the run has gone on."""
    run, at = find_checkpoint(name, runs_dir)
    found = checkpoint(run, at) if at else None
    return f"{RUN}{run.resolve()}" + (f"@{step_of(found)}" if found else "")


def read(settings: TrainSettings, base: Base, emit: Emit, cache: Path | None = None) -> Material:
    """Reads, tokenises and windows everything that the settings name.

    Raises:
        ConfigError: no data named, or a replay without its ratio or the other way round.
        DataError: see :func:`mlxforge.data.tokens.prepare`.
    """
    assert isinstance(settings, CptConfig)
    check_data(settings)
    encoder = make_encoder(base.tokenizer, base.path, base.fast)
    folder = cache or cache_dir() / "tokens"

    def tokens(specs: Sequence[str], mapping: Mapping[str, str] = MappingProxyType({})) -> TokenSet:
        sources: list[Source] = [parse_spec(expand(spec)) for spec in specs]
        return prepare(sources, encoder, cache=folder, mapping=mapping, emit=emit)

    whole = tokens(settings.data, settings.map)
    given = tokens([settings.valid], settings.map) if settings.valid else None
    train, valid = held_out(whole, given, settings.valid_split, emit, alone="document", left_out="documents left out: they are")
    if not len(train):
        raise DataError("no document is left to train on", where="data", fix="give more documents, or another valid set")
    named = {"valid": valid, "retention": tokens([settings.retention]) if settings.retention else None}
    fixed = {name: windows(found, settings.max_length) for name, found in named.items() if found is not None and len(found)}
    replay = text_replay(settings, encoder, folder, emit)
    rows = windows(train, settings.max_length)
    return Material(
        mixture=Mixture(rows, rows.weights, ((replay, settings.replay_ratio),) if replay else ()),
        fixed=measured(**fixed),
        tokenizer=encoder.key,
        hashes=hashes_of(train=rows, **fixed, replay=replay),
        plan={
            "documents": len(train),
            "valid_documents": len(valid) if valid is not None else 0,
            "duplicates": whole.counts.get("duplicates", 0),
            "tokens": int(train.trained),
            "windows": len(rows),
        },
        prompts=_prompts(valid if "valid" in fixed and valid is not None else train, settings, encoder, base.tokenizer),
        stop=frozenset({encoder.end_id, *base.tokenizer.eos_token_ids}),
    )


def check_data(settings: TrainSettings) -> None:
    """Data is named, and what is replayed has its ratio.

    Raises:
        ConfigError: otherwise.
    """
    if not settings.data:
        sample = "handbook/documents" if type(settings).__name__ == "CptConfig" else "handbook/questions.train.jsonl"
        raise ConfigError("no data", where="data", fix=f"name files or folders: --data PATH; a sample: --data sample:{sample}")
    replay, ratio = getattr(settings, "replay", []), getattr(settings, "replay_ratio", 0.0)
    if bool(replay) != (ratio > 0):
        raise ConfigError("replay and replay_ratio go together", where="replay", fix="give both, such as replay_ratio=0.25")


def retained(settings: TrainSettings, encoder: Encoder, folder: Path, emit: Emit) -> Windows | None:
    """The windows of the text that forgetting is measured on; None where there is none."""
    if not settings.retention:
        return None
    sources = [parse_spec(expand(settings.retention))]
    return windows(prepare(sources, encoder, cache=folder, emit=emit), settings.max_length) or None


def text_replay(settings: CptConfig | SftConfig, encoder: Encoder, folder: Path, emit: Emit) -> Windows | None:
    """The windows of the text that is mixed into training; None where there is none."""
    if not settings.replay:
        return None
    return windows(prepare(replayed(settings.replay, "replay"), encoder, cache=folder, emit=emit), settings.max_length) or None


def replayed(specs: Sequence[str], where: str) -> list[Source]:
    """The sources of a replay; ``run:PATH`` is the text that a run was trained on, read as it read it.

    Raises:
        ConfigError: one has a weight.
    """
    sources = [
        source for spec in specs for source in (trained_on(spec) if spec.startswith(RUN) else [parse_spec(expand(spec))])
    ]
    if any(source.weight != 1 for source in sources):
        raise ConfigError("what is replayed has no weight", where=where, fix=f"choose its share with {where}_ratio")
    return sources


def trained_on(run: str) -> list[Source]:
    """The text of a run of cpt, without its weights, under the key that the run found it.

    Raises:
        RunError: there is no such run.
    """
    kept = read_config(find_run(run, Path()))
    return [Source(parse_spec(expand(spec)).path, key=(kept.get("map") or {}).get("text")) for spec in kept.get("data", [])]


def make_encoder(tokenizer: Any, path: Path, fast: Any) -> Encoder:
    """The encoder of a model: documents begin with BOS, or with EOS where there is none, and end with EOS."""
    end = tokenizer.eos_token_id
    if end is None:
        raise ModelError(
            "the tokenizer has no end-of-text token", where=str(path), fix="set eos_token in tokenizer_config.json"
        )
    start = tokenizer.bos_token_id
    backend = fast or getattr(getattr(tokenizer, "_tokenizer", tokenizer), "backend_tokenizer", None)
    if backend is None:
        raise ModelError("the tokenizer has no tokenizer.json", where=str(path), fix="convert it to a fast tokenizer first")
    return Encoder(backend, start if start is not None else end, end)


def _prompts(held: TokenSet, settings: TrainSettings, encoder: Encoder, tokenizer: Any) -> list[Question]:
    """What is continued at each evaluation: the settings' own texts, else the start of a held-out document."""
    if settings.sample_tokens == 0:
        return []
    starts = [[encoder.start_id, *encoder.plain.encode(text, add_special_tokens=False).ids] for text in settings.samples]
    if not starts:
        row = held[0]
        starts = [[int(token) for token in row[: min(PROMPT_TOKENS, max(2, len(row) // 2))]]]
    return [Question(ids, tokenizer.decode(ids, skip_special_tokens=True)) for ids in starts]
