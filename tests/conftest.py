"""What tests share: the shipped tiny model, a small folder of documents, a scratch cache."""

from __future__ import annotations

import os

import pytest

from mlxforge.core.blas import load_blas

# The products of a tiny model are small: more threads would spend their time waiting for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
load_blas()
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True, scope="session")
def scratch_cache(tmp_path_factory):
    """Token caches go to a folder of this test session."""
    os.environ["MLXFORGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


WORDS = "the mill stands by the river and its wheel turns slowly while the miller counts his sacks of flour at noon".split()


def sentence(seed: int, words: int) -> str:
    """A line of words that depends on ``seed`` alone."""
    return " ".join(WORDS[(seed * 7 + i * (1 + seed % 5)) % len(WORDS)] for i in range(words)).capitalize() + f" {seed}."


@pytest.fixture(scope="session")
def documents(tmp_path_factory):
    """A folder of 24 short documents of unequal length."""
    folder = tmp_path_factory.mktemp("documents")
    for seed in range(24):
        lines = [sentence(seed * 10 + i, 4 + (seed * 5 + i) % 12) for i in range(1 + seed % 6)]
        (folder / f"{seed:02d}.txt").write_text("\n\n".join(lines) + "\n")
    return folder
