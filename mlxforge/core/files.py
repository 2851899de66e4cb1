"""Files that are whole or not there: atomic writes, locks, hashes, and where the embedded data lies."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlxforge.core.errors import ConfigError, MlxforgeError, RunError

TEMPORARY = ".unfinished"  # suffix of what is being written; a process that was killed leaves it behind
PACKAGE = Path(__file__).resolve().parent.parent


def embedded(*parts: str) -> Path:
    """A file or folder shipped with mlxforge: ``embedded("data", "tiny")``, ``embedded("configs")``.

    In a wheel they lie in ``mlxforge/_shipped``, in a checkout beside the package.
    """
    shipped = PACKAGE / "_shipped"
    return (shipped if shipped.is_dir() else PACKAGE.parent).joinpath(*parts)


def cache_dir() -> Path:
    """``$MLXFORGE_CACHE``, else ``$XDG_CACHE_HOME/mlxforge``, else ``~/.cache/mlxforge``."""
    if named := os.environ.get("MLXFORGE_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mlxforge"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk or a forbidden folder into one clear line; earlier state stays as it was."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise MlxforgeError(f"cannot write: {reason}", where=str(path), fix="free space or choose another folder") from error


@contextmanager
def array_errors(directory: Path) -> Iterator[None]:
    """Turns MLX's failed write, a RuntimeError without errno, into an OSError; the disk itself is asked for the reason."""
    try:
        yield
    except RuntimeError as error:
        if "[write]" not in str(error):
            raise
        full = shutil.disk_usage(directory).free < 1 << 20
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error


def sync(path: Path) -> None:
    """Flushes a file, or the entries of a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replaces ``path`` in one step: a reader, or a machine that dies, sees the old file or the new one."""
    data = content.encode() if isinstance(content, str) else content
    with disk_errors(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A large file that appears whole: yields a temporary sibling to fill, which takes the name ``path`` at the end.

    An existing ``path`` is replaced. On an error nothing is left behind and ``path`` is as it was.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            sync(temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def free_space(path: Path) -> int:
    """Bytes that are free on the disk where ``path`` is to be."""
    home = next(parent for parent in path.absolute().parents if parent.is_dir())
    with disk_errors(path):
        return shutil.disk_usage(home).free


def disk_size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count for nothing, nor does what is gone meanwhile."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for file in (Path(folder, name) for name in names):
            with suppress(OSError):
                total += 0 if file.is_symlink() else file.lstat().st_size
    return total


def check_new_directory(
    path: Path, inputs: tuple[Path, ...], force: bool, *, what: str, kind: str, ours: Callable[[Path], bool]
) -> None:
    """Refuses an output folder that is there already, unless it may and can be replaced.

    Args:
        inputs: what the output is made of.
        what, kind: what is written, and what a folder that may be replaced is called; ``ours`` tells such a one.

    Raises:
        ConfigError: it is there without ``force``, is of another kind, or is or holds one of the inputs.
    """
    place = path.resolve()
    if any(place == one.resolve() or place in one.resolve().parents for one in inputs):
        raise ConfigError(f"the {what} would replace what it is made of", where=str(path), fix="name another folder")
    if not os.path.lexists(path):
        return
    if not force:
        raise ConfigError("is there already", where=str(path), fix="--force replaces it")
    if not path.is_dir() or (any(path.iterdir()) and not ours(path)):
        raise ConfigError(f"is no {kind}, so it is not replaced", where=str(path), fix="name another folder")


@contextmanager
def new_directory(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A folder that appears whole: yields a temporary sibling to fill, which takes the name ``path`` at the end.

    An existing ``path`` is replaced, or is an error (EEXIST) where ``replace`` is false. On an error nothing is left behind.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                sync(file)
            sync(temporary)
            os.chmod(temporary, 0o755)
            if replace:
                shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
            sync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def point(link: Path, target: str) -> None:
    """Makes ``link`` a relative symbolic link to ``target``, in one step."""
    with disk_errors(link):
        temporary = link.with_name(f".{link.name}{TEMPORARY}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, link)
        sync(link.parent)


def sweep(directory: Path, older_than: float = 0.0, name: str = "") -> None:
    """Removes what killed processes left unfinished in ``directory`` (of one name alone), if it is older than some seconds."""
    for path in directory.glob(f".{glob.escape(name)}.*{TEMPORARY}" if name else f".*{TEMPORARY}"):
        if time.time() - path.lstat().st_mtime < older_than:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds ``directory`` for this process alone; the lock goes with the process, however it ends."""
    with hold(directory / ".lock", "another process is writing this run", str(directory)):
        yield


@contextmanager
def hold(path: Path, what: str, where: str) -> Iterator[None]:
    """Holds a lock file, which is made where it is missing and stays.

    Raises:
        RunError: another process holds it; ``what`` and ``where`` say so.
    """
    with disk_errors(path.parent):
        file = open(path, "a")  # noqa: SIM115 - held until the end
    with file:
        for last in (False, False, True):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if last:
                    raise RunError(what, where=where, fix="wait for it or stop it") from None
                # Somebody who looks whether the run lives holds the lock for a moment.
                time.sleep(0.1)
        yield


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def bytes_hash(*parts: bytes | str) -> str:
    """SHA-256 of several parts; each part's length is hashed too, so that boundaries count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
