"""Measures how fast documents become a knowledge base: MB/s of plain text, pages/s of PDF, and peak memory.

    python scripts/bench_ingest.py --megabytes 1000 [--file-kilobytes 100] [--model MODEL]
    python scripts/bench_ingest.py --pdf FOLDER

Text is made of invented words. The peak is the sum over all processes, looked at twice a second (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench_prepare import paragraphs


def write(folder: Path, megabytes: int, kilobytes: int) -> None:
    """Files of about ``kilobytes``, a hundred a folder, ``megabytes`` in all."""
    rng, texts = random.Random(1), paragraphs(5000)
    for number in range(megabytes * 1000 // kilobytes):
        place = folder / f"{number // 100:04d}"
        place.mkdir(exist_ok=True)
        with open(place / f"{number:06d}.txt", "w", encoding="utf-8") as file:
            written = 0
            while written < kilobytes * 1000:
                written += file.write(rng.choice(texts) + "\n\n")


def family(root: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents.setdefault(int((entry / "stat").read_text().rpartition(")")[2].split()[1]), []).append(int(entry.name))
            except OSError:
                continue
    found = [root]
    for process in found:
        found += parents.get(process, [])
    return found


def resident(process: int) -> int:
    """Bytes of memory that are a process's own: pages it shares with others are counted in part."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def measure(paths: list[str], store: Path, model: str) -> None:
    """Runs the command and prints its figures."""
    line = ["ingest", *paths, "--into", str(store), "--model", model, "--json"]
    code = "import sys; from mlxforge.cli.main import main; main(sys.argv[1:])"
    begun, before = time.perf_counter(), os.times()
    process = subprocess.Popen([sys.executable, "-c", code, *line], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    peak = [0]

    def watch() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], sum(map(resident, family(process.pid))))
            time.sleep(0.5)  # looking costs the processes time

    watcher = threading.Thread(target=watch)
    if sys.platform == "linux":
        watcher.start()
    output, _ = process.communicate()
    seconds, after = time.perf_counter() - begun, os.times()
    result = json.loads(output)
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    size = result["bytes"] / 1e6
    print(f"{size:.0f} MB, {sum(result['documents'].values())} files, {result['chunks']} chunks, {result['tokens']} tokens")
    print(f"{seconds:.1f} s: {size / seconds:.1f} MB/s; {spent:.1f} s of processor: {size / max(spent, 0.01):.1f} MB/s a core")
    print(f"peak {peak[0] / 1e6:.0f} MB, store {store.stat().st_size / 1e6:.0f} MB, failed {result['documents']['failed']}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--file-kilobytes", type=int, default=100)
    parser.add_argument("--pdf", type=Path, help="a folder of PDF files instead")
    parser.add_argument("--model", default="tiny")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "documents")
        folder.mkdir()
        if given.pdf is None:
            write(folder, given.megabytes, given.file_kilobytes)
            measure([str(folder)], Path(scratch, "kb.sqlite"), given.model)
            measure([str(folder)], Path(scratch, "kb.sqlite"), given.model)  # unchanged
            return
        import pypdfium2

        files = [path for path in sorted(given.pdf.rglob("*.pdf")) if path.is_file()]
        begun = time.perf_counter()
        measure([str(path) for path in files], Path(scratch, "kb.sqlite"), given.model)
        seconds = time.perf_counter() - begun
        pages = sum(len(pypdfium2.PdfDocument(path)) for path in files)
        print(f"{pages} pages: {pages / seconds:.0f} pages/s")


if __name__ == "__main__":
    main()
