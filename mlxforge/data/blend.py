"""A mix of conversations from several sources by ratio: how many rows each gives, which, and in what order.

Which rows are taken depends on their own content and the seed alone, so that another share or another source changes nothing
for those that stay. The mix that is made while training, by trained tokens, is in ``mlxforge.data.mix``.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import msgspec

from mlxforge.core.config import Layer, assignments_layer, from_dict, resolve, yaml_layer
from mlxforge.core.errors import ConfigError, did_you_mean
from mlxforge.core.settings import Settings
from mlxforge.core.settings import help as described
from mlxforge.data.sources import HUB

Count = Annotated[int, msgspec.Meta(ge=1)]
TOLERANCE = 1e-6


class MixSource(Settings):
    """One source of a mix."""

    name: Annotated[str, described("what its rows carry as their source (default: the last part of the path)")] = ""
    path: Annotated[str | None, described("a file, a folder, or hub:ID[:split[:config]]")] = None
    share: Annotated[float, described("its part of the whole; all shares sum to 1", gt=0, le=1)] = 0.0
    format: Annotated[str | None, described("format of its rows (default: found row by row)")] = None
    map: Annotated[dict[str, str], described("keys of its rows: prompt=question reads the key 'question'")] = {}
    cap: Annotated[Count | None, described("most rows taken from it")] = None
    limit: Annotated[Count | None, described("rows read of it, from its start; for hub datasets of millions")] = None
    repeat: Annotated[bool | None, described("read it again where it is too small for its share (default: the mix's)")] = None


class MixSettings(Settings):
    """A mix."""

    sources: Annotated[list[MixSource], described("what is mixed")] = []
    by: Annotated[Literal["rows", "characters"], described("what the shares count")] = "rows"
    rows: Annotated[Count | None, described("rows wanted in all (default: as many as the shares allow)")] = None
    characters: Annotated[Count | None, described("characters wanted in all, where by is characters")] = None
    repeat: Annotated[bool, described("read small sources again; else the whole shrinks so that the shares hold")] = False
    seed: Annotated[int, described("decides which rows are taken and their order", ge=0, le=2**32 - 1)] = 0

    @property
    def wanted(self) -> int | None:
        """Rows or characters, whichever the shares count."""
        return self.rows if self.by == "rows" else self.characters


def read_mix(file: Path, assignments: Sequence[str] = ()) -> MixSettings:
    """A mix from a YAML file or the name of a shipped one, with ``key=value`` over it.

    A key is one of the mix (``rows``), of a source (``dolly.share``), or a source's name for its path (``own=chats.jsonl``).

    Raises:
        ConfigError: a line for every mistake.
    """
    layer, over = yaml_layer(file), assignments_layer(list(assignments))
    where = layer.where.get("sources", str(file))
    entries = layer.values.pop("sources", None)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError("a mix has a list of sources", where=where, fix="sources: [{path: chats.jsonl, share: 1}]")
    for entry in entries:
        entry["name"] = str(entry.get("name") or _name(entry.get("path")))
    problems = _assign(entries, over)
    sources: list[MixSource] = []
    for entry in entries:
        try:
            sources.append(from_dict(MixSource, entry, f"{where}: source '{entry['name']}'"))
        except ConfigError as error:
            problems.append(str(error))
    try:
        mix = resolve(MixSettings, layer, over)
    except ConfigError as error:
        problems.append(str(error))
    problems += [] if problems else _mistakes(mix, sources, where)
    if problems:
        raise ConfigError("\n".join(problems))
    return msgspec.structs.replace(mix, sources=sources)


def _name(path: Any) -> str:
    if not isinstance(path, str):
        return "unnamed"
    return path.removeprefix(HUB).partition(":")[0].rpartition("/")[2] if path.startswith(HUB) else Path(path).stem


def _assign(entries: list[dict[Any, Any]], over: Layer) -> list[str]:
    """Moves the assignments to sources from ``over`` into their entries."""
    named = {entry["name"]: entry for entry in entries}
    own = set(MixSettings.__struct_fields__) - {"sources"}
    problems: list[str] = []
    for key in list(over.values):
        source, _, tail = key.partition(".")
        if key in own:
            continue
        value = over.values.pop(key)
        if source in named:
            named[source][tail or "path"] = value
        else:
            known = [*own, *named, *(f"{name}.{field}" for name in named for field in MixSource.__struct_fields__)]
            near = did_you_mean(key, known)
            hint = near if near.startswith("did") else f"known: {', '.join([*sorted(own), *named])}"
            problems.append(str(ConfigError(f"unknown setting or source '{key}'", where="--set", fix=hint)))
    return problems


def _mistakes(mix: MixSettings, sources: Sequence[MixSource], where: str) -> list[str]:
    problems: list[tuple[str, str]] = []
    names = [source.name for source in sources]
    problems += [
        (f"two sources are named '{name}'", "give each a name") for name in sorted({n for n in names if names.count(n) > 1})
    ]
    for source in sources:
        if source.path is None:
            problems.append((f"source '{source.name}' has no path", f"--set {source.name}=PATH"))
        if source.share == 0:
            problems.append((f"source '{source.name}' has no share", "share: 0.1"))
    total = math.fsum(source.share for source in sources)
    if not problems and abs(total - 1) > TOLERANCE:
        shares = ", ".join(f"{source.name} {source.share:g}" for source in sources)
        problems.append((f"the shares sum to {total:g}, not 1", shares))
    if (mix.rows and mix.by != "rows") or (mix.characters and mix.by != "characters"):
        other = "characters" if mix.rows else "rows"
        problems.append(
            (
                f"'{'rows' if mix.rows else 'characters'}' does not go with by: {mix.by}",
                f"by: {'rows' if mix.rows else 'characters'}, or give {other}",
            )
        )
    return [str(ConfigError(what, where=where, fix=fix)) for what, fix in problems]


@dataclass
class Pool:
    """The rows of one source on disk, with what each counts, and the order in which they are taken."""

    source: MixSource
    file: IO[bytes]
    repeat: bool
    seed: int
    characters: bool = False
    starts: array[int] = field(default_factory=lambda: array("Q", [0]))
    costs: array[int] = field(default_factory=lambda: array("Q"))
    keys: array[int] = field(default_factory=lambda: array("Q"))
    order: list[int] = field(default_factory=list)

    def add(self, line: bytes, content: bytes, cost: int) -> None:
        """Takes a row: the line to write, what decides its place, and what it counts."""
        self.file.write(line)
        self.starts.append(self.starts[-1] + len(line))
        self.costs.append(cost)
        self.keys.append(hash64(content, self.seed))

    def close(self) -> None:
        """Ends adding: fixes the order."""
        self.order = sorted(range(len(self.costs)), key=self.keys.__getitem__)

    def line(self, row: int) -> bytes:
        """A row's line."""
        self.file.seek(self.starts[row])
        return self.file.read(self.starts[row + 1] - self.starts[row])

    @property
    def most(self) -> float:
        """Rows that may be taken: without end where the source is repeated."""
        return min(math.inf if self.repeat else len(self.costs), self.source.cap or math.inf)

    @property
    def available(self) -> float:
        """What all the rows count that may be taken."""
        if self.most == math.inf:
            return math.inf
        whole, rest = divmod(int(self.most), len(self.costs))
        return whole * sum(self.costs) + sum(self.costs[row] for row in self.order[:rest])

    def take(self, budget: float) -> list[int]:
        """Rows in order, again from the start where they are repeated, that count ``budget`` to within half a row."""
        taken: list[int] = []
        count = 0.0
        while len(taken) < self.most:
            row = self.order[len(taken) % len(self.order)]
            if count + self.costs[row] / 2 > budget + TOLERANCE:
                break
            taken.append(row)
            count += self.costs[row]
        return taken


