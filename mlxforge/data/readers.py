"""Files as records: one reader a suffix, each streaming, so that memory does not grow with the file.

A reader never raises on bad content: it reports to ``Reading`` and goes on where it can, so that every bad row is told at once.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import logging
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mlxforge.core.errors import DataError, MissingExtraError
from mlxforge.data import kb

SHOWN = 20  # problems told in words; the rest are counted
BLOCK = 1 << 20  # bytes of a text file read at a time
LONGEST_LINE = 1 << 27  # bytes; a longer row would break the bound on memory
LARGEST_JSON = 1 << 28  # bytes; a .json array cannot be streamed
PARQUET_ROWS = 256


class Problem(NamedTuple):
    """A bad row or file. ``where`` is ``file:line``, ``file:row N`` or the file as a whole."""

    what: str
    where: str
    fix: str

    def __str__(self) -> str:
        return str(DataError(self.what, where=self.where, fix=self.fix))


class Reading:
    """What was met while reading: input bytes so far (of ``total``), and every problem, the first 20 in words.

    With ``skip_bad`` a bad row is counted in ``skipped`` and is no error; what is ``fatal``, such as a file that cannot be
    read, stays one and is told first.
    ``left`` counts, by reason, what a format or a conversion leaves out of good rows.
    """

    def __init__(self, total: int = 0, *, skip_bad: bool = False) -> None:
        self.bytes, self.total = 0, total
        self.skip_bad = skip_bad
        self.bad = self.skipped = self.fatal = 0
        self.problems: list[Problem] = []
        self.left: Counter[str] = Counter()

    @property
    def lines(self) -> list[str]:
        """The first 20 problems, a line each."""
        return [str(problem) for problem in self.problems]

    @property
    def met(self) -> int:
        """All problems, skipped or not."""
        return self.bad + self.skipped

    def problem(self, what: str, where: str, fix: str = "", *, fatal: bool = False) -> None:
        """Notes one bad row or, with ``fatal``, what no skipping of rows can mend."""
        self.fatal += fatal
        if self.skip_bad and not fatal:
            self.skipped += 1
        else:
            self.bad += 1
        # Rows that are skipped stand behind what is fatal, which would not be seen after the 20th of them.
        first = fatal and self.skip_bad
        self.problems.insert(self.fatal - 1 if first else len(self.problems), Problem(what, where, fix))
        del self.problems[SHOWN:]

    def leave(self, what: str) -> None:
        """Counts one good row, or part of one, that is left out."""
        self.left[what] += 1

    def notes(self) -> list[str]:
        """What was skipped and left out, a line each."""
        skipped = [f"bad rows skipped: {self.skipped:,}"] if self.skipped else []
        return skipped + [f"left out: {count:,} {what}" for what, count in sorted(self.left.items())]

    def check(self) -> None:
        """Raises a DataError with a line for each of the first 20 problems, and their number, if there were any."""
        if not self.bad:
            return
        more = f", the first {SHOWN} are shown" if self.met > SHOWN else ""
        last = [f"{self.met} problems in all{more}"] if self.met > 1 else []
        raise DataError("\n".join([*self.lines, *last]))


class Record(NamedTuple):
    """A row of a data file: its values by key, and where it stands (``file:line``)."""

    values: dict[str, Any]
    origin: str


class FileText:
    """A text file as one text, read in blocks of at most 1 MB; a UTF-8 byte order mark is left out, all else is kept."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self.path, self.reading = path, reading
        self.origin = shown(path)

    def __iter__(self) -> Iterator[str]:
        with reported(self.path, self.reading), open(self.path, "rb") as file:
            yield from self._decoded(file)

    def _decoded(self, blocks: Any) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        taken = 0
        while True:
            block = blocks.read(BLOCK)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                not_utf8(self.reading, self.origin, taken - pending + error.start)
                return
            if taken == 0:
                text = text.removeprefix("\ufeff")
            taken += len(block)
            self.reading.bytes += len(block)
            if text:
                yield text
            if not block:
                return


Reader = Callable[[Path, Reading], Iterator[Record | FileText]]


@contextmanager
def reported(path: Path, reading: Reading) -> Iterator[None]:
    """Turns an operating system's refusal to read ``path`` into a problem."""
    try:
        yield
    except OSError as error:
        reading.problem(f"cannot read: {error.strerror or plain(error)}", shown(path), fatal=True)


def shown(path: Path) -> str:
    """A path for messages: posix slashes, and no byte that a terminal cannot print."""
    return os.fsencode(path.as_posix()).decode("utf-8", "replace")


