"""From inputs to rows of the kind that a training method takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlxforge.core.rows import AnyRow, Kto, Reward, Text
from mlxforge.data.formats.base import BadRow, Format, Values, from_json
from mlxforge.data.formats.table import FORMATS, Detector
from mlxforge.data.methods import CASTS, GATHERED, Pairs, methods_for, taken
from mlxforge.data.readers import FileText, Reading, Record, read_file, read_hub
from mlxforge.data.sources import Input

REVIEW = "review"  # the key of what a person said of a row (mlxforge synth review)
REFUSED = "rows rejected in review"


def refused(values: Values) -> bool:
    """Whether a person has rejected a row: it stays in its file and is not read."""
    review = values.get(REVIEW)
    return isinstance(review, dict) and review.get("verdict") == "reject"


class Item(NamedTuple):
    """One row, where it stands (``file:line``), and the number of its input."""

    row: AnyRow
    origin: str
    source: int


class Found(NamedTuple):
    """What one record holds: its format, its rows, where it stands, and its values.

    Of a format that joins records, each record has no rows; then come the ``joined`` ones, which have no values.
    """

    format: Format
    rows: list[AnyRow]
    origin: str
    values: Values
    joined: bool = False


JSON_CELLS = (
    *("messages", "conversations", "tools", "history", "instances", "reformulations"),
    *("prompt", "chosen", "rejected", "completion", "response"),
)


def from_cells(values: Values) -> Values:
    """A CSV row: an empty cell is absent, a cell that holds JSON where a format has lists or objects is that JSON."""
    full = {key: value for key, value in values.items() if value != ""}
    for key in JSON_CELLS:
        if (text := full.get(key, ""))[:1] in ("[", "{") and _holds_objects(value := from_json(text)):
            full[key] = value
    return full


def _holds_objects(value: Any) -> bool:
    """Whether a cell's JSON is one of ours: a list of numbers may as well be a text."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, (dict, list))


def without_nulls(values: Any) -> Any:
    """Values without null keys: columns of structs give every key to every row."""
    if isinstance(values, dict):
        return {key: without_nulls(value) for key, value in values.items() if value is not None}
    return [without_nulls(value) for value in values] if isinstance(values, list) else values


CLEAN: dict[str, Callable[[Values], Values]] = {".csv": from_cells, ".parquet": without_nulls}


def stream(given: Input, reading: Reading) -> Iterator[tuple[Record | FileText, Callable[[Values], Values] | None]]:
    """All that one input holds, with what makes its values plain."""
    if given.source.hub:
        name, split, config = given.source.hub
        for record in read_hub(name, config, split, given.source.path):
            yield record, without_nulls
    for path in given.files:
        clean = CLEAN.get(Path(path).suffix.lower())
        for item in read_file(path, reading):
            yield item, clean


class RowReader:
    """Reads the records of one input into rows; every bad one is told to ``reading``.

    Args:
        takes: the kinds wanted of formats that can be read as several, the best first.
        detector: finds the format of a row.
    """

    def __init__(self, detector: Detector, reading: Reading, takes: Sequence[str] = ()) -> None:
        self.detector, self.reading, self.takes = detector, reading, takes
        self.disorder = self.unjoined = 0  # bad rows whose roles are out of order; bad ones among the joined
        self.kept: list[tuple[Values, str]] = []

    def __call__(self, given: Input) -> Iterator[Found]:
        """The rows of one input in order; those of joined formats at its end."""
        self.kept = []
        read, detector, renamed, reading = self._read, self.detector, self.detector.renamed, self.reading
        mapped = bool(detector.mapping)
        for record, clean in stream(given, reading):
            if isinstance(record, FileText):
                yield Found(FORMATS["text"], [Text("".join(record))], record.origin, {})
                continue
            values, origin = record
            if REVIEW in values and refused(values):
                reading.leave(REFUSED)
                continue
            if clean is not None:
                values = clean(values)
            if mapped:
                values = renamed(values)
            try:
                chosen = detector(values)
                rows = read(chosen, values, origin)
            except BadRow as bad:
                self._bad(bad, origin)
            else:
                yield Found(chosen, rows, origin, values)
        yield from self._joined()

    def _read(self, chosen: Format, values: Values, origin: str) -> list[AnyRow]:
        kind = chosen.kind_for(self.takes) if chosen.also else chosen.kind
        row = chosen.also.get(kind, chosen.read)(values)
        if chosen.gather is not None:
            self.kept.append((values, origin))
            return []
        rows = row if isinstance(row, list) else [row]
        if not rows:
            self.reading.leave(f"{chosen.name} rows without a {kind} row")
        return rows

    def _joined(self) -> Iterator[Found]:
        if not self.kept:
            return
        gather, whole = FORMATS["oasst"].gather, FORMATS["oasst-tree"]
        assert gather is not None
        for values, origin in gather(self.kept, self.reading.leave):
            try:
                yield Found(FORMATS["oasst"], self._read(whole, values, origin), origin, {}, True)
            except BadRow as bad:
                self.unjoined += 1
                self._bad(bad, origin)

    def _bad(self, bad: BadRow, origin: str) -> None:
        self.disorder += bad.order
        self.reading.problem(bad.reason, origin, bad.fix)


