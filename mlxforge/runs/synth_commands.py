"""Rows that teach a model to turn requests into a program's commands: split, written and described in one folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.config import assignments_layer, resolve
from mlxforge.core.errors import ConfigError, DataError
from mlxforge.core.events import Emit, Noted, Progress, Warned, ignore
from mlxforge.core.files import bytes_hash, disk_errors, new_directory, write_atomic
from mlxforge.data.commands import Thresholds
from mlxforge.data.output import check_outputs
from mlxforge.data.splits import PARTS, Seen, moves, part_of
from mlxforge.knowledge.commands.describe import readme
from mlxforge.knowledge.commands.grammar import Grammar, Row, Shares, same
from mlxforge.knowledge.commands.measure import diversity
from mlxforge.knowledge.commands.paraphrase import PROMPT, refusal, requests, reworded, unlike, wanted, wording
from mlxforge.knowledge.commands.reader import read_schema, to_yaml
from mlxforge.knowledge.commands.schema import Schema
from mlxforge.knowledge.commands.validate import json_schema
from mlxforge.knowledge.providers import Provider

JOURNAL = "wordings.jsonl"
SCHEMA, FORMAT, README = "schema.yaml", "schema.json", "README.md"


def schema_of(path: Path | None, program: str | None, emit: Emit = ignore) -> Schema:
    """The schema in a file, or of a Click program; of both: the program's, with the phrases and values of the file.

    Raises:
        ConfigError: neither of them, mistakes in the file, or a program that cannot be read.
    """
    written = read_schema(path) if path else None
    if program is None:
        if written is None:
            raise ConfigError("no schema", where="SCHEMA", fix="name a YAML file, or --from-click module:command")
        return written
    from mlxforge.knowledge.commands.from_click import from_click, load_program, merged, typed_name

    loaded = load_program(program)
    found = from_click(loaded, written.cli_name if written else typed_name(program, loaded))
    for note in found.notes:
        emit(Noted(message=note))
    return merged(found.schema, written) if written else found.schema


def shares_of(assignments: Sequence[str]) -> Shares:
    """Shares from ``case=number`` texts over the defaults.

    Raises:
        ConfigError: an unknown case, or no number.
    """
    return _settings(Shares, assignments, "--share")


def thresholds_of(assignments: Sequence[str]) -> Thresholds:
    """Thresholds from ``action=number`` texts over the defaults.

    Raises:
        ConfigError: an unknown action, no number, or thresholds that do not fall.
    """
    return _settings(Thresholds, assignments, "--threshold")


def _settings(kind: type[Any], assignments: Sequence[str], flag: str) -> Any:
    # off-topic=5 as off_topic=5; a number keeps its sign.
    layer = assignments_layer(
        ["=".join((name.replace("-", "_"), *rest)) for name, *rest in (a.split("=") for a in assignments)]
    )
    layer.where = dict.fromkeys(layer.where, flag)
    return resolve(kind, layer)


def synth_commands(
    schema: Schema,
    output: Path,
    *,
    rows: int = 1000,
    seed: int = 0,
    shares: Shares | None = None,
    thresholds: Thresholds | None = None,
    valid: float = 0.1,
    test: float = 0.1,
    asked: Provider | None = None,
    force: bool = False,
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Writes rows by part (``train.jsonl`` ...), ``schema.yaml``, ``schema.json`` and ``README.md`` into a folder.

    The same schema, settings and seed give the same bytes, so a run that was killed is simply started again. Wordings of a
    model are kept beside the folder until it is written: they are asked for once.

    Args:
        asked: puts some of the requests into other words; what loses a value keeps the grammar's wording.

    Returns:
        ``output``, ``rows`` (by part), ``files``, ``cases`` (by name), ``short`` (rows that the schema has no further requests
        for, by case), ``reworded`` (rows in a model's words), ``refused`` (its wordings by reason), ``diversity``,
        ``thresholds``.

    Raises:
        ConfigError: shares that leave nothing to train on, or a schema without requests of any case that was asked for.
        DataError: files that are there already, without ``force``.
    """
    if valid + test >= 1:
        raise ConfigError(f"{valid:g} and {test:g} leave nothing to train on", where="valid, test", fix="less than 1 in all")
    limits = thresholds or Thresholds()
    names = [*(f"{part}.jsonl" for part in PARTS), SCHEMA, FORMAT, README]
    check_outputs([output / name for name in names[: len(PARTS)]], force)
    for name in names[len(PARTS) :]:
        if (output / name).exists() and not force:
            raise DataError("is there already", where=str(output / name), fix="--force replaces it")
    grammar = Grammar(schema, seed, shares or Shares(), limits)
    for name in grammar.impossible:
        emit(Warned(message=f"the schema has no request of the case '{name}': its share goes to the others"))
    drawn = drawn_rows(grammar, rows, emit)
    journal = output.parent / f".{output.resolve().name}.{JOURNAL}"
    refused = Counter[str]()
    if asked is not None:
        drawn = in_other_words(schema, drawn, asked, journal, seed, refused, emit)
    parts = split(drawn, valid, test)
    lines = {part: [row.values_of(seed) for row in drawn if parts[row.number] == part] for part in PARTS}
    shown = {"train": True, "valid": valid > 0, "test": test > 0}
    result: dict[str, Any] = {
        "output": str(output),
        "rows": {part: len(lines[part]) for part in PARTS if shown[part]},
        "files": {part: str(output / f"{part}.jsonl") for part in PARTS if shown[part]},
        "cases": dict(Counter(row.case for row in drawn)),
        "short": dict(grammar.short),
        "reworded": sum(row.model is not None for row in drawn),
        "refused": dict(refused.most_common()),
        "diversity": diversity(schema, drawn, [row.instruction for row in drawn]),
        "thresholds": msgspec.to_builtins(limits),
    }
    texts = {Path(result["files"][part]).name: json_lines(lines[part]) for part in result["files"]}
    texts[SCHEMA] = to_yaml(schema).encode()
    texts[FORMAT] = msgspec.json.format(msgspec.json.encode(json_schema(schema, limits)), indent=2) + b"\n"
    texts[README] = readme(schema, drawn, result, seed).encode()
    write_folder(output, texts, [name for name in names if name not in texts])
    journal.unlink(missing_ok=True)
    return result


