"""How fast a knowledge base of 100,000 chunks answers: searches, lists, statistics.

python scripts/bench_kb.py [FOLDER] [CHUNKS]: makes FOLDER/kb.sqlite (about 300 MB) where it is not there, then measures.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlxforge.knowledge.store import Chunk, Document, open_store
from mlxforge.runs import kb

WORDS, PER_DOCUMENT, LENGTH = 30_000, 50, 320  # words of the vocabulary, chunks of a document, words of a chunk
QUERIES = {
    "a rare word": "w20000",
    "a common word": "w0",
    "two words": "w10 w300",
    "a question of nine words, any": "w0 w1 w2 w3 w40 w50 w600 w7000 w8000",
    "a phrase": '"w0 w1"',
    "a beginning": "w29*",
}


def make(path: Path, chunks: int) -> None:
    """A store of texts whose words are as unevenly common as those of a language (Zipf)."""
    random.seed(1)
    names = [f"w{number}" for number in range(WORDS)]
    weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(WORDS)))
    begun = time.perf_counter()
    with open_store(path, create=True) as store:
        for number in range(0, chunks, PER_DOCUMENT):
            place, cut = 0, []
            for _ in range(min(PER_DOCUMENT, chunks - number)):
                text = " ".join(random.choices(names, cum_weights=weights, k=LENGTH)) + "\n"
                cut.append(Chunk(text, LENGTH, "Part > Section", None, place, place + len(text), 0))
                place += len(text)
            one = Document(f"/bench/{number}.txt", "/bench", "h", f"Document {number}", "text", "en", place, "s", "{}")
            with store.writing():
                store.put(one, cut)
    print(f"made {path}: {chunks:,} chunks in {time.perf_counter() - begun:.0f} s")


def timed(work: Callable[[], Any], times: int = 9) -> str:
    """Median and longest of some runs, the first apart."""
    taken = []
    for _ in range(times + 1):
        begun = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - begun))
    return f"{statistics.median(taken[1:]):7.1f} ms  (longest {max(taken[1:]):.1f}, first {taken[0]:.1f})"


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    path = folder / "kb.sqlite"
    if not path.exists():
        make(path, int(sys.argv[2]) if len(sys.argv) > 2 else 100_000)
    for name, words in QUERIES.items():
        print(f"{name:<32} {timed(lambda words=words, name=name: kb.search(path, words, any_word=name.endswith('any')))}")
    print(f"{'list':<32} {timed(lambda: kb.list_documents(path), 3)}")
    print(f"{'stats':<32} {timed(lambda: kb.stats(path), 3)}")


if __name__ == "__main__":
    main()
