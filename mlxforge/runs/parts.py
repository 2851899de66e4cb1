"""What every reader does with the sets of a job: holds one out, measures those that are scored, and hashes all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from mlxforge.core.events import Emit, Noted, Warned
from mlxforge.data.tokens import split_by_hash


class Separable(Protocol):
    """Documents, conversations or pairs, each under a key that is the same for what must not be parted."""

    def __len__(self) -> int: ...
    @property
    def keys(self) -> npt.NDArray[Any]: ...
    def subset(self: S, index: npt.NDArray[Any], /) -> S: ...
    def without(self: S, other: S, /) -> S: ...


S = TypeVar("S", bound=Separable)


def held_out(
    whole: S, valid: S | None, share: float, emit: Emit, *, alone: str, left_out: str, size: Callable[[S], int] = len
) -> tuple[S, S | None]:
    """The rows to train on, and those to validate on: the given ones, or a ``share`` chosen by hash; None where none are.

    Args:
        alone: what one key stands for, told where there is no second one.
        left_out: what training rows are that are in ``valid`` too, told with their number; ``size`` counts them.
    """
    if valid is not None:
        kept = whole.without(valid)
        if len(kept) < len(whole):
            emit(Noted(message=f"{size(whole) - size(kept)} training {left_out} in the validation set"))
        return kept, valid
    if share == 0:
        return whole, None
    kept, held = split_by_hash(whole, share)
    if not len(held):
        emit(Warned(message=f"one {alone} alone: nothing is held out, so there is no validation (give --valid)"))
        return whole, None
    return kept, held


def measured(**sets: Any) -> dict[str, tuple[Any, int]]:
    """name -> (rows, UTF-8 bytes of the text that their trained tokens spell), without those that are None."""
    return {name: (rows, int(rows.bytes.sum())) for name, rows in sets.items() if rows is not None}


def hashes_of(**sets: Any) -> dict[str, str]:
    """name -> hash of the rows, without those that are None."""
    return {name: rows.hash for name, rows in sets.items() if rows is not None}