def not_utf8(reading: Reading, where: str, offset: int, *, fatal: bool = True) -> None:
    """Reports the first byte of a file, or of a line of it, that is not UTF-8."""
    fix = "save it as UTF-8: iconv -f ENCODING -t UTF-8 FILE"
    reading.problem(f"not UTF-8 at byte {offset}", where, fix, fatal=fatal)


def read_text(path: Path, reading: Reading) -> Iterator[FileText]:
    """A text file is one document."""
    yield FileText(path, reading)


def lines(path: Path, reading: Reading, *, fatal: bool = False) -> Iterator[tuple[int, str]]:
    """The lines of a file, ends kept, as (number from 1, text). ``fatal``: no line can be spared."""
    offset = 0
    with open(path, "rb") as file:
        for number in itertools.count(1):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                what = f"a line of more than {LONGEST_LINE >> 20} MB"
                reading.problem(what, f"{shown(path)}:{number}", "split the row", fatal=True)
                return
            start = 3 if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
            try:
                yield number, line[start:].decode("utf-8")
            except UnicodeDecodeError as error:
                not_utf8(reading, f"{shown(path)}:{number}", offset + start + error.start, fatal=fatal)
            offset += len(line)
            reading.bytes += len(line)


def read_jsonl(path: Path, reading: Reading) -> Iterator[Record]:
    """An object a line; empty lines are passed over."""
    for row, _ in json_lines(path, reading):
        yield row


def json_lines(path: Path, reading: Reading) -> Iterator[tuple[Record, str]]:
    """Each record and its line as it stands in the file, the end of the line included."""
    name, decode = shown(path), msgspec.json.Decoder().decode
    for number, line in lines(path, reading):
        try:
            values = decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            if not line.isspace():
                reading.problem(f"broken JSON: {plain(error)}", f"{name}:{number}", "a row is one object on one line")
            continue
        if type(values) is dict:
            yield Record(values, f"{name}:{number}"), line
        else:
            no_record(values, f"{name}:{number}", reading)


def read_json(path: Path, reading: Reading) -> Iterator[Record]:
    """An array of objects, or objects a line under the wrong suffix."""
    if first_byte(path) != b"[":
        one = _lone_object(path)
        yield from read_jsonl(path, reading) if one is None else [Record(one, f"{shown(path)}:row 1")]
        return
    if path.stat().st_size > LARGEST_JSON:
        what = f"a JSON array of more than {LARGEST_JSON >> 20} MB"
        reading.problem(what, shown(path), "write .jsonl, which is streamed", fatal=True)
        return
    content = path.read_bytes()
    reading.bytes += len(content)
    try:
        rows = msgspec.json.decode(content.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except UnicodeDecodeError as error:
        not_utf8(reading, shown(path), error.start + (3 if content.startswith(codecs.BOM_UTF8) else 0))
        return
    except (msgspec.DecodeError, RecursionError) as error:
        reading.problem(f"broken JSON: {plain(error)}", shown(path), fatal=True)
        return
    name = shown(path)
    for number, values in enumerate(rows, 1):
        if isinstance(values, dict):
            yield Record(values, f"{name}:row {number}")
        else:
            no_record(values, f"{name}:row {number}", reading)


def _lone_object(path: Path) -> dict[str, Any] | None:
    """The one object of a file that spreads it over many lines; None where the first line is whole, or nothing is."""
    with open(path, "rb") as file:
        first = file.readline(BLOCK).removeprefix(codecs.BOM_UTF8).strip()
    if first not in (b"{", b"") or path.stat().st_size > LARGEST_JSON:
        return None
    try:
        values = msgspec.json.decode(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    return values if isinstance(values, dict) else None


def first_byte(path: Path) -> bytes:
    """The first byte of a file that is neither a byte order mark nor white space."""
    with open(path, "rb") as file:
        return file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1]


TYPES = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


def type_of(value: Any) -> str:
    """A JSON type in words: ``a number``."""
    return "text" if isinstance(value, str) else TYPES.get(type(value), type(value).__name__)


def no_record(values: Any, origin: str, reading: Reading) -> None:
    """Reports a row that is no object."""
    reading.problem(f"a row is an object with keys, not {type_of(values)}", origin, 'such as {"text": "..."}')


def plain(error: BaseException) -> str:
    """The first line of an error's message, without the prefix that repeats what we say."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text.removeprefix("JSON is malformed: ")


def read_csv(path: Path, reading: Reading) -> Iterator[Record]:
    """Comma-separated values; the first row names the keys. Stops at the first problem: what follows is not to be trusted."""
    csv.field_size_limit(sys.maxsize)  # the default refuses a cell of more than 128 KB
    before = reading.bad
    rows = csv.reader((line for _, line in lines(path, reading, fatal=True)), strict=True)
    try:
        header = next(rows, None)
        start = rows.line_num + 1
        if twice := [name for name, count in Counter(header or ()).items() if count > 1]:
            what = f"two columns are named '{twice[0]}'"
            reading.problem(what, f"{shown(path)}:1", "give each column a name of its own", fatal=True)
            return
        for cells in rows:
            if reading.bad > before:
                return
            origin, start = f"{shown(path)}:{start}", rows.line_num + 1
            if header is None or len(cells) != len(header):
                if cells:  # an empty line has no cells and is passed over
                    reading.problem(f"{len(cells)} cells under {len(header or ())} names", origin)
                continue
            yield Record(dict(zip(header, cells, strict=True)), origin)
    except csv.Error as error:
        reading.problem(f"broken CSV: {error}", f"{shown(path)}:{rows.line_num}", fatal=True)


def read_parquet(path: Path, reading: Reading) -> Iterator[Record]:
    """The rows of a Parquet file, a few hundred at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "parquet", f"reading {shown(path)}") from None
    size, number = path.stat().st_size, 0
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=BLOCK, pre_buffer=False) as file:
            count = max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(values, f"{shown(path)}:row {number}")
                reading.bytes += size * number // count - size * (number - batch.num_rows) // count
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reading.problem(f"not a readable Parquet file: {plain(error)}", shown(path), fatal=True)