def in_other_words(
    schema: Schema, rows: Sequence[Row], asked: Provider, journal: Path, seed: int, refused: Counter[str], emit: Emit
) -> list[Row]:
    """The rows, some of them in the words of a model. Replies are kept in ``journal`` as they come."""
    chosen = {str(row.number): row for row in wanted(rows)}
    keys = {name: bytes_hash(asked.model, PROMPT, str(seed), row.instruction) for name, row in chosen.items()}
    replies = kept_replies(journal)
    left = [row for name, row in chosen.items() if keys[name] not in replies]
    done = len(chosen) - len(left)
    with disk_errors(journal):
        journal.parent.mkdir(parents=True, exist_ok=True)
        with open(journal, "ab") as file:
            for reply in asked.complete(requests(schema, left, seed)):
                done += 1
                emit(Progress(task="asking for wordings", done=done, total=len(chosen), unit="rows"))
                if reply.error:
                    refused[f"no reply ({reply.error})"] += 1
                    continue
                replies[keys[reply.key]] = reply.text
                file.write(msgspec.json.encode([keys[reply.key], reply.text]) + b"\n")
                file.flush()
    found = {row.number: row for row in rows}
    seen = unlike(rows)
    for name, row in chosen.items():
        if keys[name] not in replies:
            continue
        text = wording(replies[keys[name]])
        reason = refusal(schema, row, text) or ("says what another row says" if same(text) in seen else "")
        if reason:
            refused[reason.partition(":")[0]] += 1
            continue
        seen.add(same(text))
        found[row.number] = reworded(row, text, asked.model)
    return list(found.values())


def kept_replies(journal: Path) -> dict[str, str]:
    """What an earlier run was told; a line that a kill cut off counts as not told."""
    replies: dict[str, str] = {}
    if journal.exists():
        whole = journal.read_bytes().rpartition(b"\n")[0]
        write_atomic(journal, whole + b"\n" if whole else b"")
        for line in whole.splitlines():
            key, text = msgspec.json.decode(line, type=tuple[str, str])
            replies[key] = text
    return replies


def json_lines(values: Sequence[dict[str, Any]]) -> bytes:
    """A line for each row."""
    return b"".join(msgspec.json.encode(value) + b"\n" for value in values)


def drawn_rows(grammar: Grammar, count: int, emit: Emit) -> list[Row]:
    """The rows, and a warning where there were fewer than asked for."""
    found = []
    for row in grammar.rows(count):
        found.append(row)
        if row.number % 1000 == 0:
            emit(Progress(task="drawing rows", done=row.number, total=count, unit="rows"))
    emit(Progress(task="drawing rows", done=count, total=count, unit="rows"))
    if grammar.short:
        missing = ", ".join(f"{number:,} {name}" for name, number in grammar.short.items())
        what = f"{grammar.short.total():,} of {count:,} rows were not to be had without saying one thing twice ({missing})"
        emit(Warned(message=f"{what}: add phrases and values to the schema, or ask for fewer"))
    return found


def split(rows: Sequence[Row], valid: float, test: float) -> dict[int, str]:
    """The part of each row by its number: rows of one command with the same values stay together."""
    seen = Seen()
    for row in rows:
        seen.take(part_of(row.group, valid, test), row.group)
    moved = moves(seen, valid, test)
    return {row.number: moved.get(row.group) or part_of(row.group, valid, test) for row in rows}


def write_folder(folder: Path, texts: dict[str, bytes], stale: Sequence[str]) -> None:
    """Fills a folder: a new one appears whole; in one that is there, these files alone are replaced, each in one step."""
    fresh = not folder.exists()
    with new_directory(folder, replace=False) if fresh else nullcontext(folder) as place:
        for name, text in texts.items():
            write_atomic(place / name, text)
        for name in stale:
            (place / name).unlink(missing_ok=True)
