"""Room on the disk: whole runs, checkpoints that nothing needs, and what killed processes left. Nothing outside is touched."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.errors import MlxforgeError, RunError
from mlxforge.core.files import TEMPORARY, disk_errors, disk_size, locked
from mlxforge.runs.checkpoints import BEST, LAST, kept_steps, linked_step
from mlxforge.runs.lineage import checkpoints_in_use, descendants
from mlxforge.runs.record import RECORD, find_run, is_live, list_runs, moment, read_record

LEFT_AFTER = 3600.0  # seconds after which something unfinished outside of a run belongs to no process


class Doomed(msgspec.Struct, frozen=True, kw_only=True):
    """A folder or file that can go, and the bytes that this frees. ``what`` is run, checkpoint or unfinished."""

    path: str
    run: str
    what: str
    bytes: int
    why: str = ""


def removal(names: Sequence[str], runs_dir: Path, *, force: bool = False) -> list[Doomed]:
    """The runs that ``names`` mean, to be removed.

    Args:
        force: those that others descend from too.

    Raises:
        RunError: no such run, one outside of ``runs_dir``, a live one, or one that another run descends from.
    """
    paths = list({run.resolve(): run for run in (find_run(name, runs_dir) for name in names)}.values())
    going = {path.resolve() for path in paths}
    for path in paths:
        if path.resolve().parent != runs_dir.resolve() or path.is_symlink():
            fix = f"choose its folder: --runs-dir {path.resolve().parent}"
            raise RunError(f"lies outside of {runs_dir}", where=str(path), fix=fix)
        _check_idle(path)
        below = [run.name for run in descendants(path, runs_dir) if run.resolve() not in going]
        if below and not force:
            fix = "remove those too, or --force: they can still be used, but not gone on with"
            raise RunError(f"other runs descend from it: {', '.join(below)}", where=str(path), fix=fix)
    return [Doomed(path=str(path), run=path.name, what="run", bytes=disk_size(path)) for path in paths]


def litter(
    runs_dir: Path, *, keep_best: bool = False, failed: bool = False, older_than: float | None = None
) -> tuple[list[Doomed], list[str]]:
    """What can go without a loss: checkpoints that are neither best nor last, and what killed processes left unfinished.

    Args:
        keep_best: of finished runs the last checkpoint too, where another one is the best.
        failed: whole runs that failed.
        older_than: only of runs that ended, or last changed, so many seconds ago.

    Returns:
        what can go, and notes on what stays though it looks alike.
    """
    found: list[Doomed] = list(_unfinished(runs_dir, "", LEFT_AFTER))
    notes = []
    for run in (Path(run.path) for run in list_runs(runs_dir)):
        if is_live(run):
            notes.append(f"{run.name} is being trained now: left alone")
            continue
        record = _record(run)
        if older_than is not None and time.time() - _ended(run, record) < older_than:
            continue
        if failed and record.get("status") == "failed":
            below = descendants(run, runs_dir)
            if not below:
                found.append(Doomed(path=str(run), run=run.name, what="run", bytes=disk_size(run), why="failed"))
                continue
            notes.append(f"{run.name} failed, but others descend from it: {', '.join(one.name for one in below)}")
        found += _checkpoints(run, runs_dir, keep_best and record.get("status") == "finished", notes)
        found += [one for folder in (run, run / "checkpoints") for one in _unfinished(folder, run.name, 0.0)]
    return found, notes


def remove(found: Sequence[Doomed]) -> int:
    """Removes what was found. A run or a checkpoint is gone at once or not at all, even where the process is killed.

    Returns:
        bytes freed.

    Raises:
        RunError: somebody began to write a run in the meantime.
        MlxforgeError: the folder is forbidden.
    """
    freed = 0
    for one in found:
        path = Path(one.path)
        if not os.path.lexists(path):
            continue
        with locked(home) if (home := _home(one, path)) else nullcontext():
            _remove(path)
        freed += one.bytes
    return freed


def _home(one: Doomed, path: Path) -> Path | None:
    """The run that a doomed thing is or lies in."""
    if one.what == "run":
        return path
    return next((parent for parent in path.parents[:2] if (parent / RECORD).exists()), None) if one.run else None


def _remove(path: Path) -> None:
    with disk_errors(path):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        # What is half gone must not look like a run or a checkpoint.
        place = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY))
        path.rename(place / path.name)
        shutil.rmtree(place)


def _checkpoints(run: Path, runs_dir: Path, keep_best: bool, notes: list[str]) -> Iterator[Doomed]:
    steps, best, last = kept_steps(run), linked_step(run, BEST), linked_step(run, LAST)
    kept = {best} if keep_best and best in steps else {best, last, _proven(steps, last)}
    if not kept & set(steps):  # the links are gone: nobody knows which ones matter
        if steps:
            notes.append(f"{run.name} does not say which of its checkpoints is the best: left alone")
        return
    used = checkpoints_in_use(run, runs_dir) - kept
    if held := sorted(used & set(steps)):
        notes.append(f"{run.name}: step {', '.join(map(str, held))} stays, since another run began there")
    for step, path in steps.items():
        if step not in kept | used:
            why = "the last, not the best" if step == last else "neither best nor last"
            yield Doomed(path=str(path), run=run.name, what="checkpoint", bytes=disk_size(path), why=why)


def _proven(steps: dict[int, Path], last: int | None) -> int | None:
    """The step that a run goes back to where it diverges."""
    try:
        proven = json.loads((steps[last] / "state.json").read_bytes()).get("proven")  # type: ignore[index]
    except (KeyError, OSError, ValueError, AttributeError):
        return None
    return proven if isinstance(proven, int) else None


def _unfinished(folder: Path, run: str, older_than: float) -> Iterator[Doomed]:
    """What a process that is dead left half-written in a folder."""
    for path in sorted(folder.glob(f".*{TEMPORARY}")):
        if time.time() - path.lstat().st_mtime >= older_than:
            yield Doomed(path=str(path), run=run, what="unfinished", bytes=disk_size(path), why="left by a process that died")


def _check_idle(run: Path) -> None:
    if is_live(run):
        raise RunError("this run is being trained now", where=str(run), fix="stop it first: Ctrl-C where it runs")


def _record(run: Path) -> dict[str, Any]:
    try:
        return read_record(run)
    except MlxforgeError:
        return {}


def _ended(run: Path, record: dict[str, Any]) -> float:
    return moment(record.get("ended")) or max(run.stat().st_mtime, moment(record.get("created")) or 0.0)
