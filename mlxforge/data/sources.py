"""From what the user names (files, folders, hub datasets, each with a weight) to documents.

A specification is ``PATH``, ``hub:ID``, ``hub:ID:SPLIT`` or ``hub:ID:SPLIT:CONFIG``, each with an optional ``@WEIGHT``.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxforge.core.errors import DataError, did_you_mean
from mlxforge.core.events import Emit, Noted, ignore
from mlxforge.core.files import bytes_hash, file_hash
from mlxforge.data import kb
from mlxforge.data.readers import NAMED, READERS, FileText, Reading, Record, read_file, read_hub, shown, type_of

HUB = "hub:"
FOLDERS = READERS.keys() - NAMED  # what is read of a folder


@dataclass(frozen=True)
class Source:
    """What one ``--data`` names. ``weight`` 2 counts it twice an epoch, 0.5 half.

    ``key`` is where a row of it has its text, if it is not where all others have theirs.
    """

    path: str
    weight: float = 1.0
    key: str | None = None

    @property
    def hub(self) -> tuple[str, str, str | None] | None:
        """(id, split, config) of a hub dataset, None for a file or folder."""
        if not self.path.startswith(HUB):
            return None
        name, split, config, *_ = (*self.path.removeprefix(HUB).split(":", 2), "", "")
        return name, split or "train", config or None


@dataclass(frozen=True)
class Input:
    """A source and its files in the order of reading; none for a hub dataset."""

    source: Source
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Document:
    """One text. ``parts`` are read in order before the next document is asked for; ``source`` counts from 0."""

    parts: Iterable[str]
    origin: str
    source: int

    @property
    def text(self) -> str:
        """The whole text in memory."""
        return "".join(self.parts)


def parse_spec(spec: str) -> Source:
    """``PATH[@WEIGHT]``; the suffix is a weight only where no file has the whole as its name.

    Raises:
        DataError: a weight that is not a positive number.
    """
    match = re.fullmatch(r"(.+)@([-+]?[\d.]+(?:e[-+]?\d+)?)", spec, flags=re.DOTALL)
    if match is None or os.path.lexists(spec):
        return Source(spec)
    try:
        weight = float(match[2])
    except ValueError:
        return Source(spec)
    if not 0 < weight < math.inf:
        raise DataError(f"a weight is a number above 0, not {match[2]}", where=spec, fix="PATH@2 counts twice, PATH@0.5 half")
    return Source(match[1], weight)


def locate(sources: Iterable[Source], emit: Emit = ignore) -> list[Input]:
    """The files behind each source. What a folder holds besides is counted in a ``Noted``.

    Raises:
        DataError: a line for every source that does not exist or holds nothing to read.
    """
    reading, skipped = Reading(), Counter[str]()
    inputs = [Input(source, () if source.hub else _files(source, reading, skipped)) for source in sources]
    if not inputs:
        reading.problem("no data is given", "", "name files or folders: --data PATH")
    reading.check()
    if skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        emit(Noted(message=f"not read in the data folders: {kinds}"))
    return inputs


def _files(source: Source, reading: Reading, skipped: Counter[str]) -> tuple[Path, ...]:
    path = Path(source.path).expanduser()
    if path.is_dir():
        found = tuple(walk(path, reading, skipped))
        if not found:
            readable = " ".join(sorted(FOLDERS))
            reading.problem("no readable files in the folder", shown(path), f"readable: {readable}")
        return found
    if not os.path.lexists(path):
        reading.problem("no such file or folder", shown(path))
    elif not path.is_file():
        reading.problem("not a regular file", shown(path), "give a file or a folder")
    elif path.suffix.lower() not in READERS:
        reading.problem(f"cannot read '{path.suffix}' files", shown(path), f"readable: {' '.join(sorted(READERS))}")
    else:
        return (path,)
    return ()


def walk(root: Path, reading: Reading, skipped: Counter[str], suffixes: Container[str] = FOLDERS) -> list[Path]:
    """Files of known suffixes under ``root``, sorted by posix path; a folder that links lead to twice is read once."""
    found: list[Path] = []
    visited: set[str] = set()

    def refused(error: OSError) -> None:
        reading.problem(f"cannot read: {error.strerror}", shown(Path(error.filename)))

    for folder, folders, names in os.walk(root, followlinks=True, onerror=refused):
        if (real := os.path.realpath(folder)) in visited:
            folders.clear()
            continue
        visited.add(real)
        hidden = [name for name in (*folders, *names) if name.startswith(".")]
        skipped["hidden"] += len(hidden)
        folders[:] = sorted(set(folders).difference(hidden))
        for name in set(names).difference(hidden):
            path = Path(folder, name)
            if path.suffix.lower() not in suffixes:
                skipped[path.suffix.lower() or "without suffix"] += 1
            elif not path.is_file():
                skipped["not a regular file"] += 1
            else:
                found.append(path)
    skipped += Counter()  # drops the zeros
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def records(given: Input, reading: Reading) -> Iterator[Record | FileText]:
    """Everything that one input holds, in order."""
    if given.source.hub:
        name, split, config = given.source.hub
        yield from read_hub(name, config, split, given.source.path)
    for path in given.files:
        yield from read_file(path, reading)


def documents(
    inputs: Sequence[Input], mapping: Mapping[str, str] | None = None, reading: Reading | None = None
) -> Iterator[Document]:
    """The documents of all inputs in order. After the first bad row nothing more is yielded, but all rows are checked.

    Args:
        inputs: from :func:`locate`.
        mapping: ``{"text": "content"}`` reads the key ``content`` as the text.
        reading: is told the bytes read.

    Raises:
        DataError: at the end, with a line for each bad row.
    """
    reading = reading or Reading()
    key = text_key(mapping or {})
    for number, given in enumerate(inputs):
        for item in records(given, reading):
            parts = item if isinstance(item, FileText) else _text(item, given.source.key or key, reading)
            if parts is not None and not reading.bad:
                yield Document(parts, item.origin, number)
            elif isinstance(item, FileText):
                for _ in item:
                    pass
    reading.check()


def text_key(mapping: Mapping[str, str]) -> str:
    """The key of a row's text; a text row has no other key to map."""
    for name in mapping:
        if name != "text":
            raise DataError(f"a text row has no '{name}'", where="map", fix=did_you_mean(name, ["text"]))
    return mapping.get("text", "text")


