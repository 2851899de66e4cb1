"""Runs side by side: settings that differ, figures, curves; all of it from the run directories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxforge.core.config import walk
from mlxforge.core.errors import ConfigError
from mlxforge.core.settings import CONFIGS, TrainSettings
from mlxforge.runs.cards import losses
from mlxforge.runs.record import changed_settings, dotted_settings, find_run, read_config, read_record, status_of

UNTOLD = {"name", "runs_dir"}  # settings that differ in any two runs
# A figure's path in the result -> which way is good; in this order. Scores of tasks come after them.
FIGURES = {
    "steps": "",
    "trained_tokens": "",
    "train_loss": "lower",
    "before.loss": "",
    "valid.loss": "lower",
    "valid.perplexity": "lower",
    "valid.bpb": "lower",
    "valid.accuracy": "higher",
    "valid.margin": "higher",
    "retention.before.loss": "",
    "retention.after.loss": "lower",
    "retention.before.bpb": "",
    "retention.after.bpb": "lower",
    "best.step": "",
    "best.loss": "lower",
    "skipped_updates": "lower",
    "tokens_per_second": "higher",
    "peak_memory_bytes": "lower",
}


def compare_runs(names: Sequence[str], runs_dir: Path) -> dict[str, Any]:
    """Two or more runs beside each other.

    Returns:
        ``runs`` (name, path, objective, status, model, created), ``settings`` (key -> a value a run, of those that differ),
        ``data`` (part -> a hash a run, of those that differ), ``figures`` (path in the result -> ``values``, a number or None
        a run, and ``better``: higher, lower or empty), ``curves`` (for each run ``train`` and ``valid``: pairs of step and
        loss), and ``notes``: why figures are not the same measure.

    Raises:
        ConfigError: fewer than two runs, or one twice.
        RunError: no such run, or a damaged one.
    """
    paths = [find_run(name, runs_dir) for name in names]
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise ConfigError("two runs at least, each of them once", where="RUN", fix="mlxforge runs compare A B")
    records = [read_record(path) for path in paths]
    results = [one.get("result") or {} for one in records]
    hashes = [_hashes(one.get("lineage") or {}) for one in records]
    return {
        "runs": [_head(path, record) for path, record in zip(paths, records, strict=True)],
        "settings": _settings(paths, records),
        "data": _differing(hashes),
        "figures": _figures(results),
        "curves": [dict(zip(("train", "valid"), losses(path), strict=True)) for path in paths],
        "notes": list(_notes(records, hashes)),
    }


def _head(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: record.get(key) for key in ("objective", "model", "created")}
    return {"name": path.name, "path": str(path), "status": status_of(path, record), **kept}


def _settings(paths: Sequence[Path], records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The settings that differ. What only some of the objectives know counts where a run set it."""
    sides, given = [], set()
    for path, record in zip(paths, records, strict=True):
        objective, kept = str(record.get("objective")), read_config(path)
        defaults = {key: default for key, _, default in walk(CONFIGS.get(objective, TrainSettings))}
        sides.append(defaults | dict(dotted_settings(kept, defaults)))
        given |= set(changed_settings(kept, objective))
    return {
        key: values
        for key, values in _differing(sides).items()
        if key not in UNTOLD and (key in given or all(key in side for side in sides))
    }


def _hashes(lineage: Mapping[str, Any]) -> dict[str, str]:
    """The content of the base and of every part of the data."""
    model = lineage.get("model") or {}
    parts = {"base": model.get("hash"), "tokenizer": model.get("tokenizer"), **(lineage.get("data") or {})}
    return {name: str(value) for name, value in parts.items() if value}


def _differing(sides: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    rows = {key: [side.get(key) for side in sides] for key in dict.fromkeys(key for side in sides for key in side)}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def _figures(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    flats = [dict(_leaves(result)) for result in results]
    tasks = [key for key in dict.fromkeys(key for one in flats for key in one) if key.startswith("task.")]
    wanted = FIGURES | {key: "higher" if key.endswith(".after") else "" for key in tasks}
    rows = {key: {"values": [one.get(key) for one in flats], "better": better} for key, better in wanted.items()}
    return {key: row for key, row in rows.items() if any(value is not None for value in row["values"])}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", value


def _notes(records: Sequence[Mapping[str, Any]], hashes: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """What forbids to hold one loss against another."""
    objectives = list(dict.fromkeys(str(record.get("objective")) for record in records))
    if len(objectives) > 1:
        yield f"objectives differ ({', '.join(objectives)}): their losses are not the same measure"
    if len({one.get("tokenizer") for one in hashes}) > 1:
        yield "tokenizers or templates differ: compare bits a byte (bpb), not losses a token"
    if len({one.get("valid") for one in hashes}) > 1:
        yield "validation sets differ: their figures are not of the same rows"
    if len({one.get("retention") for one in hashes if one.get("retention")}) > 1:
        yield "retention sets differ: their figures are not of the same text"
