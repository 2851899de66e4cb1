"""Styles of questions and answers: what is asked of a model, and the conversation that its answer becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlxforge.knowledge.schemas import record, text_of

Values = Mapping[str, Any]
LETTERS = "ABCD"

QUESTION = text_of(12, 400, "the question")
ANSWER = text_of(2, 1200, "the answer")
QUOTE = text_of(8, 300, "words of the passage, copied exactly, that show the answer to be right")


@dataclass(frozen=True)
class Style:
    """How rows of one kind are asked for and read.

    Attributes:
        about: one line.
        fields: the schema of one row; all have a ``quote``.
        turns: the row's conversation: user and assistant in turn.
        tokens: of one row, at most.
        answers: whether the passage holds the answer; else it must not.
        computes: whether an answer may hold numbers that the passage has not.
    """

    about: str
    fields: Mapping[str, Any]
    turns: Callable[[Values], list[str]]
    tokens: int
    answers: bool = True
    computes: bool = False

    def schema(self, count: int) -> dict[str, Any]:
        """The schema of an answer with ``count`` rows."""
        rows = {"type": "array", "items": record(**self.fields), "minItems": count, "maxItems": count}
        return record(rows=rows)


def _conversation(values: Values) -> list[str]:
    return [text for turn in values["turns"] for text in (turn["question"], turn["answer"])]


def _chosen(values: Values) -> list[str]:
    choices = [values[f"choice_{letter.lower()}"] for letter in LETTERS]
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    right = values["correct"]
    return [f"{values['question']}\n\n{listed}", f"{right}. {choices[LETTERS.index(right)]}\n\n{values['explanation']}"]


TURNS = {
    "type": "array",
    "items": record(question=QUESTION, answer=text_of(2, 600, "the answer")),
    "minItems": 2,
    "maxItems": 3,
}

STYLES: dict[str, Style] = {
    "factual": Style(
        "One question about one fact, one short answer.",
        {"question": QUESTION, "answer": text_of(2, 600, "the answer"), "quote": QUOTE},
        lambda values: [values["question"], values["answer"]],
        450,
    ),
    "conversational": Style(
        "Two or three turns, as people talk; each question goes on from the answer before.",
        {"turns": TURNS, "quote": QUOTE},
        _conversation,
        1000,
    ),
    "socratic": Style(
        "A question, a question back that guides, an attempt, and what is right about it.",
        {
            "question": QUESTION,
            "guidance": text_of(12, 600, "a hint and a question back, without the answer"),
            "attempt": text_of(2, 400, "what a learner would say then"),
            "answer": ANSWER,
            "quote": QUOTE,
        },
        lambda values: [values["question"], values["guidance"], values["attempt"], values["answer"]],
        1000,
    ),
    "problem-solving": Style(
        "A situation in which the passage's knowledge is needed, solved step by step.",
        {
            "problem": text_of(30, 700, "a situation and what is asked"),
            "steps": text_of(20, 1200, "the way to the answer, step by step"),
            "answer": text_of(2, 400, "the answer in a sentence"),
            "quote": QUOTE,
        },
        lambda values: [values["problem"], f"{values['steps']}\n\n{values['answer']}"],
        1000,
        computes=True,
    ),
    "multiple-choice": Style(
        "A question with four choices, the right one and why.",
        {
            "question": QUESTION,
            **{f"choice_{letter.lower()}": text_of(1, 200, f"choice {letter}") for letter in LETTERS},
            "correct": {"enum": list(LETTERS), "description": "the letter of the right choice"},
            "explanation": text_of(12, 600, "why it is right"),
            "quote": QUOTE,
        },
        _chosen,
        800,
    ),
    "unanswerable": Style(
        "A question on the subject that the passage does not answer, and a reply that says so.",
        {
            "question": QUESTION,
            "answer": text_of(12, 600, "that this is not known, and what is known instead"),
            "quote": text_of(8, 300, "words of the passage, copied exactly, that come nearest"),
        },
        lambda values: [values["question"], values["answer"]],
        450,
        answers=False,
    ),
}
