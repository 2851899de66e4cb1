"""Documents into a knowledge base: found, read by workers, cleaned, cut, and written one transaction a document."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxforge.core.errors import DataError, ModelError
from mlxforge.core.events import Emit, Noted, Progress, Warned, ignore
from mlxforge.core.files import bytes_hash
from mlxforge.data.readers import Reading, shown
from mlxforge.data.sources import walk
from mlxforge.knowledge.chroma import Record, read_chroma
from mlxforge.knowledge.chunk import OVERLAP, SIZE, Text
from mlxforge.knowledge.chunk import chunks as cut
from mlxforge.knowledge.clean import STEPS, chosen
from mlxforge.knowledge.count import Counter as TokenCounter
from mlxforge.knowledge.language import language
from mlxforge.knowledge.readers import READERS
from mlxforge.knowledge.readers.table import check_extras
from mlxforge.knowledge.reading import Outcome, Recipe, Task, counter, recipe
from mlxforge.knowledge.store import Chunk, Document, Store, now, open_store
from mlxforge.knowledge.workers import outcomes
from mlxforge.models.hub import DESCRIPTION, is_folder, local, resolve_model
from mlxforge.runs.text import expand

SHOWN = 20  # files that could not be read, told while it runs; the result holds all
TASK = "reading documents"
GROUP, MOST = 8 << 20, 512  # bytes and files that are written together
LONGEST = 2.0  # seconds that what was read waits for that: a kill loses it
CACHE = 65536  # KiB of the store that its writer keeps in memory
CHECKPOINT = 8192  # pages of the log before they are put into the file


@dataclass(frozen=True)
class IngestSettings:
    """How documents are read. None is what the store was made with; for a new one ``tiny``, 500 tokens, 50 tokens, none.

    Attributes:
        model: whose tokenizer counts.
        size: tokens of a chunk.
        overlap: tokens of a chunk that the next repeats.
        keep: cleaning steps that are turned off.
    """

    model: str | None = None
    size: int | None = None
    overlap: int | None = None
    keep: tuple[str, ...] | None = None


@dataclass
class Tally:
    """What was done, as the result tells it."""

    states: Counter[str] = field(default_factory=Counter)
    cleaned: Counter[str] = field(default_factory=Counter)
    failed: list[dict[str, str]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    chunks: int = 0
    tokens: int = 0
    bytes: int = 0


def ingest(
    paths: Sequence[str],
    store_path: Path,
    settings: IngestSettings | None = None,
    *,
    chroma: Path | None = None,
    collection: str = "",
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Reads files and folders, or a Chroma collection, into a knowledge base.

    Unchanged files are skipped, changed ones replaced (edits stay with chunks whose text stays), and files that a named folder
    no longer has are marked removed until they are back. A file that cannot be read is named; what the store has of it stays.

    Returns:
        ``store``; ``documents``: how many were ``added``, ``changed``, ``unchanged``, ``revived``, ``removed``, ``failed``;
        ``chunks``, ``tokens`` and ``bytes`` of what was read now; ``cleaned`` (counts by step); ``failed`` (``path`` and
        ``reason`` of each); ``removed`` (paths); ``skipped`` (files of other kinds, by suffix); ``orphans`` (edits that
        lost their chunk now); ``seconds``; ``total`` (documents, chunks, tokens in force).

    Raises:
        ConfigError: an overlap too large, an unknown cleaning step.
        DataError: no such file, nothing to read, or a store that cannot be used.
        MissingExtraError: a package of the extra ``docs`` is missing for a file that is there.
        ModelError: no such model, or one without a tokenizer.json.
    """
    begun = time.perf_counter()
    tally = Tally()
    records = read_chroma(chroma, collection) if chroma else []
    if chroma and not records:
        raise DataError(f"the collection '{collection}' has no texts", where=str(chroma), fix="name another: --collection")
    roots = _roots(paths, tally.skipped, emit)
    check_extras({path.suffix.lower() for _, files, _ in roots for path in files})
    with _opened(store_path) as store:
        asked = _settled(settings or IngestSettings(), store)
        given = _recipe(asked)
        with store.writing():  # locked by another: said before anything is read
            _remember(store, asked, emit)
        orphans = _orphans(store)
        _files(store, roots, given, tally, emit)
        if chroma:
            _collection(store, records, f"chroma:{collection}", given, tally, emit)
        return _result(store, tally, time.perf_counter() - begun, _orphans(store) - orphans)


Root = tuple[Path, list[Path], bool]  # what the user named, its files, and whether all of its folders could be read


def _roots(paths: Sequence[str], skipped: Counter[str], emit: Emit) -> list[Root]:
    """The files behind what the user names, each once."""
    problems, roots = Reading(), list[Root]()
    seen: set[Path] = set()
    for spec in paths:
        root = Path(expand(spec)).expanduser()
        files, whole = _below(root, problems, skipped, emit)
        place = root.resolve()
        files = [place / path.relative_to(root) for path in files]
        roots.append((place, [path for path in files if path not in seen], whole))
        seen.update(files)
    problems.check()
    return roots


