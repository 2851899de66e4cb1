"""From a file to a document in chunks: what a worker does, one file at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import msgspec

from mlxforge.core.files import bytes_hash, file_hash
from mlxforge.knowledge.chunk import Heading, Text, chunks
from mlxforge.knowledge.clean import assemble, clean
from mlxforge.knowledge.count import Counter, counter_of
from mlxforge.knowledge.language import language
from mlxforge.knowledge.readers import READERS, Parsed, Unreadable, parse
from mlxforge.knowledge.readers.table import CODE
from mlxforge.knowledge.store import Chunk, Document

READING = "1"  # of the readers and the cleaning: another number reads every file anew
SEGMENT = 1 << 20  # characters that are cut at a time, so that memory does not grow with a document
LONGEST_TITLE = 200


@dataclass(frozen=True)
class Recipe:
    """How documents are cleaned and cut. ``key`` is a hash of it all, the tokenizer included."""

    model: Path
    steps: tuple[str, ...]
    size: int
    overlap: int
    key: str


def recipe(model: Path, steps: tuple[str, ...], size: int, overlap: int) -> Recipe:
    """The recipe for a model folder's tokenizer."""
    key = bytes_hash(READING, *steps, str(size), str(overlap), file_hash(model / "tokenizer.json"))
    return Recipe(model, steps, size, overlap, key)


@dataclass(frozen=True)
class Task:
    """A file to read. ``known`` is the (hash, settings) that the store has of it."""

    path: Path
    name: str
    root: str
    known: tuple[str, str] | None = None


@dataclass
class Outcome:
    """What became of a file: unchanged where ``document`` and ``error`` are both missing."""

    task: Task
    document: Document | None = None
    chunks: list[Chunk] = field(default_factory=list)
    cleaned: dict[str, int] = field(default_factory=dict)
    error: str = ""


@lru_cache(maxsize=1)
def counter(model: Path) -> Counter:
    """The counter of this process."""
    return counter_of(model)


def take(task: Task, given: Recipe) -> Outcome:
    """Reads one file. Whatever is wrong with it is in the outcome; nothing is raised."""
    try:
        digest = file_hash(task.path)
        if task.known == (digest, given.key):
            return Outcome(task)
        return _read(task, given, digest)
    except Unreadable as error:
        return Outcome(task, error=str(error))
    except OSError as error:
        return Outcome(task, error=f"cannot read: {error.strerror or error}")


def _read(task: Task, given: Recipe, digest: str) -> Outcome:
    parsed = parse(task.path)
    kind = READERS[task.path.suffix.lower()].type
    cleaned = clean(parsed, kind, given.steps) | parsed.notes
    text = assemble(parsed)
    if not text.text.strip():
        raise Unreadable("no text is left after cleaning")
    try:
        text.text.encode()
    except UnicodeEncodeError as error:
        raise Unreadable("broken: half a character in it") from error
    document = Document(
        path=task.name,
        root=task.root,
        hash=digest,
        title=title(parsed, Path(task.name)),
        type=kind,
        language=None if kind in CODE else language(text.text),
        bytes=task.path.stat().st_size,
        settings=given.key,
        cleaned=msgspec.json.encode(cleaned).decode(),
    )
    cut = [chunk for part in segments(text, given, counter(given.model)) for chunk in part]
    return Outcome(task, document, cut, cleaned)


def title(parsed: Parsed, path: Path) -> str:
    """From the metadata, else the first heading, else the file's name."""
    first = next((block.title for block in parsed.blocks if block.level and block.title), "")
    found = parsed.title or first or path.stem
    return "".join(letter if letter.isprintable() else " " for letter in found).strip()[:LONGEST_TITLE] or path.name


def segments(document: Text, given: Recipe, counts: Counter) -> Iterator[list[Chunk]]:
    """The chunks of a document, a segment at a time; the headings that are open at its begin go on in the next one."""
    text, start = document.text, 0
    while start < len(text):
        end = _end(text, start)
        open_ones: list[Heading] = []
        inside: list[Heading] = []
        for one in document.headings:
            if one.place <= start:
                open_ones = [*(above for above in open_ones if above.level < one.level), one._replace(place=0)]
            elif one.place < end:
                inside.append(one._replace(place=one.place - start))
        part = Text(text[start:end], [*open_ones, *inside], [page - start for page in document.pages])
        found = chunks(part, counts, given.size, given.overlap)
        yield [_moved(chunk, start) for chunk in found] if start else found
        start = end


def _end(text: str, start: int) -> int:
    """Where a segment ends: behind an empty line, else a line, in its second half."""
    limit = start + SEGMENT
    if limit >= len(text):
        return len(text)
    for mark in ("\n\n", "\n", " "):
        place = text.rfind(mark, start + SEGMENT // 2, limit - len(mark))
        if place >= 0:
            # A word's piece begins with the space before it.
            return place if mark == " " else place + len(mark)
    return limit


def _moved(chunk: Chunk, by: int) -> Chunk:
    return chunk._replace(start=chunk.start + by, end=chunk.end + by)
