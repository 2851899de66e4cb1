"""Metrics of generated answers: against references, and of the answers alone. An empty answer is worth 0."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from mlxforge.core.errors import MissingExtraError
from mlxforge.evals.graded import Graded

if TYPE_CHECKING:
    from mlxforge.evals.estimators import Array

Terms = tuple[float, ...] | None  # None: the row has not what the metric is of

ARTICLES = re.compile(r"\b(a|an|the)\b")
UNPUNCTUATED = str.maketrans("", "", string.punctuation)
WORD = re.compile(r"[^\W_]+")
GRAM = 4


def normalized(text: str) -> str:
    """SQuAD's normalisation (arXiv 1606.05250, section 6.1): lower case; no ASCII punctuation, articles, spare white space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(UNPUNCTUATED)).split())


def exact(answer: str, reference: str) -> float:
    """1 where both are the same after SQuAD's normalisation."""
    return float(normalized(answer) == normalized(reference))


def f1(answer: str, reference: str) -> float:
    """F1 of the normalised words that both share; where one has no words, 1 if the other has none either."""
    one, other = normalized(answer).split(), normalized(reference).split()
    if not one or not other:
        return float(one == other)
    return 2 * (Counter(one) & Counter(other)).total() / (len(one) + len(other))


def best(score: Callable[[str, str], float]) -> Callable[[Graded], Terms]:
    """The score against the reference that it fits best."""

    def terms(row: Graded) -> Terms:
        if row.answer is None or not row.references:
            return None
        return (0.0,) if row.empty else (max(score(row.answer, reference) for reference in row.references),)

    return terms


class Words:
    """rouge-score's words, of any script: its own tokenizer knows a-z and 0-9 alone. The same where a text has no others."""

    def tokenize(self, text: str) -> list[str]:
        """Runs of letters and digits in lower case."""
        return WORD.findall(text.lower())


@cache
def _rouge(kind: str) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingExtraError("rouge-score", "eval", "ROUGE") from error
    return RougeScorer([kind], tokenizer=Words())


def rouge(kind: str) -> Callable[[Graded], Terms]:
    """F-measure of ROUGE (Lin 2004) by rouge-score, without stemming: ``rouge1``, ``rouge2`` or ``rougeL``."""

    def score(answer: str, reference: str) -> float:
        return float(_rouge(kind).score(reference, answer)[kind].fmeasure)

    return best(score)


@cache
def _bleu() -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise MissingExtraError("sacrebleu", "eval", "BLEU") from error
    return BLEU(effective_order=False)


def bleu_terms(row: Graded) -> Terms:
    """What corpus BLEU is summed from (arXiv 1804.08771, tokenizer 13a): 4 matches, 4 totals, both lengths, by sacrebleu."""
    if row.answer is None or not row.references:
        return None
    found = _bleu().corpus_score([row.answer.strip()], [[reference] for reference in row.references])
    return (*found.counts, *found.totals, found.sys_len, found.ref_len)


def bleu(terms: Array, counts: Array) -> Array:
    """Corpus BLEU of each draw, 0 to 100."""
    import numpy as np

    return np.array([_of_sums(sums, effective=False) for sums in counts @ terms])


def bleu_row(terms: Array) -> list[float]:
    """Sentence BLEU of each row: n-grams longer than the answer are left out."""
    return [_of_sums(sums, effective=True) for sums in terms]


def _of_sums(sums: Array, effective: bool) -> float:
    numbers = [round(float(number)) for number in sums]
    found = _bleu().compute_bleu(numbers[:4], numbers[4:8], *numbers[8:], smooth_method="exp", effective_order=effective)
    return float(found.score)


def stopped(row: Graded) -> Terms:
    """1 where the model ended the answer itself, 0 where the limit did."""
    return None if row.finish is None else (float(row.finish == "stop"),)


def repetition(row: Graded) -> Terms:
    """Share of the 4-grams of words that stood in the answer before: 1 - distinct / all; 0 for fewer than five words.

    Words are runs without white space. An answer that says one word over and over comes close to 1. An empty one is left out.
    """
    if row.answer is None or row.empty:
        return None
    words = row.answer.split()
    grams = [tuple(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1)]
    return (1 - len(set(grams)) / len(grams) if grams else 0.0,)
