"""From the data settings of a text job to what the loop reads: rows, streams, fixed sets, prompts, and the plan's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from mlxforge.core.config import TrainSettings
from mlxforge.core.errors import ConfigError, DataError, ModelError
from mlxforge.core.events import Emit, Noted, Warned
from mlxforge.core.files import cache_dir, embedded
from mlxforge.data.mix import Mixture
from mlxforge.data.sources import Source, parse_spec
from mlxforge.data.tokens import Encoder, TokenSet, prepare, split_by_hash
from mlxforge.data.windows import Windows, windows

SAMPLE = "sample:"
PROMPT_TOKENS = 16


@dataclass
class TextData:
    """The token sets of a job and their windows; ``valid``, ``retention`` and ``replay`` may be absent."""

    train: Windows
    valid: Windows | None
    retention: Windows | None
    replay: Windows | None
    encoder: Encoder
    counts: dict[str, int] = field(default_factory=dict)

    def mixture(self, ratio: float) -> Mixture:
        """Training rows by weight with their share of replay."""
        return Mixture(self.train, self.train.weights, self.replay, ratio if self.replay else 0.0)

    def hashes(self) -> dict[str, str]:
        """Content of each part, for lineage and for resume."""
        parts = {"train": self.train, "valid": self.valid, "retention": self.retention, "replay": self.replay}
        return {name: part.tokens.hash for name, part in parts.items() if part is not None}


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

    names = ("model", "adapter", "valid", "retention", "replay")
    changes: dict[str, Any] = {name: anchor(value) for name in names if (value := getattr(settings, name))}
    if settings.model == "tiny" or not Path(settings.model).expanduser().is_dir():
        changes.pop("model")
    return msgspec.structs.replace(settings, data=[anchor(spec) for spec in settings.data], **changes)


def read_text(settings: TrainSettings, encoder: Encoder, emit: Emit, cache: Path | None = None) -> TextData:
    """Reads, tokenises and windows everything that the settings name.

    Raises:
        ConfigError: no data named, or replay without its ratio or the other way round.
        DataError: see :func:`mlxforge.data.tokens.prepare`.
    """
    if not settings.data:
        raise ConfigError(
            "no data", where="data", fix="name files or folders: --data PATH; a sample: --data sample:handbook/documents"
        )
    if bool(settings.replay) != (settings.replay_ratio > 0):
        raise ConfigError("replay and replay_ratio go together", where="replay", fix="give both, such as replay_ratio=0.25")
    folder = cache or cache_dir() / "tokens"

    def tokens(specs: Sequence[str], mapping: Mapping[str, str] = MappingProxyType({})) -> TokenSet:
        sources: list[Source] = [parse_spec(expand(spec)) for spec in specs]
        return prepare(sources, encoder, cache=folder, mapping=mapping, emit=emit)

    train = tokens(settings.data, settings.map)
    counts = dict(train.counts)
    train, valid = _held_out(train, tokens, settings, emit)
    if not len(train):
        raise DataError("no document is left to train on", where="data", fix="give more documents, or another valid set")
    return TextData(
        train=windows(train, settings.max_length),
        valid=windows(valid, settings.max_length) if valid is not None and len(valid) else None,
        retention=windows(tokens([settings.retention]), settings.max_length) if settings.retention else None,
        replay=windows(tokens([settings.replay]), settings.max_length) if settings.replay else None,
        encoder=encoder,
        counts=counts,
    )


def _held_out(train: TokenSet, tokens: Any, settings: TrainSettings, emit: Emit) -> tuple[TokenSet, TokenSet | None]:
    if settings.valid:
        valid: TokenSet = tokens([settings.valid], settings.map)
        kept = train.without(valid)
        if len(kept) < len(train):
            emit(Noted(message=f"{len(train) - len(kept)} training documents left out: they are in the validation set"))
        return kept, valid
    if settings.valid_split == 0:
        return train, None
    kept, held = split_by_hash(train, settings.valid_split)
    if not len(held):
        emit(Warned(message="one document alone: nothing is held out, so there is no validation (give --valid)"))
        return train, None
    return kept, held


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


def prompts(data: TextData, settings: TrainSettings) -> list[list[int]]:
    """Token ids of the prompts that are continued at each evaluation."""
    if settings.sample_tokens == 0:
        return []
    if settings.samples:
        start = [data.encoder.start_id]
        return [start + data.encoder.plain.encode(text, add_special_tokens=False).ids for text in settings.samples]
    held = data.valid or data.train
    row = held[0].tokens
    return [[int(token) for token in row[: min(PROMPT_TOKENS, max(2, len(row) // 2))]]]
