"""What an objective's reader hands to the run: everything read and checked, nothing trained yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxforge.core.events import Emit
from mlxforge.core.settings import TrainSettings
from mlxforge.data.batch import Rows
from mlxforge.data.mix import Mixture


@dataclass(frozen=True)
class Question:
    """A prompt as token ids, how it is shown, and the answer that is right."""

    ids: list[int]
    shown: str
    answer: str = ""


@dataclass(frozen=True)
class Material:
    """The data of one job.

    Attributes:
        mixture: the rows to train on.
        fixed: name -> (rows, UTF-8 bytes of the text that their trained tokens spell) of the sets that are scored.
        tokenizer: hash of all that decides the tokens.
        hashes: content of each part, for lineage and for resume.
        plan: the figures of the data that a plan shows.
        prompts: what is continued at each evaluation.
        questions: asked before and after training.
        stop: token ids that end an answer.
        save: writes what goes with the adapter, such as the chat template, into a folder.
        pairs: name -> set of pairs, whose reference is taken before training.
    """

    mixture: Mixture
    fixed: Mapping[str, tuple[Rows, int]]
    tokenizer: str
    hashes: Mapping[str, str]
    plan: Mapping[str, Any]
    prompts: list[Question]
    stop: frozenset[int]
    questions: list[Question] = field(default_factory=list)
    save: Callable[[Path], None] = lambda _: None
    pairs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Base:
    """A model's files as a reader needs them: no weights. ``run`` is the adapter's folder, whose template is taken, if any."""

    path: Path
    tokenizer: Any
    fast: Any
    detected: Any
    run: Path | None = None


Reader = Callable[[TrainSettings, Base, Emit, Path | None], Material]
