"""Where models come from: base -> cpt -> sft -> dpo -> fused -> gguf, as run directories and results record it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.errors import ConfigError, MlxforgeError
from mlxforge.core.files import bytes_hash, cache_dir, file_hash, write_atomic
from mlxforge.models.adapters import ADAPTER_WEIGHTS, adapter_file
from mlxforge.models.check import model_hash
from mlxforge.runs.checkpoints import FOLDER, step_of
from mlxforge.runs.inventory import Model, find_models
from mlxforge.runs.record import LAST, RECORD, beside, find_checkpoint, list_runs, moment, read_config, read_record

LARGE = 256 << 20  # bytes
MODELS = ("fused", "mlx", "folder")  # kinds of results that others can be made of


class Node(msgspec.Struct, kw_only=True):
    """One model of a tree.

    Attributes:
        kind: base, an objective such as sft, or the kind of a result: fused, mlx, peft, gguf.
        hash: of a base and a model folder their content, of a run its adapter, of a GGUF file the file; empty where unknown.
        note: what is odd, or which checkpoint of the one above it is made of.
    """

    name: str
    kind: str
    path: str = ""
    hash: str = ""
    created: float | None = None
    note: str = ""
    children: list[Node] = []

    def walk(self) -> Iterator[Node]:
        """The node and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def lineage_tree(runs_dir: Path, folders: Sequence[Path] = ()) -> list[Node]:
    """The runs of a folder, and the results in ``folders``, below the bases that they come from; the oldest first."""
    return _Tree(runs_dir, folders).grown()


def searched(runs_dir: Path, places: Sequence[Path] = ()) -> list[Path]:
    """The folders in which results are looked for: this one, that of the runs, and ``places``; none inside another.

    Raises:
        ConfigError: one of ``places`` is no folder.
    """
    for place in places:
        if not place.is_dir():
            raise ConfigError("no such folder", where=f"--in {place}", fix="name a folder that exists")
    folders = {folder.resolve() for folder in (Path(), runs_dir.absolute().parent, *places)}
    return sorted(folder for folder in folders if not any(parent in folders for parent in folder.parents))


def parent_of(run: Path) -> tuple[Path | None, int | None, str]:
    """The run that a run began from, at which step where that is not its best, and what has changed about it since.

    A parent that cannot be found is told by its last known place.
    """
    kept, record = read_config(run), _record(run)
    recorded = (record.get("lineage") or {}).get("parent") or {}
    if not recorded.get("path"):
        return None, None, ""
    found, at = next(_places(kept, run), (None, None))
    if found is None:
        return Path(recorded["path"]), None, ""
    changed = (
        at is None and (found / ADAPTER_WEIGHTS).is_file() and content_hash(found / ADAPTER_WEIGHTS) != recorded.get("hash")
    )
    return found, at, f"{found.name} has changed since" if changed else ""


def parents_of(run: Path) -> list[Path]:
    """All runs that a run needs to be gone on with: the one that it began from, and the one below it."""
    return [place for place, _ in _places(read_config(run), run)]


def descendants(run: Path, runs_dir: Path) -> list[Path]:
    """The runs of a folder that began from a run or lie over it."""
    others = [Path(other.path) for other in list_runs(runs_dir)]
    return [other for other in others if any(parent.resolve() == run.resolve() for parent in parents_of(other))]


def checkpoints_in_use(run: Path, runs_dir: Path) -> set[int]:
    """The steps of a run that other runs lie over or began from."""
    places = [place for other in list_runs(runs_dir) for place in _places(read_config(Path(other.path)), Path(other.path))]
    return {at for place, at in places if at is not None and place.resolve() == run.resolve()}


def content_hash(file: Path) -> str:
    """SHA-256 of a file; of a large one it is kept in the cache until its size or time changes."""
    facts = file.stat()
    if facts.st_size < LARGE:
        return file_hash(file)
    kept = cache_dir() / "hashes" / bytes_hash(str(file.resolve()), f"{facts.st_size} {facts.st_mtime_ns}")[:32]
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, file_hash(file))
    return kept.read_text()


def branch(tree: Sequence[Node], path: Path) -> Node | None:
    """The part of a tree that leads to the run at ``path`` and on from it."""
    for node in tree:
        if node.path and Path(node.path).resolve() == path.resolve():
            return node
        if below := branch(node.children, path):
            return msgspec.structs.replace(node, children=[below])
    return None


def _places(kept: dict[str, Any], run: Path) -> Iterator[tuple[Path, int | None]]:
    """The runs that the settings of a run name, and at which step: what it began from first, then what lies below it."""
    adapter, began, model = (str(kept.get(key) or "") for key in ("adapter", "from_run", "model"))
    found = _place(beside(adapter, run), run.parent) if adapter else None
    if found is None and began.removeprefix("run:") not in ("", LAST):  # a step of a run over another lies in the cache
        found = _place(f"run:{began.removeprefix('run:')}", run.parent)
    # A plain name is a model's here, whatever runs are called.
    below = _place(beside(model, run), run.parent) if model.startswith("run:") or Path(model).is_absolute() else None
    yield from (place for place in (found, below) if place is not None)