class StoredText(FileText):
    """A document of a knowledge base, chunk after chunk, edits included."""

    def __init__(self, path: Path, reading: Reading, connection: sqlite3.Connection, document: int, name: str) -> None:
        super().__init__(path, reading)
        self.connection, self.document = connection, document
        self.origin = f"{self.origin}:{name}"

    def __iter__(self) -> Iterator[str]:
        try:
            with kb.store_errors(self.path):
                yield from kb.text_of(self.connection, self.document)
        except DataError as error:
            self.reading.problem(error.what, self.origin, error.fix, fatal=True)


def read_knowledge(path: Path, reading: Reading) -> Iterator[StoredText]:
    """The documents of a knowledge base by path, all as they stood at one moment; those marked removed are left out."""
    size = path.stat().st_size
    try:
        with kb.open_readonly(path) as connection, kb.store_errors(path):
            connection.execute("BEGIN")
            found = kb.documents(connection)
            if not found:
                fix = f"add some: mlxforge ingest PATH --into {shown(path)}"
                reading.problem("the knowledge base holds no document", shown(path), fix, fatal=True)
            for number, (document, name) in enumerate(found, 1):
                yield StoredText(path, reading, connection, document, name)
                reading.bytes += size * number // len(found) - size * (number - 1) // len(found)
    except DataError as error:
        reading.problem(error.what, error.where, error.fix, fatal=True)


READERS: dict[str, Reader] = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".sqlite": read_knowledge,
    ".sqlite3": read_knowledge,
    ".db": read_knowledge,
}
NAMED = {suffix for suffix, reader in READERS.items() if reader is read_knowledge}  # read where named, not in a folder


def read_file(path: Path, reading: Reading) -> Iterator[Record | FileText]:
    """The records of a file, by the reader of its suffix."""
    with reported(path, reading):
        yield from READERS[path.suffix.lower()](path, reading)


def read_hub(name: str, config: str | None, split: str, origin: str) -> Iterator[Record]:
    """The rows of a Hugging Face dataset, streamed; ``name`` may be a local folder.

    Raises:
        DataError: with one line for whatever ``datasets`` could not do.
        MissingExtraError: without the package ``datasets``.
    """
    rows = iter(_hub_rows(name, config, split, origin))
    for number in itertools.count(1):
        try:
            values = next(rows)
        except StopIteration:
            return
        except Exception as error:
            # datasets raises errors of many libraries; none tells a user more than its first line.
            raise DataError(f"cannot read the dataset: {plain(error)}", where=origin) from error
        yield Record(dict(values), f"{origin}:row {number}")


def _hub_rows(name: str, config: str | None, split: str, origin: str) -> Iterable[Any]:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "hub", f"reading {origin}") from None
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each retry would be a line
    try:
        rows: Iterable[Any] = datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:
        # Which configs or splits there are stands on the lines after the first.
        more = " ".join(" ".join(str(error).split("\n")[1:2]).split())
        raise DataError(f"cannot open the dataset: {plain(error)}", where=origin, fix=more) from error
    return rows
