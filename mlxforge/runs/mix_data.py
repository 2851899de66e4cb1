"""A mix of conversations, written with where each row came from."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any

import msgspec

from mlxforge.core.config import to_dict
from mlxforge.core.errors import DataError
from mlxforge.core.events import Emit, ignore
from mlxforge.core.files import disk_errors, write_atomic
from mlxforge.core.rows import Chat
from mlxforge.data.blend import MixSettings, MixSource, Pool, read_mix, shuffled, total_of, whole_budgets
from mlxforge.data.formats import FORMATS, Detector, read_rows
from mlxforge.data.output import check_outputs, new_file
from mlxforge.data.readers import Reading
from mlxforge.data.sources import Input, content_key
from mlxforge.runs.shape_data import finish, inputs_of, progress

SOURCE, ORIGIN = "source", "origin"


def mix(
    config: Path,
    output: Path,
    *,
    assignments: Sequence[str] = (),
    skip_bad: bool = False,
    force: bool = False,
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Writes a mix as JSON lines of messages, each with its ``source`` and ``origin``, and beside it its record.

    Args:
        config: a YAML file of :class:`mlxforge.data.blend.MixSettings`, or the name of a shipped one.
        assignments: ``key=value`` over it, see :func:`mlxforge.data.blend.read_mix`.

    Returns:
        What the record ``NAME.mix.yaml`` holds: ``output``, ``rows``, ``by``, ``wanted``, ``shrunk_by`` (the source that was
        too small, or None), ``seed``, and each of ``sources`` with its settings, ``hash``, ``available``, ``skipped``,
        ``taken``, ``repeats``, ``achieved`` (share) and, where they count, ``characters``; and ``record``, its path.

    Raises:
        ConfigError: a mix that cannot be.
        DataError: bad rows, a source without rows, or files that are there already.
    """
    settings = read_mix(config, assignments)
    # Not .json: a folder that is read as data would take it for rows.
    record = output.with_suffix(".mix.yaml")
    check_outputs([output, record], force)
    with disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        located = _located(settings, emit)
        pools = [
            _pool(source, settings, stack.enter_context(tempfile.TemporaryFile(dir=output.parent)))
            for source in settings.sources
        ]
        pages = [_fill(pool, inputs, skip_bad, emit) for pool, inputs in zip(pools, located, strict=True)]
        total, short = total_of(pools, settings.wanted)
        taken = [(pool, pool.take(budget)) for pool, budget in zip(pools, _budgets(settings, total), strict=True)]
        rows = sum(len(chosen) for _, chosen in taken)
        if not rows:
            raise DataError("no row fits into the mix", where=str(config), fix="give the sources more rows, or ask for more")
        with new_file(output) as target:
            for pool, row in shuffled(taken, settings.seed):
                target.write(pool.line(row))
    _account(pages, taken, settings)
    result = {
        "output": str(output),
        "rows": rows,
        "by": settings.by,
        "wanted": settings.wanted,
        "shrunk_by": short.source.name if short else None,
        "seed": settings.seed,
        "sources": pages,
    }
    write_atomic(record, _yaml(result))
    return result | {"record": str(record)}


def _located(settings: MixSettings, emit: Emit) -> list[list[Input]]:
    """The files of each source. A mistake in the last one shows before hours are spent on the first."""
    for source in settings.sources:
        Detector(source.format, source.map)
    return [inputs_of([source.path or ""], emit) for source in settings.sources]


def _pool(source: MixSource, settings: MixSettings, file: IO[bytes]) -> Pool:
    repeat = settings.repeat if source.repeat is None else source.repeat
    return Pool(source, file, repeat, settings.seed, characters=settings.by == "characters")


def _budgets(settings: MixSettings, total: float) -> Sequence[float]:
    """What each source gives to ``total``: rows, or characters."""
    shares = [source.share for source in settings.sources]
    return whole_budgets(shares, total) if settings.by == "rows" else [share * total for share in shares]


def _fill(pool: Pool, inputs: list[Input], skip_bad: bool, emit: Emit) -> dict[str, Any]:
    """Reads a source into its pool."""
    source, reading = pool.source, Reading(skip_bad=skip_bad)
    items = read_rows(inputs, "chat", format=source.format, mapping=source.map, reading=reading)
    write = FORMATS["messages"].write
    assert write is not None
    for item in islice(items, source.limit):
        assert isinstance(item.row, Chat)
        values = write(item.row)
        length = sum(len(message.content) + len(message.reasoning) for message in item.row.messages)
        line = msgspec.json.encode(values | {SOURCE: source.name, ORIGIN: item.origin}) + b"\n"
        pool.add(line, msgspec.json.encode(values), max(1, length) if pool.characters else 1)
        progress(emit, f"reading {source.name}", len(pool.costs))
    finish(reading, len(pool.costs), [f"source '{source.name}': {source.path}"], emit)
    pool.close()
    return to_dict(source) | {"hash": content_key(inputs), "available": len(pool.costs), "skipped": reading.skipped}


def _account(pages: list[dict[str, Any]], taken: Sequence[tuple[Pool, list[int]]], settings: MixSettings) -> None:
    """What each source gave."""
    counts = [sum(pool.costs[row] for row in rows) for pool, rows in taken]
    for page, (pool, rows), count in zip(pages, taken, counts, strict=True):
        page["taken"] = len(rows)
        page["repeats"] = round(len(rows) / len(pool.costs), 4)
        page["achieved"] = round(count / sum(counts), 6)
        page["repeat"] = pool.repeat
        if settings.by == "characters":
            page["characters"] = count


def _yaml(result: dict[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(result, sort_keys=False, allow_unicode=True)
    return "# How this mix was made: mlxforge data mix\n" + text
