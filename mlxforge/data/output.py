"""Files of rows that appear whole: written beside their place, then put there in one step."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mlxforge.core.errors import DataError
from mlxforge.core.files import TEMPORARY, disk_errors, sync
from mlxforge.data.readers import READERS

LINES = {".jsonl", ".ndjson", ".json"}  # suffixes under which JSON lines are read again


def check_outputs(paths: Sequence[Path], force: bool) -> None:
    """Stops before any work where an output cannot be written, or not be read again as the JSON lines that it will hold.

    Raises:
        DataError: an existing file without ``force``, something that is no file, a file where its folder would be, two
            outputs of one name, or the suffix of another kind of file.
    """
    for number, path in enumerate(paths):
        if path.suffix.lower() in READERS.keys() - LINES:
            raise DataError(f"JSON lines are not read from '{path.suffix}' files", where=str(path), fix="name a .jsonl file")
        if path.resolve() in {other.resolve() for other in paths[:number]}:
            raise DataError("two outputs in one file", where=str(path), fix="name another file for one of them")
        above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
        if not above.is_dir():
            raise DataError(f"'{above.name}' is a file, not a folder", where=str(path), fix="name another place")
        if os.path.lexists(path) and not path.is_file():
            raise DataError("not a regular file", where=str(path), fix="name a file to write")
        if path.exists() and not force:
            raise DataError("is there already", where=str(path), fix="--force replaces it")


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the name ``path`` at the end; on an error or an interrupt nothing is left behind."""
    with disk_errors(path):
        made = not path.parent.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
        try:
            with os.fdopen(handle, "wb", buffering=1 << 20) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
            sync(path.parent)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            if made:
                with suppress(OSError):  # somebody else's file is in it by now
                    path.parent.rmdir()
            raise
