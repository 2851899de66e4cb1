"""``mlxforge cpt``."""

from __future__ import annotations

from mlxforge.cli.training import training_command
from mlxforge.core.settings import CptConfig


@training_command(CptConfig)
def cpt() -> None:
    """Continue pre-training on raw text: the model learns your documents.

    \b
    mlxforge cpt --model tiny --data sample:handbook/documents
    mlxforge cpt --model mlx-community/Qwen3-0.6B-4bit --data notes/ --data book.txt@2
    mlxforge cpt -c handbook-cpt --dry-run
    """
