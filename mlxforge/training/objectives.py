"""What can be trained for: one table. The loop knows no objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlxforge.core.settings import TrainSettings
from mlxforge.models.scoring import Scorer
from mlxforge.training.losses import Terms, next_token
from mlxforge.training.pairs import kto_terms, pair_terms

Loss = Callable[[Scorer, Any], Terms]


@dataclass(frozen=True)
class Objective:
    """``row``: the kind of row it learns from. ``loss``: from its settings, the sums over a batch."""

    row: str
    loss: Callable[[TrainSettings], Loss]


OBJECTIVES: dict[str, Objective] = {
    "cpt": Objective("text", lambda _: next_token),
    "sft": Objective("chat", lambda _: next_token),
    "dpo": Objective("preference", partial(pair_terms, "dpo")),
    "orpo": Objective("preference", partial(pair_terms, "orpo")),
    "simpo": Objective("preference", partial(pair_terms, "simpo")),
    "cpo": Objective("preference", partial(pair_terms, "cpo")),
    "kto": Objective("kto", kto_terms),
}