def _text(row: Record, key: str, reading: Reading) -> tuple[str] | None:
    value = row.values.get(key)
    if isinstance(value, str):
        return (value,)
    if key in row.values:
        reading.problem(f"'{key}' is {type_of(value)}, not text", row.origin)
    else:
        keys = ", ".join(row.values) or "none"
        reading.problem(f"no '{key}' key (keys: {keys})", row.origin, _suggestion(row.values))
    return None


def _suggestion(values: Mapping[str, Any]) -> str:
    """The longest text is the likeliest document."""
    texts = {key: len(value) for key, value in values.items() if isinstance(value, str)}
    return f"--set 'map={{text: {max(texts, key=lambda key: texts[key])}}}'" if texts else ""


def content_key(inputs: Iterable[Input]) -> str:
    """A hash of what the inputs hold, whatever their names, times and weights.

    Raises:
        DataError: a file that cannot be read, or a hub that does not answer.
    """
    parts: list[str] = []
    for given in inputs:
        parts.append("source")
        parts.extend(_file_key(path) for path in given.files)
        if given.source.hub:
            parts.append(_hub_key(given.source))
    return bytes_hash(*parts)


def _file_key(path: Path) -> str:
    if path.suffix.lower() in NAMED:
        return kb.content_hash(path)
    try:
        return path.suffix.lower() + file_hash(path)
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror or error}", where=shown(path)) from error


def _hub_key(source: Source) -> str:
    """A local dataset's files, else the commit that the hub names now."""
    assert source.hub is not None
    name, split, config = source.hub
    if Path(name).is_dir():
        files = sorted(path for path in Path(name).rglob("*") if path.is_file())
        return bytes_hash(split, config or "", *(path.name + file_hash(path) for path in files))
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(name).sha
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"cannot reach the dataset: {reason}", where=source.path) from error
    return bytes_hash(name, split, config or "", str(commit))
