"""What models gave for rows, kept as it comes: a job that was stopped or killed goes on, and a model is not asked twice."""

from __future__ import annotations

import json
from typing import IO, Any

from mlxforge.core.files import cache_dir, disk_errors

VERSION = 1  # raise it when what a model gives for a row changes


class Kept:
    """A file of lines ``[key, value]``, to which every new one is added at once. A last line that broke off is left out.

    ``added`` counts the new ones.
    """

    def __init__(self, name: str, fresh: bool = False) -> None:
        self.path = cache_dir() / "eval" / f"{name}.jsonl"
        self.found: dict[str, Any] = {}
        self.added = 0
        self._file: IO[bytes] | None = None
        self._begin = b""
        if fresh:
            with disk_errors(self.path):
                self.path.unlink(missing_ok=True)
        self._read()

    def _read(self) -> None:
        try:
            data = self.path.read_bytes()
        except OSError:
            return
        self._begin = b"" if data.endswith(b"\n") else b"\n"
        for line in data.splitlines():
            try:
                key, value = json.loads(line)
            except ValueError:  # two processes, or one that was killed
                continue
            self.found[key] = value

    def get(self, key: str) -> Any:
        """What is kept; None where nothing is."""
        return self.found.get(key)

    def add(self, key: str, value: Any) -> None:
        """Keeps one value, also where the process is killed next."""
        self.found[key] = value
        self.added += 1
        with disk_errors(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - held until the end
            # One write for a line, so that the lines of two processes do not mix; a line that broke off gets its end.
            self._file.write(self._begin + json.dumps([key, value]).encode() + b"\n")
            self._begin = b""

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
