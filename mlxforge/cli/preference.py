"""``mlxforge dpo``, ``orpo``, ``simpo``, ``cpo`` and ``kto``."""

from __future__ import annotations

from mlxforge.cli.training import training_command
from mlxforge.core.settings import CpoConfig, DpoConfig, KtoConfig, OrpoConfig, SimpoConfig


@training_command(DpoConfig)
def dpo() -> None:
    """Prefer: the model learns from pairs which answer is the better one, held to what it was.

    The reference's log-probabilities are taken once before training and kept: no second model is in memory.

    \b
    mlxforge dpo --model run:last --data sample:handbook/pairs.train.jsonl
    mlxforge dpo -c dpo-standard --model run:my-sft --data pairs.jsonl --task questions.jsonl
    mlxforge dpo --model run:my-sft --data pairs.jsonl --loss ipo --dry-run
    """


@training_command(OrpoConfig)
def orpo() -> None:
    """Prefer without a reference: cross-entropy of the chosen answers and the odds against the rejected ones.

    \b
    mlxforge orpo -c orpo-standard --model mlx-community/Qwen3-0.6B-4bit --data pairs.jsonl
    """


@training_command(SimpoConfig)
def simpo() -> None:
    """Prefer without a reference, by log-probabilities a token and a margin.

    \b
    mlxforge simpo -c simpo --model run:my-sft --data pairs.jsonl
    """


@training_command(CpoConfig)
def cpo() -> None:
    """Prefer without a reference, with the cross-entropy of the chosen answers beside.

    \b
    mlxforge cpo --model run:my-sft --data pairs.jsonl
    """


@training_command(KtoConfig)
def kto() -> None:
    """Prefer from single answers that are wanted or not: no pairs are needed.

    \b
    mlxforge kto -c kto --model run:my-sft --data rated.jsonl
    """
