"""What a fused or exported model was made of: a small record that lies in its folder, or beside its file.

It names no folder of this disk. Of a GGUF file that was verified, its report says the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxforge.core.files import file_hash, write_atomic
from mlxforge.models.adapters import adapter_file
from mlxforge.models.check import model_hash
from mlxforge.models.hub import display_name
from mlxforge.runs.record import RECORD, read_record

if TYPE_CHECKING:
    from mlxforge.runs.opening import Base

ORIGIN = "mlxforge.json"
BESIDE, REPORT = ".origin.json", ".report.json"  # of a GGUF file
PARTS = {"kind": str, "model": dict, "run": dict, "adapters": list}


def origin_of(base: Base, path: Path, kind: str) -> dict[str, Any]:
    """Where a model comes from: ``kind`` (fused, mlx, peft, gguf), the base at ``path``, adapters and run by their hashes."""
    from importlib.metadata import version

    adapters = [{"name": adapter.name, "sha256": file_hash(adapter_file(adapter))} for adapter in base.adapters]
    found: dict[str, Any] = {
        "kind": kind,
        "mlxforge": version("mlxforge"),
        "model": {"name": display_name(path.resolve()), "hash": model_hash(path)},
        "adapters": adapters,
    }
    if base.run and (base.run / RECORD).is_file():
        objective = read_record(base.run).get("objective")
        found["run"] = {"name": base.run.name, "step": base.step, "objective": objective}
    return found


def write_origin(place: Path, base: Base, path: Path, kind: str, **said: Any) -> None:
    """Writes :func:`origin_of` into a folder, or beside a GGUF file."""
    file = place / ORIGIN if place.is_dir() else beside_gguf(place, BESIDE)
    write_atomic(file, json.dumps(origin_of(base, path, kind) | said, indent=2, ensure_ascii=False) + "\n")


def beside_gguf(file: Path, suffix: str) -> Path:
    """``out.q4_k_m.origin.json`` for ``out.q4_k_m.gguf``."""
    return file.with_name(file.name.removesuffix(".gguf") + suffix)


def read_origin(place: Path) -> dict[str, Any]:
    """What a folder or a GGUF file was made of; empty where nothing readable says so.

    ``created`` is when its record was written; ``verified`` whether the checks of a GGUF file were passed, None where none
    were made; ``hash`` its content.
    """
    if place.is_dir():
        return _read(place / ORIGIN)
    if report := _read(beside_gguf(place, REPORT)):
        lineage = report.get("lineage")
        facts = {"verified": report.get("passed"), "quant": report.get("quant"), "hash": report.get("sha256")}
        said = {"kind": "gguf", "created": report["created"], **facts}
        return said | (lineage if isinstance(lineage, dict) else {})
    return _read(beside_gguf(place, BESIDE))


def _read(file: Path) -> dict[str, Any]:
    try:
        found, created = json.loads(file.read_bytes()), file.stat().st_mtime
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or any(not isinstance(found.get(key) or kind(), kind) for key, kind in PARTS.items()):
        return {}
    return {"created": created, **found}
