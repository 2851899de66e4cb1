"""Gates that a row must pass, each with a reason for what it refuses. They know words, not meaning: what they let through may
still be wrong, and a judge or a person sees it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlxforge.knowledge.schemas import problem, record, shape
from mlxforge.knowledge.styles import Style

# Share of an answer's words that its passage must have: where the quote is found, and where it is not.
QUOTED, UNQUOTED = 0.2, 0.6
LEAST_QUOTE = 3  # words
COMMON = 2  # words that a question must share with its passage where it has no name in common with it
WORD = 4  # letters from which on a word counts

# The order in which they are asked.
ABOUT = {
    "schema": "not the JSON that was asked for",
    "length": "a part is too short or too long",
    "reference": "speaks of a text that a reader does not have",
    "subject": "the question does not say what it is about",
    "grounded": "the passage does not bear the answer",
    "duplicate": "says what an earlier row says",
    "judge": "the judge's score is too low",
}  # fmt: skip

TEXT = r"(?:text|passage|excerpt|extract|snippet|document|context|article|paragraph|section)"
REFERENCES = re.compile(
    "|".join(
        (
            rf"\b(?:according to|based on|from|in|by|of) (?:the|this|that) (?:above |given |provided |following )?{TEXT}s?\b",
            rf"\b{TEXT}s? (?:above|below|provided|given|says?|states?|mentions?|describes?|does not|doesn't)\b",
            r"\b(?:mentioned|described|stated|shown|given|provided|discussed) (?:above|below|here)\b",
            r"\bthe (?:author|passage|excerpt)\b",
            r"\b(?:laut|gemäß|nach|in|aus|im) (?:dem |diesem |des )?(?:obigen )?(?:Text|Abschnitt|Auszug|Dokument|Artikel)\b",
            r"\b(?:oben|unten) (?:genannt|erwähnt|beschrieben)",
            r"\b(?:selon|dans|d['’]après) (?:le |la |ce |cet |l['’])?(?:texte|passage|extrait|document|article)\b",
            r"\b(?:según|en) (?:el|este) (?:texto|pasaje|fragmento|documento|artículo)\b",
        )
    ),
    re.IGNORECASE,
)
WORDS = re.compile(r"[^\W_]+")
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
SENTENCE = re.compile(r"(?:\A|[.!?:;]\s+|\n\s*|[\"“”'‘(]\s*)$")


@dataclass(frozen=True)
class Passage:
    """A chunk with its overlap, as a prompt shows it. ``start`` and ``end`` are its place in the cleaned document; ``start`` is
    None where an edit has moved the characters."""

    document: str
    title: str
    chunk: int
    heading: str
    text: str
    start: int | None
    span: tuple[int, int]

    @cached_property
    def stems(self) -> set[str]:
        """The beginnings of its words, title and headings included."""
        return stems(f"{self.title} {self.heading} {self.text}")

    @cached_property
    def names(self) -> set[str]:
        """The names in it, title and headings included."""
        return names(self.text) | {word.lower() for part in (self.title, self.heading) for word in WORDS.findall(part)}

    @cached_property
    def numbers(self) -> set[str]:
        """The numbers in it."""
        return numbers(f"{self.title} {self.heading} {self.text}")


@dataclass(frozen=True)
class Candidate:
    """A row before the gates: the values of a model's answer."""

    style: Style
    values: Mapping[str, Any]
    passage: Passage

    @cached_property
    def turns(self) -> list[str]:
        """User and assistant in turn."""
        return self.style.turns(self.values)

    @property
    def question(self) -> str:
        """The first turn."""
        return self.turns[0]

    @property
    def answer(self) -> str:
        """All that the assistant says."""
        return "\n".join(self.turns[1::2])

    @property
    def span(self) -> tuple[int, int]:
        """Where the quote stands in the cleaned document; the chunk's own place where that is not known."""
        found = find_quote(str(self.values["quote"]), self.passage.text)
        if found is None or self.passage.start is None:
            return self.passage.span
        return self.passage.start + found[0], self.passage.start + found[1]