def _below(root: Path, problems: Reading, skipped: Counter[str], emit: Emit) -> tuple[list[Path], bool]:
    if root.is_dir():
        refused = Reading(skip_bad=True)
        files = walk(root, refused, skipped, READERS)
        for problem in refused.problems:
            emit(Warned(message=f"{problem.where}: {problem.what}: what the store has of it stays"))
        if not files:
            fix = "PDF, Office, HTML, EPUB, Markdown, text, data and source code are read; mlxforge kb drop takes documents out"
            problems.problem("nothing in the folder can be read", shown(root), fix)
        return files, not refused.met
    if root.is_file() and root.suffix.lower() in READERS:
        return [root], True
    what = (
        f"cannot read '{root.suffix}' files"
        if root.is_file()
        else "not a regular file"
        if root.exists()
        else "no such file or folder"
    )
    problems.problem(what, shown(root), f"readable: {' '.join(sorted(READERS))}" if root.is_file() else "")
    return [], False


@contextmanager
def _opened(path: Path) -> Iterator[Store]:
    """The store, made where there is none; a new one that got no document is taken away again."""
    new = not path.exists()
    empty = False
    try:
        with open_store(path, create=True) as store:
            store.connection.execute(f"PRAGMA cache_size = -{CACHE}")
            store.connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT}")
            try:
                yield store
            finally:
                empty = new and not store.rows("SELECT 1 FROM documents LIMIT 1")
    finally:
        if empty:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)


def _settled(asked: IngestSettings, store: Store) -> IngestSettings:
    """What was asked for, else what the store was made with, else the defaults."""
    kept = store.about("keep")
    model = asked.model or store.about("model") or "tiny"
    return IngestSettings(
        model=str(local(model).resolve()) if model != "tiny" and is_folder(model) else model,
        size=int(store.about("size") or SIZE) if asked.size is None else asked.size,
        overlap=int(store.about("overlap") or OVERLAP) if asked.overlap is None else asked.overlap,
        keep=tuple(kept.split(",") if kept else ()) if asked.keep is None else asked.keep,
    )


def _recipe(asked: IngestSettings) -> Recipe:
    """Everything that can be wrong with the settings is said here."""
    assert asked.model is not None
    assert asked.size is not None
    assert asked.overlap is not None
    steps = chosen(asked.keep or ())
    model = resolve_model(asked.model, DESCRIPTION)
    if not (model / "tokenizer.json").is_file():
        raise ModelError("no tokenizer.json", where=asked.model, fix="name a model that has one: --model tiny")
    cut(Text(""), counter(model), asked.size, asked.overlap)
    return recipe(model, steps, asked.size, asked.overlap)


def _remember(store: Store, asked: IngestSettings, emit: Emit) -> None:
    """Notes the settings in the store, for the next time and for what counts tokens of edits."""
    before = store.about("model")
    if before and before != asked.model:
        emit(
            Warned(message=f"tokens were counted with {before} until now: documents that are not read again keep those counts")
        )
    for name, value in (("model", asked.model), ("size", asked.size), ("overlap", asked.overlap)):
        store.note(name, str(value))
    store.note("keep", ",".join(name for name in STEPS if name in (asked.keep or ())))


def _files(store: Store, roots: Iterable[Root], given: Recipe, tally: Tally, emit: Emit) -> None:
    """Reads what the roots hold and marks what they no longer hold."""
    before = {row["path"]: row for row in store.rows("SELECT path, hash, settings, removed FROM documents")}
    tasks = []
    for root, files, _ in roots:
        for path in files:
            row = before.get(name := _name(path))
            tasks.append(Task(path, name, _name(root), (row["hash"], row["settings"]) if row else None))
    waiting: list[Outcome] = []
    written = time.monotonic()
    with ThreadPoolExecutor(1) as thread:  # writes one group while the next is taken in
        writing = thread.submit(_write, store, [])
        told: list[Outcome] = []

        def hand_over() -> None:
            nonlocal waiting, written, writing, told
            writing.result()
            _tell(told, before, tally, emit)
            writing, told = thread.submit(_write, store, waiting), waiting
            waiting, written = [], time.monotonic()

        try:
            for number, outcome in enumerate(outcomes(tasks, given), 1):
                waiting.append(outcome)
                full = sum(one.document.bytes for one in waiting if one.document) > GROUP or len(waiting) == MOST
                if full or time.monotonic() - written > LONGEST:
                    hand_over()
                emit(Progress(task=TASK, done=number, total=len(tasks), unit="files"))
        finally:  # stopped by Ctrl-C too: what was read is kept
            hand_over()
            hand_over()
    found = {task.name for task in tasks}
    for root, _, whole in roots:
        if whole and root.is_dir():
            inside = f"{_name(root).rstrip('/')}/"
            _missing(store, [name for name in before if name.startswith(inside) and name not in found], tally)
    if len(tally.failed) > SHOWN:
        emit(Noted(message=f"{len(tally.failed) - SHOWN} more files could not be read"))


