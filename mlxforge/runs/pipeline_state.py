"""What the stages of a project left: one small record each, read again to know what need not be done twice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.errors import RunError
from mlxforge.core.files import bytes_hash, disk_errors, file_hash, locked, write_atomic
from mlxforge.data.kb import content_hash
from mlxforge.runs.record import is_live

FOLDER = ".forge"
HASHES = "hashes.json"
SQLITE = b"SQLite format 3\0"
RUNNING, DONE = "running", "done"
MISSING = "missing"


class Record(msgspec.Struct, kw_only=True):
    """What is known of one stage (of one variant).

    Attributes:
        key: hash of settings and inputs.
        status: 'running' from its start until it is 'done'.
        run: name of its run, where it trains.
        outputs: path -> hash of what it made; paths are as seen from the project's folder.
        seconds, peak_memory: of all its sittings, and bytes that MLX held in the last; started, ended: seconds since the epoch.
        result: what it came to, as its own command tells it with ``--json``; until it is done what it came to before.
    """

    stage: str
    variant: str = ""
    status: str = RUNNING
    key: str = ""
    settings: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    run: str = ""
    seconds: float = 0.0
    peak_memory: int = 0
    started: float = 0.0
    ended: float = 0.0
    result: dict[str, Any] = {}


class Ledger:
    """The records of a project, in ``.forge`` beside its file, and the hashes of files that it looked at."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / FOLDER
        self._hashes: dict[str, tuple[int, int, str]] = self._known()

    def read(self, name: str) -> Record | None:
        """The record of a stage; None where there is none that can be read."""
        try:
            return msgspec.json.decode((self.folder / f"{name}.json").read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, name: str, record: Record) -> None:
        """Replaces the record of a stage in one step."""
        self._make()
        plain = msgspec.json.decode(msgspec.json.encode(record))
        write_atomic(self.folder / f"{name}.json", json.dumps(plain, indent=1, ensure_ascii=False) + "\n")

    def hash(self, path: Path) -> str:
        """Hash of what a file or folder holds, or ``missing``; of a knowledge base its texts in force."""
        if path.is_dir():
            files = [file for file in _below(path) if file.is_file()]
            return bytes_hash(*(part for file in files for part in (file.relative_to(path).as_posix(), self.hash(file))))
        try:
            state = path.stat()
        except OSError:
            return MISSING
        if _is_sqlite(path):
            return content_hash(path)
        name, known = str(path.absolute()), (state.st_size, state.st_mtime_ns)
        kept = self._hashes.get(name)
        if kept is None or kept[:2] != known:
            kept = (*known, file_hash(path))
            self._hashes[name] = kept
        return kept[2]

    def keep_hashes(self) -> None:
        """Writes the hashes down, so that large files are not read again."""
        self._make()
        there = {name: kept for name, kept in self._hashes.items() if os.path.lexists(name)}
        write_atomic(self.folder / HASHES, json.dumps(there))

    def shown(self, path: Path) -> str:
        """A path as seen from the project's folder."""
        return os.path.relpath(path, self.root)

    def unchanged(self, record: Record) -> str:
        """Why the outputs of a record are not as they were; empty where they are."""
        for name, known in record.outputs.items():
            now = self.hash(self.root / name)
            if now != known:
                return f"{name} is {'gone' if now == MISSING else 'changed'}"
        return ""

    @property
    def live(self) -> bool:
        """Whether a pipeline works on the project now."""
        return is_live(self.folder)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the project for this process.

        Raises:
            RunError: another pipeline works on it.
        """
        self._make()
        if self.live:
            raise RunError("another pipeline works on this project", where=str(self.root), fix="wait for it or stop it")
        with locked(self.folder):
            yield

    def _make(self) -> None:
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def _known(self) -> dict[str, tuple[int, int, str]]:
        try:
            return msgspec.json.decode((self.folder / HASHES).read_bytes(), type=dict[str, tuple[int, int, str]])
        except (OSError, msgspec.MsgspecError):
            return {}


def key_of(settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """What makes one execution of a stage another than a second."""
    return bytes_hash(json.dumps([settings, inputs], sort_keys=True))


def differences(record: Record, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """What changed since a record was made, in words."""
    keys = [key for key in settings.keys() | record.settings.keys() if settings.get(key) != record.settings.get(key)]
    files = [name for name in inputs.keys() | record.inputs.keys() if inputs.get(name) != record.inputs.get(name)]
    return _listed(sorted(keys) + sorted(files)) + " changed"


def finished(record: Record, began: float) -> Record:
    """The record of a stage that ended now."""
    now = time.time()
    return msgspec.structs.replace(record, status=DONE, ended=now, seconds=round(record.seconds + now - began, 2))


def _listed(words: Iterable[str], most: int = 3) -> str:
    names = list(words)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _below(folder: Path) -> Iterator[Path]:
    """All below a folder in order, hidden names left out."""
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith("."):
            yield from _below(entry) if entry.is_dir() else [entry]


def _is_sqlite(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(SQLITE)) == SQLITE
    except OSError:
        return False