def stems(text: str) -> set[str]:
    """The beginnings of the words that carry meaning: two thirds of a word, so that endings do not count."""
    found: set[str] = set()
    for word in WORDS.findall(unicodedata.normalize("NFKC", text).lower()):
        if CJK.fullmatch(word):
            found.update(word[i : i + 2] for i in range(max(1, len(word) - 1)))
        elif len(word) >= WORD or any(map(str.isdigit, word)):
            found.add(word if word[0].isdigit() else word[: max(WORD, len(word) * 2 // 3)])
    return found


def names(text: str) -> set[str]:
    """Words with a capital letter inside a sentence, or with a digit; in lower case."""
    found = set()
    for match in WORDS.finditer(text):
        word = match[0]
        if any(map(str.isdigit, word)) or (word[0].isupper() and len(word) > 1 and not _begins(text, match.start())):
            found.add(word.lower())
    return found


def _begins(text: str, place: int) -> bool:
    return bool(SENTENCE.search(text[max(0, place - 4) : place])) if place else True


def numbers(text: str) -> set[str]:
    """Numbers, without the marks that group their digits."""
    return {re.sub(r"[,'’\u202f](?=\d{3})", "", number) for number in re.findall(r"\d+(?:[.,'’\u202f]\d+)*", text)}


def find_quote(quote: str, passage: str) -> tuple[int, int] | None:
    """(start, end) of a quote in a passage, whatever stands between its words; None where it is not there or too short."""
    words = WORDS.findall(quote)
    if len(words) < LEAST_QUOTE and len("".join(words)) < 4 * LEAST_QUOTE:
        return None
    found = re.search(r"[\W_]+".join(map(re.escape, words)), passage, re.IGNORECASE)
    return found.span() if found else None


def share(text: str, known: set[str]) -> float:
    """The share of a text's words that are known; 1 for a text without any."""
    found = stems(text)
    return len(found & known) / len(found) if found else 1.0


def fits(candidate: Candidate) -> str:
    """Whether a row has the form of its style."""
    return problem(candidate.values, shape(record(**candidate.style.fields)))


def length(candidate: Candidate) -> str:
    """Whether each part has a length within its bounds."""
    return problem(candidate.values, record(**candidate.style.fields))


def reference(candidate: Candidate) -> str:
    """Whether all can be understood without the passage in hand."""
    found = next((found for turn in candidate.turns if (found := REFERENCES.search(turn))), None)
    return f"says '{' '.join(found[0].split())}'" if found else ""


def subject(candidate: Candidate) -> str:
    """Whether the question names something that its document names."""
    question, passage = candidate.question, candidate.passage
    named = {word.lower() for word in WORDS.findall(question) if len(word) >= WORD or any(map(str.isdigit, word))}
    if named & passage.names or len(stems(question) & passage.stems) >= COMMON:
        return ""
    return "names nothing of its document"


def grounded(candidate: Candidate) -> str:
    """Whether the quote is in the passage, or else the answer's words, names and numbers are."""
    passage, style, answer = candidate.passage, candidate.style, candidate.answer
    quoted = find_quote(str(candidate.values["quote"]), passage.text) is not None
    known = passage.stems | stems(candidate.question)
    if not style.computes and (new := numbers(answer) - passage.numbers - numbers(candidate.question)):
        return f"the passage has no {', '.join(sorted(new)[:3])}"
    if not style.answers:
        near = share(candidate.question, passage.stems)
        return "" if quoted or near >= QUOTED else f"no quote found, {near:.0%} of the question's words in the passage"
    found, needed = share(answer, known), QUOTED if quoted else UNQUOTED
    if found < needed:
        return f"{'quote' if quoted else 'no quote'} found, {found:.0%} of the answer's words in the passage, not {needed:.0%}"
    asked = {word.lower() for word in WORDS.findall(f"{candidate.question} {passage.text}")} | passage.names
    if not quoted and (new := names(answer) - asked):
        return f"no quote found, and the passage has no {', '.join(sorted(new)[:3])}"
    return ""


GATES: dict[str, Callable[[Candidate], str]] = {
    "schema": fits,
    "length": length,
    "reference": reference,
    "subject": subject,
    "grounded": grounded,
}


def refused(candidate: Candidate) -> tuple[str, str]:
    """(gate, reason) of the first gate that a row does not pass; both empty where it passes all."""
    return next(((name, reason) for name, gate in GATES.items() if (reason := gate(candidate))), ("", ""))