def hash64(content: bytes, *salt: object) -> int:
    """64 bits that depend on the content and the salt."""
    digest = hashlib.blake2b(content, digest_size=8, key=":".join(map(str, salt)).encode()[:64])
    return int.from_bytes(digest.digest(), "big")


def total_of(pools: Sequence[Pool], wanted: int | None) -> tuple[float, Pool | None]:
    """What the mix counts in all, and the source that keeps it from being more; None where it is what was wanted.

    Without a wish: as much as the smallest source for its share allows; where all are repeated, as much as brings every row.
    """
    reach = {id(pool): pool.available / pool.source.share for pool in pools}
    least = min(pools, key=lambda pool: reach[id(pool)])
    if wanted is not None and wanted <= reach[id(least)] + TOLERANCE:
        return wanted, None
    if reach[id(least)] < math.inf:
        return reach[id(least)], least
    return max(sum(pool.costs) / pool.source.share for pool in pools), None


def whole_budgets(shares: Sequence[float], total: float) -> list[int]:
    """Whole numbers in the proportion of the shares that sum to ``total`` rounded down, by the largest remainders."""
    rows = math.floor(total + TOLERANCE)
    exact = [share * rows for share in shares]
    budgets = [math.floor(part + TOLERANCE) for part in exact]
    by_remainder = sorted(range(len(shares)), key=lambda index: budgets[index] - exact[index])
    for index in by_remainder[: rows - sum(budgets)]:
        budgets[index] += 1
    return budgets


def shuffled(taken: Sequence[tuple[Pool, list[int]]], seed: int) -> Iterator[tuple[Pool, int]]:
    """The rows of all sources in an order that the seed and the rows decide."""
    places: list[tuple[int, int, int]] = []
    for number, (pool, rows) in enumerate(taken):
        size = len(pool.order)
        for index, row in enumerate(rows):
            salt = pool.keys[row].to_bytes(8, "big")
            places.append((hash64(salt, seed, "order", index // size), number, row))
    places.sort()
    for _, number, row in places:
        yield taken[number][0], row
