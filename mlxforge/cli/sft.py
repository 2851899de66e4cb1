"""``mlxforge sft``."""

from __future__ import annotations

from mlxforge.cli.training import training_command
from mlxforge.core.settings import SftConfig


@training_command(SftConfig)
def sft() -> None:
    """Fine-tune on conversations: the model learns to answer, in its own chat template, and to stop.

    \b
    mlxforge sft --model tiny --data sample:handbook/questions.train.jsonl
    mlxforge sft --model run:last --data chats.jsonl --task questions.jsonl
    mlxforge sft -c sft-after-cpt --model run:my-cpt --data chats/ --dry-run
    """
