"""Other wordings of a grammar's requests by a model, each held against what the request means.

A wording that loses a value, adds a number or says what another row says is refused, and the grammar's own stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mlxforge.core.files import bytes_hash
from mlxforge.knowledge.asked import Request
from mlxforge.knowledge.commands.grammar import Row, same
from mlxforge.knowledge.commands.lexicon import flag_clauses
from mlxforge.knowledge.commands.schema import Schema
from mlxforge.knowledge.schemas import record, text_of

CASES = ("plain", "incomplete", "off_topic")  # a typo would be mended, and what a context stands for be lost
LONGEST = 400  # characters
COMMON = set(
    "the and for with you your can could would should will please what which how where who this that there here need want "
    "have has had like know tell give make made let get got use using used run command help want into from about they "
    "them then than not now one some any all are was were may might must just only also its it's i'd i'm "
    "thanks thank hey okay".split()
)  # words that any request may have
SHAPE = record(paraphrase=text_of(3, LONGEST, "the same request in other words"))
SYSTEM = (
    "You rewrite what users type to a command line assistant. Keep the meaning exactly: add nothing, leave nothing out. "
    "Copy names, numbers, paths and words that begin with dashes letter by letter. Change the wording, the order and the tone."
)
USER = "The program is {cli}. Rewrite this request in one sentence, {tone}:\n\n{instruction}"
TONES = ("as a colleague would say it", "short and direct", "politely", "as a question", "as a goal that one has", "casually")
PROMPT = bytes_hash(SYSTEM, USER, *TONES)[:12]


def wanted(rows: Sequence[Row]) -> list[Row]:
    """The rows that may be put into other words."""
    return [row for row in rows if row.case in CASES]


def requests(schema: Schema, rows: Sequence[Row], seed: int) -> Iterator[Request]:
    """A request for each row, known by the row's number."""
    for row in rows:
        user = USER.replace("{cli}", schema.cli_name).replace("{tone}", TONES[row.number % len(TONES)])
        turns = (
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": user.replace("{instruction}", row.instruction)},
        )
        yield Request(str(row.number), turns, SHAPE, max_tokens=160, temperature=0.8, seed=seed + row.number)


def wording(text: str) -> str:
    """The wording in a reply, or an empty text where there is none."""
    try:
        found = json.loads(text)["paraphrase"]
    except (ValueError, TypeError, KeyError):
        return ""
    return " ".join(found.split()) if isinstance(found, str) else ""


def refusal(schema: Schema, row: Row, text: str) -> str:
    """Why a wording does not stand for a row's answer; empty where it does."""
    if not text or len(text) > LONGEST:
        return "no wording, or too long"
    said = [bare for bare in (value.strip('"') for value in row.values) if bare]
    if lost := next((value for value in said if not _holds(text, value)), ""):
        return f"lost a value: {lost}"
    if not _subject(text) & _subject(f"{row.instruction} {row.answer['command'] or ''}"):
        return "lost the subject"
    if row.case == "off_topic":
        return "names the program" if schema.cli_name.casefold() in text.casefold() else ""
    before = set(re.findall(r"\d+(?:\.\d+)?", row.instruction))
    if added := [number for number in re.findall(r"\d+(?:\.\d+)?", text) if number not in before]:
        return f"added a number: {added[0]}"
    if added := [word for word in re.findall(r"(?<!\w)--[\w-]+", text) if word not in _options(schema, row)]:
        return f"added an option: {added[0]}"
    return _lost_flag(schema, row, text)


def _subject(text: str) -> set[str]:
    """The words that say what a request is about: where it has no value, they alone tie a wording to it."""
    return set(re.findall(r"[^\W\d_]{3,}", text.casefold())) - COMMON


def _holds(text: str, value: str) -> bool:
    return re.search(rf"(?<![\w./-]){re.escape(value)}(?![\w/-]|\.\w)", text) is not None


def _options(schema: Schema, row: Row) -> set[str]:
    """The options that the answer has."""
    command = schema.commands[row.answer["command"]]
    return {*row.answer["flags"], *(a.option for a in command.arguments if a.name in row.answer["arguments"])}


def _lost_flag(schema: Schema, row: Row, text: str) -> str:
    """A flag must still be asked for in one of the ways that the grammar knows."""
    command = schema.commands[row.answer["command"]]
    folded = text.casefold()
    for name in row.answer["flags"]:
        flag = command.flag(name)
        assert flag is not None
        ways = [name, *flag_clauses(flag, name)]
        if not any(way.casefold() in folded for way in ways):
            return f"lost a flag: {name}"
    return ""


def reworded(row: Row, text: str, model: str) -> Row:
    """The row in other words."""
    return replace(row, instruction=text, model=model, prompt=PROMPT)


def unlike(rows: Sequence[Row]) -> set[str]:
    """What a new wording must not repeat."""
    return {same(row.instruction) for row in rows}