def _write(store: Store, found: Sequence[Outcome]) -> None:
    """Writes what became of some files in one transaction: each of their documents is in the store whole, or not."""
    with store.writing():
        store.put_all((one.document, one.chunks) for one in found if one.document)
        same = [(one.task.name,) for one in found if one.document is None and not one.error]
        store.connection.executemany("UPDATE documents SET removed = NULL WHERE path = ? AND removed IS NOT NULL", same)


def _tell(found: Sequence[Outcome], before: dict[str, Any], tally: Tally, emit: Emit) -> None:
    """Counts what was written, and says what could not be read."""
    for one in found:
        name = one.task.name
        if one.error:
            tally.failed.append({"path": name, "reason": one.error})
            tally.states["failed"] += 1
            if len(tally.failed) <= SHOWN:
                stays = ": what the store has of it stays" if name in before else ""
                emit(Warned(message=f"not read: {name}: {one.error}{stays}"))
        elif one.document is None:
            tally.states["unchanged" if before[name]["removed"] is None else "revived"] += 1
        else:
            _count(one.document, one.chunks, tally, changed=name in before)
            tally.cleaned.update(one.cleaned)


def _name(path: Path) -> str:
    """What the store calls a file or folder. On Linux a name is any bytes: those that are no UTF-8 stand as ``\\xff``, so that
    no two files are called the same."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _count(document: Document, chunks: Sequence[Chunk], tally: Tally, *, changed: bool) -> None:
    tally.states["changed" if changed else "added"] += 1
    tally.chunks += len(chunks)
    tally.tokens += sum(chunk.tokens for chunk in chunks)
    tally.bytes += document.bytes


def _missing(store: Store, names: Sequence[str], tally: Tally) -> None:
    """Marks documents removed, in one transaction."""
    if not names:
        return
    with store.writing() as connection:
        for name in names:
            changed = connection.execute("UPDATE documents SET removed = ? WHERE path = ? AND removed IS NULL", (now(), name))
            if changed.rowcount:
                tally.removed.append(name)
                tally.states["removed"] += 1


def _collection(store: Store, records: Sequence[Record], root: str, given: Recipe, tally: Tally, emit: Emit) -> None:
    """A document a source, its chunks as they are in the collection: nothing is cleaned or cut."""
    before = {row["path"]: row for row in store.rows("SELECT path, hash, removed FROM documents WHERE root = ?", (root,))}
    sources: dict[str, list[Record]] = {}
    for record in records:
        sources.setdefault(record.source, []).append(record)
    counts = counter(given.model)
    for number, (source, members) in enumerate(sources.items(), 1):
        document, chunks = _imported(source, members, root, counts)
        row = before.get(document.path)
        if row and row["hash"] == document.hash and row["removed"] is None:
            tally.states["unchanged"] += 1
        else:
            with store.writing():
                store.put(document, chunks)
            _count(document, chunks, tally, changed=row is not None)
        before.pop(document.path, None)
        emit(Progress(task="reading the collection", done=number, total=len(sources), unit="documents"))
    _missing(store, list(before), tally)


def _imported(source: str, members: Sequence[Record], root: str, counts: TokenCounter) -> tuple[Document, list[Chunk]]:
    chunks: list[Chunk] = []
    place = 0
    for record in members:
        text = record.text.replace("\0", "")
        text += "" if text.endswith("\n") else "\n\n"  # chunks of a store carry no space between them
        chunks.append(Chunk(text, counts.count(text), record.heading, record.page, place, place + len(text), 0))
        place += len(text)
    whole = "".join(chunk.text for chunk in chunks)
    title = Path(source).name or root
    key = bytes_hash(*(part for record in members for part in (record.text, record.heading, str(record.page))))
    path = f"{root}/{source}" if source else root
    return Document(path, root, key, title, "chroma", language(whole), len(whole.encode()), "", "{}"), chunks


def _orphans(store: Store) -> int:
    return int(store.rows("SELECT count(*) AS count FROM orphans")[0]["count"])


def _result(store: Store, tally: Tally, seconds: float, orphans: int) -> dict[str, Any]:
    states = ("added", "changed", "unchanged", "revived", "removed", "failed")
    total = store.rows(
        "SELECT count(DISTINCT document) AS documents, count(*) AS chunks, coalesce(sum(tokens), 0) AS tokens FROM current"
    )
    return {
        "store": str(store.path),
        "documents": {name: tally.states[name] for name in states},
        "chunks": tally.chunks,
        "tokens": tally.tokens,
        "bytes": tally.bytes,
        "cleaned": {name: tally.cleaned[name] for name in sorted(tally.cleaned)},
        "failed": tally.failed,
        "removed": tally.removed,
        "skipped": dict(sorted((+tally.skipped).items())),
        "orphans": orphans,
        "seconds": round(seconds, 3),
        "total": total[0],
    }
