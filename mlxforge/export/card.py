"""README.md of what is exported: what it is, how it was trained, where it comes from. Nothing of the user's disk is in it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxforge.models.hub import HUB_ID, looks_like_path

FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
TICKS = "▁▂▃▄▅▆▇█"
ROWS = 12  # of the table of losses
WIDTH = 48  # characters of a sparkline
# Words of a result -> its row's name, and how the figure is written.
FIGURES = {"loss": ("loss", "{:.4f}"), "perplexity": ("perplexity", "{:.2f}"), "bpb": ("bits a byte", "{:.4f}")}
# What a run's settings say of the user's disk or texts, or says another line.
PRIVATE = {"runs_dir", "name", "samples", "model", "adapter", "from_run", "data", "replay", "valid", "retention"}
DATA = {"data": "train", "replay": "replay", "valid": "validation", "retention": "retention"}
MADE = {
    "adapter": "an adapter (PEFT format) for {base}",
    "finetune": "{base}, fine-tuned: the adapter is merged into its weights",
    "quantized": "{base}, quantized",
}


@dataclass(frozen=True)
class Facts:
    """What a card is made from, beside the base.

    Attributes:
        record: the run's run.json; empty where there is no run.
        settings: settings that differ from the defaults, by dotted key.
        data: where the data came from, by key of the settings.
        train, valid: (step, loss) in order.
        kind: of the adapter; packing: of the weights, in words.
        relation: ``adapter``, ``finetune`` or ``quantized``; library: who reads the files.
        licence: the base's ``license`` lines as its own card has them.
        extra: more rows of the first table.
        files: lines on the files, such as what was verified.
    """

    record: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Sequence[str]] = field(default_factory=dict)
    train: Sequence[tuple[int, float]] = ()
    valid: Sequence[tuple[int, float]] = ()
    kind: str = ""
    packing: str = ""
    relation: str = "finetune"
    library: str = "mlx"
    licence: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[str] = ()


def card(base: str, facts: Facts) -> str:
    """The model card; ``base`` is a hub id or a name that may be shown."""
    lineage = facts.record.get("lineage") or {}
    name = str(facts.record.get("name") or f"{base}, exported")
    made = MADE[facts.relation].format(base=base)
    rows = {
        "Base": base,
        "Licence of the base": licence_words(facts.licence),
        "Adapter": facts.kind or None,
        "Weights": facts.packing or None,
        "Objective": facts.record.get("objective"),
        **facts.extra,
        "Base hash": (lineage.get("model") or {}).get("hash"),
        "Parent adapter": (lineage.get("parent") or {}).get("hash"),
        "Seed": lineage.get("seed"),
        **{f"Data: {part}": value for part, value in (lineage.get("data") or {}).items()},
        **{f"Package: {part}": value for part, value in (lineage.get("packages") or {}).items()},
    }
    sections = [
        f"# {name}\n\nMade by mlxforge: {made}.",
        _table(("", ""), rows.items()),
        _data(facts.data),
        _results(facts.record.get("result") or {}),
        _curves(facts),
        _section("Settings", _table(("Setting", "Value"), ((key, public(value)) for key, value in _shown(facts.settings)))),
        _section("Files", "\n".join(f"- {line}" for line in facts.files)),
    ]
    return front_matter(base, facts) + "\n\n".join(section for section in sections if section) + "\n"


def front_matter(base: str, facts: Facts) -> str:
    """The YAML that the hub reads."""
    tags = ["mlxforge", *([facts.kind] if facts.kind in ("lora", "rslora", "dora") else [])]
    lines = ["tags:", *(f"- {tag}" for tag in tags), f"library_name: {facts.library}", "pipeline_tag: text-generation"]
    if is_hub_id(base):
        lines += [f"base_model: {base}", f"base_model_relation: {facts.relation}"]
    lines += [f"{key}: {value}" for key, value in facts.licence.items()]
    sets = sorted({one.split(":")[1] for names in facts.data.values() for one in names if one.startswith("hub:")})
    if sets:
        lines += ["datasets:", *(f"- {one}" for one in sets)]
    return "---\n" + "\n".join(lines) + "\n---\n\n"


def is_hub_id(name: str) -> bool:
    """Whether a name can be a model's on the hub: ``owner/name``, and no folder here."""
    return "/" in name and HUB_ID.fullmatch(name) is not None and not looks_like_path(name)


