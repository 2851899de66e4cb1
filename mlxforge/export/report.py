"""The report beside an exported file: which checks it passed, by what measure, and what it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxforge.core.files import file_hash, write_atomic
from mlxforge.export.llama import version
from mlxforge.export.verify import Check, as_json

UNVERIFIED, REPORT = ".unverified", ".report.json"


def report_path(file: Path) -> Path:
    """``out.q4_k_m.report.json`` for ``out.q4_k_m.gguf`` and for ``out.q4_k_m.gguf.unverified``."""
    name = file.name.removesuffix(UNVERIFIED)
    return file.with_name(name.removesuffix(".gguf") + REPORT)


def unverified(file: Path) -> Path:
    """The name of a file that failed a check."""
    return file if file.name.endswith(UNVERIFIED) else file.with_name(file.name + UNVERIFIED)


def report(
    file: Path,
    checks: Sequence[Check],
    *,
    quant: str,
    against: str,
    types: Mapping[str, int],
    fallbacks: Mapping[str, str],
    lineage: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """What ``out.report.json`` holds. ``passed`` is false where a check failed; checks that were not made do not count."""
    from importlib.metadata import version as installed

    return {
        "file": file.name,
        "sha256": file_hash(file),
        "bytes": file.stat().st_size,
        "quant": quant,
        "against": against,
        "passed": passed(checks),
        "llama_cpp": version(),
        "mlxforge": installed("mlxforge"),
        "checks": [as_json(check) for check in checks],
        "types": dict(types),
        "fallbacks": dict(fallbacks),
        "notes": list(notes),
        "lineage": dict(lineage),
    }


def passed(checks: Sequence[Check]) -> bool:
    """Whether no check failed."""
    return all(check.passed is not False for check in checks)


def failure(found: Mapping[str, Any]) -> str:
    """The first failed check of a report in one line; empty where none failed."""
    for check in found["checks"]:
        if check["passed"] is False:
            numbers = f" {check['value']:.4g} (limit {check['limit']:.4g})" if check["value"] is not None else ""
            return f"{check['name']}{numbers}: {check['detail']}"
    return ""


def write_report(path: Path, found: Mapping[str, Any]) -> None:
    """Readable JSON, whole or not at all."""
    import msgspec

    write_atomic(path, msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
