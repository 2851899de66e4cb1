"""Measures how one big text file becomes tokens: seconds and peak memory, first and second time.

    python scripts/bench_prepare.py --megabytes 1000 [--tokenizer FILE] [--rows]

The file is made of invented words and removed again. ``--rows`` writes .jsonl documents instead of one .txt.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer

from mlxforge.core.files import embedded
from mlxforge.data.sources import parse_spec
from mlxforge.data.tokens import Encoder, prepare
from mlxforge.data.windows import windows


def paragraphs(count: int) -> list[str]:
    """Sentences of invented words, the frequent ones far more often, as in a language."""
    rng = random.Random(0)
    syllables = [a + b + c for a in "bcdfghklmnprstvw" for b in "aeiou" for c in ("", "n", "r", "s", "t")]
    words = ["".join(rng.choices(syllables, k=rng.choice((1, 1, 2, 2, 3)))) for _ in range(20_000)]
    odds = [1 / rank for rank in range(1, len(words) + 1)]
    found = []
    for _ in range(count):
        sentences = (" ".join(rng.choices(words, odds, k=rng.randint(4, 20))).capitalize() for _ in range(rng.randint(1, 6)))
        found.append(". ".join(sentences) + ".")
    return found


def write(path: Path, megabytes: int, rows: bool) -> None:
    """A file of about ``megabytes``."""
    rng, texts, written = random.Random(1), paragraphs(5000), 0
    with open(path, "w", encoding="utf-8") as file:
        while written < megabytes * 1_000_000:
            text = "\n\n".join(rng.choices(texts, k=10))
            written += file.write(json.dumps({"text": text}) + "\n" if rows else text + "\n\n")


def measure(path: Path, tokenizer: Path, cache: Path) -> None:
    """Prints one line of figures; run in a process of its own, so that the peak is its own."""
    loaded = Tokenizer.from_file(str(tokenizer))
    begun = time.perf_counter()
    tokens = prepare([parse_spec(str(path))], Encoder(loaded, 0, 0), cache=cache)
    prepared = time.perf_counter()
    count = len(windows(tokens, 1024))
    cut = time.perf_counter()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    size = f"{path.stat().st_size / 1e6:.0f} MB: {len(tokens):,} documents, {tokens.trained:,} tokens"
    times = f"{prepared - begun:.1f} s; {count:,} windows in {cut - prepared:.1f} s"
    print(f"{size} in {times}; peak memory {peak:.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--tokenizer", type=Path, default=embedded("data", "tiny", "tokenizer.json"))
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure[0], given.tokenizer, given.measure[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "big.jsonl" if given.rows else "big.txt")
        write(path, given.megabytes, given.rows)
        command = [sys.executable, __file__, "--tokenizer", str(given.tokenizer), "--measure", str(path), f"{folder}/cache"]
        for _ in range(2):
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