def read_rows(
    inputs: Sequence[Input],
    kind: str,
    *,
    format: str | None = None,  # noqa: A002
    mapping: Mapping[str, str] | None = None,
    reading: Reading | None = None,
    skip_bad: bool = False,
) -> Iterator[Item]:
    """The rows of all inputs as rows of ``kind``, in order.

    Each bad row is told to ``reading``. Without ``skip_bad`` nothing is yielded after the first, but all rows are checked;
    with it they are left out and counted in ``reading.skipped``. The caller calls ``reading.check()`` at the end.

    Args:
        inputs: from :func:`mlxforge.data.sources.locate`.
        kind: a key of ``mlxforge.core.rows.KINDS``.
        format: a key of FORMATS; None finds the format of each row.
        mapping: ``{"prompt": "question"}`` reads the key ``question`` as the prompt.

    Raises:
        DataError: an unknown format or key of ``mapping``, a hub that does not answer.
    """
    reading = Reading() if reading is None else reading
    reading.skip_bad = reading.skip_bad or skip_bad
    detector = Detector(format, mapping)
    for number, given in enumerate(inputs):
        for row, origin in as_kind(RowReader(detector, reading, taken(kind))(given), kind, taken(kind), reading):
            if not reading.bad:
                yield Item(row, origin, number)


def advice(row: Format) -> str:
    """Which methods take rows of a format."""
    return f"methods that take them: {', '.join(methods_for([row.kinds]))}"


def as_kind(
    found: Iterable[Found],
    kind: str,
    takes: Sequence[str],
    reading: Reading,
    advice: Callable[[Format], str] = advice,
) -> Iterator[tuple[AnyRow, str]]:
    """(row of ``kind``, origin) of what one input holds, read with the same ``takes``.

    All else is refused, once a file and format, with the ``advice`` for it.
    """
    pairs, refused = Pairs(), set[tuple[str, str]]()
    for one in found:
        native = one.format.kind_for(takes)
        if native not in takes:
            file = one.origin.rpartition(":")[0] or one.origin
            if (file, one.format.name) not in refused:
                what = f"{one.format.name} rows ({one.format.kind}) cannot be read as {kind} rows"
                reading.problem(what, one.origin, advice(one.format), fatal=True)
            refused.add((file, one.format.name))
        elif native == kind:
            for row in one.rows:
                yield row, one.origin
        elif (native, kind) in GATHERED:
            for row in one.rows:
                assert isinstance(row, (Kto, Reward))
                pairs.add(row, one.origin)
        else:
            yield from _cast(one, native, kind, reading)
    yield from pairs.pairs(reading.leave)


def _cast(one: Found, native: str, kind: str, reading: Reading) -> Iterator[tuple[AnyRow, str]]:
    for row in one.rows:
        rows = CASTS[native, kind](row)
        if not rows:
            reading.leave(f"{native} rows that are no {kind}")
        for made in rows:
            yield made, one.origin