def public_name(name: str) -> str:
    """A base's name as strangers may read it: a hub id, else the last part of its path."""
    return name if is_hub_id(name) else Path(name).name


def licence_of(folder: Path) -> dict[str, str]:
    """The ``license`` lines in the front matter of a folder's README.md; empty where it states none."""
    return {key: value for key, value in front_of(folder).items() if key in ("license", "license_name", "license_link")}


def front_of(folder: Path) -> dict[str, str]:
    """The front matter of a folder's README.md: its lines of plain text, by key."""
    import yaml

    try:
        found = FRONT.match((folder / "README.md").read_text(encoding="utf-8"))
        values = yaml.safe_load(found[1]) if found else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {key: " ".join(value.split()) for key, value in (values or {}).items() if isinstance(value, str)}


def licence_words(licence: Mapping[str, str]) -> str:
    """The base's licence in a few words."""
    name = licence.get("license_name") if licence.get("license") == "other" else licence.get("license")
    return name or licence.get("license") or "not stated"


def public(value: Any) -> Any:
    """A setting as strangers may read it: of a path only its last part."""
    if isinstance(value, str):
        plain = value.startswith(("hub:", "sample:")) or "/" not in value.replace("\\", "/")
        return value if plain else value.replace("\\", "/").rstrip("/").rpartition("/")[2]
    if isinstance(value, (list, tuple)):
        return ", ".join(str(public(one)) for one in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{public(key)}: {public(one)}" for key, one in value.items())
    return value


def sparkline(values: Sequence[float]) -> str:
    """The course of some figures, from lowest to highest, in one line."""
    kept = _spread(values, WIDTH)
    low, high = min(kept), max(kept)
    step = (high - low) / (len(TICKS) - 1) or 1.0
    return "".join(TICKS[round((value - low) / step)] for value in kept)


def _shown(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in settings.items() if key.partition(".")[0] not in PRIVATE and value is not None]


def _data(data: Mapping[str, Sequence[str]]) -> str:
    rows = [(DATA.get(key, key), ", ".join(str(public(name)) for name in names)) for key, names in data.items() if names]
    return _section("Data", _table(("Set", "From"), rows))


def _results(result: Mapping[str, Any]) -> str:
    """Figures before and after training."""
    rows: list[tuple[str, ...]] = []
    pairs = [("validation", result.get("before"), result.get("valid"))]
    retention = result.get("retention") or {}
    pairs.append(("retention", retention.get("before"), retention.get("after")))
    for name, before, after in pairs:
        for key, (words, style) in FIGURES.items():
            values = [(one or {}).get(key) for one in (before, after)]
            if any(isinstance(value, (int, float)) for value in values):
                rows.append((f"{name} {words}", *(_figure(value, style) for value in values)))
        own = [(one or {}).get("metrics") or {} for one in (before, after)]
        for key in {**own[0], **own[1]}:
            rows.append((f"{name} {key}", *(_figure(one.get(key), "{:.4f}") for one in own)))
    for key, one in (result.get("task") or {}).items():
        rows.append((key, _figure(one.get("before"), "{:.3f}"), _figure(one.get("after"), "{:.3f}")))
    return _section("Results", _table(("", "Before", "After"), rows))


def _figure(value: Any, style: str) -> str:
    return style.format(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else "–"


def _curves(facts: Facts) -> str:
    """Losses by step: a line of ticks each, and a table."""
    named = [("training", facts.train), ("validation", facts.valid)]
    finite = [(name, [loss for _, loss in curve if math.isfinite(loss)]) for name, curve in named]
    lines = [f"{name:<10}  {sparkline(losses)}" for name, losses in finite if len(losses) > 1]
    if not lines:
        return ""
    train, valid = dict(facts.train), dict(facts.valid)
    steps = _spread(sorted(valid) if len(valid) > 1 else sorted(train), ROWS)
    rows = [(step, _figure(train.get(step), "{:.4f}"), _figure(valid.get(step), "{:.4f}")) for step in steps]
    ticks = "```\n" + "\n".join(lines) + "\n```"
    return _section("Losses", f"{ticks}\n\n{_table(('Step', 'Training', 'Validation'), rows)}")


def _spread(values: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of the values, evenly, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(index * (len(values) - 1) / (count - 1))] for index in range(count)]


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    kept = [row for row in rows if row[1] is not None]
    if not kept:
        return ""
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(map(_cell, row)) for row in kept)]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