def _place(source: str, runs_dir: Path) -> tuple[Path, int | None] | None:
    """The run, and the step, that a setting names: ``run:NAME``, a name, a path, or the folder of a checkpoint; else None."""
    path = Path(source.removeprefix("run:"))
    if path.parent.name == FOLDER and (path.parent.parent / RECORD).is_file():
        return path.parent.parent, step_of(path)
    names = [name for name in (source, source.rpartition("@")[0]) if name]
    known = any((home / name / RECORD).is_file() for name in names for home in (Path(), runs_dir))
    if not source.startswith("run:") and not known:
        return None
    try:
        run, at = find_checkpoint(source, runs_dir)
    except MlxforgeError:
        return None
    return run, int(at) if at.isdecimal() else None


def _run_node(run: Path) -> Node:
    record = _record(run)
    weights = run / ADAPTER_WEIGHTS
    kept = content_hash(weights) if weights.is_file() else ""
    kind, note = str(record.get("objective") or "run"), "" if kept else "no adapter yet"
    return Node(name=run.name, kind=kind, path=str(run), hash=kept, created=moment(record.get("created")), note=note)


def _record(run: Path) -> dict[str, Any]:
    try:
        return read_record(run)
    except MlxforgeError:
        return {}


class _Tree:
    """Nodes by what others name them by, and the bases that they grow from."""

    def __init__(self, runs_dir: Path, folders: Sequence[Path]) -> None:
        models = [model for folder in folders for model in find_models(folder) if model.origin]
        models.sort(key=lambda model: moment(model.origin.get("created")) or 0.0)
        self.results = [(model.origin, _result_node(model)) for model in {model.path: model for model in models}.values()]
        self.runs = {Path(run.path).resolve(): _run_node(Path(run.path)) for run in list_runs(runs_dir)}
        self.by_hash = {node.hash: node for node in self.runs.values() if node.hash}
        self.by_name = {node.name: node for node in self.runs.values()}
        # A fused model is a base too.
        self.bases = {node.hash: node for _, node in self.results if node.kind in MODELS and node.hash}
        self.roots: list[Node] = []

    def grown(self) -> list[Node]:
        for path, node in self.runs.items():
            self._add_run(path, node)
        for origin, node in self.results:
            self._add_result(origin, node)
        return self.roots

    def _add_run(self, path: Path, node: Node) -> None:
        parent, at, changed = parent_of(path)
        above = self.runs.get(parent.resolve()) if parent else None
        if above is None:
            note = f"over {parent.name}, which is not here" if parent else ""
        else:
            note = f"from step {at}" if at is not None else changed
        self._attach(node, above, (_record(path).get("lineage") or {}).get("model") or {}, note)

    def _add_result(self, origin: dict[str, Any], node: Node) -> None:
        adapters, run = origin.get("adapters") or [], origin.get("run") or {}
        weights = str(adapters[-1].get("sha256")) if adapters else ""
        above, note = self.by_hash.get(weights), ""
        if above is None and (above := self.by_name.get(str(run.get("name")))) is not None:
            note = f"step {run['step']}" if run.get("step") is not None else f"{above.name} has changed since"
        elif above is None and adapters:
            note = f"of {run.get('name') or adapters[-1].get('name') or 'an adapter'}, which is not here"
        self._attach(node, above, origin.get("model") or {}, note)

    def _attach(self, node: Node, above: Node | None, model: dict[str, Any], note: str) -> None:
        """Puts a node below the one above it, else below its base."""
        node.note = ", ".join(part for part in (node.note, note) if part)
        place = above or self._base(model)
        if any(one is place for one in node.walk()):  # records that contradict each other
            self.roots.append(node)
        else:
            place.children.append(node)

    def _base(self, model: dict[str, Any]) -> Node:
        name, found = str(model.get("name") or "unknown base"), str(model.get("hash") or "")
        if (found or name) not in self.bases:
            self.roots.append(self.bases.setdefault(found or name, Node(name=name, kind="base", hash=found)))
        return self.bases[found or name]


def _result_node(model: Model) -> Node:
    place, created = Path(model.path), moment(model.origin.get("created"))
    found, note = str(model.origin.get("hash") or ""), model.note
    if model.kind == "gguf" and found and place.stat().st_mtime > (created or 0) and content_hash(place) != found:
        found, note = "", f"{note}, changed since"
    if not found:
        found = model_hash(place) if model.kind in MODELS else content_hash(place if place.is_file() else adapter_file(place))
    return Node(name=model.name, kind=model.kind, path=model.path, hash=found, created=created, note=note)
