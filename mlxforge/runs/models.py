"""What mlxforge knows of model families, and of one model, as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlxforge.models.detect import detect
from mlxforge.models.families import FAMILIES
from mlxforge.runs.opening import resolve_base


def list_families() -> list[dict[str, Any]]:
    """The family table, a dictionary a row, in its order."""
    return [
        {
            "family": row.name,
            "title": row.title,
            "model_types": list(row.model_types),
            "template": row.chat.template,
            "eot": list(row.eot),
            "system": row.system,
            "thinking": row.thinking,
            "packable": row.packable,
            "gguf": row.gguf,
            "targets": list(row.targets),
        }
        for row in FAMILIES.values()
    ]


def detect_model(name: str, runs_dir: Path = Path("runs")) -> dict[str, Any]:
    """What a model is: ``tiny``, a folder, a hub id, or the base of a run. No weights are read.

    Keys: family, model_type, instruct, template (``own`` or the one that would be installed), eot, packable, gguf.

    Raises:
        ModelError: no such model, or a family that mlx-lm does not know.
    """
    found = detect(resolve_base(name, runs_dir).model)
    return {
        "family": found.family.name,
        "model_type": found.model_type,
        "instruct": found.instruct,
        "template": found.template,
        "eot": found.eot,
        "packable": found.packable,
        "gguf": found.gguf,
    }
