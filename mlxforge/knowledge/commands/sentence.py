"""Sentences from a command, values and wordings: which words, in which order, and which parts of them are values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from mlxforge.data.commands import Action, Thresholds
from mlxforge.knowledge.commands import wordings
from mlxforge.knowledge.commands.lexicon import Lexicon, clauses, flag_clauses, phrase_slots
from mlxforge.knowledge.commands.line import texts
from mlxforge.knowledge.commands.schema import Argument, Command, Schema
from mlxforge.knowledge.commands.validate import action_of
from mlxforge.knowledge.commands.values import draw

MARK = re.compile("\0(\\d+)\0")  # a value's place in a sentence
OPTIONAL = (0, 0, 0, 1, 1, 1, 2, 2, 3)  # how many arguments beside the required ones
SWITCHES = (0, 0, 0, 0, 1, 1, 2)
OWN_PHRASE = 0.75  # how often a request says what it wants, instead of the command's name


@dataclass
class Draft:
    """A request in the making. ``sentence`` has marks where values go; ``answer`` is what it means."""

    form: str
    sentence: str
    said: tuple[str, ...] = ()  # the values as they are written in it, by mark
    names: tuple[str, ...] = ()  # whose values these are
    order: tuple[str, ...] = ()
    context: dict[str, Any] | None = None
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The sentence with its values."""
        return MARK.sub(lambda match: self.said[int(match[1])], self.sentence)

    @property
    def template(self) -> str:
        """The sentence with names in the place of values."""
        return MARK.sub(lambda match: "{" + self.names[int(match[1])] + "}", self.sentence).casefold()


@dataclass(frozen=True)
class Given:
    """What a request gives to a command: values by argument, and flags."""

    command: Command
    arguments: dict[str, Any]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Maker:
    """Draws what is asked for, and puts it into words."""

    schema: Schema
    lexicon: Lexicon
    thresholds: Thresholds

    def command(self, turn: int, names: Sequence[str]) -> Command:
        """Commands take turns, so that each has its share."""
        return self.schema.commands[names[turn % len(names)]]

    def given(self, command: Command, random: Random, optional: int | None = None) -> Given:
        """Values for all required arguments and some others, and some flags."""
        others = [argument for argument in command.arguments if not argument.required]
        count = min(random.choice(OPTIONAL) if optional is None else optional, len(others))
        chosen = {argument.name for argument in random.sample(others, count)}
        mine = [a for a in command.arguments if a.required or a.name in chosen]
        switches = random.sample(command.flags, min(random.choice(SWITCHES), len(command.flags)))
        names = [flag.off if flag.off and random.random() < 0.5 else flag.name for flag in switches]
        ordered = [name for name in command.flag_names if name in names]
        return Given(command, {argument.name: draw(argument, random) for argument in mine}, tuple(ordered))

    def answer(self, confidence: float, given: Given | None = None, **more: Any) -> dict[str, Any]:
        """An answer in the one format; the action follows from the confidence and the schema."""
        answer: dict[str, Any] = {
            "command": given.command.name if given else None,
            "arguments": given.arguments if given else {},
            "flags": list(given.flags) if given else [],
            "confidence": round(confidence, 4),
        }
        answer["action"] = action_of(self.schema, answer, self.thresholds)
        return answer | more

    def between(self, action: Action, share: float) -> float:
        """The confidence at a share of an action's range: 0 is its lower end, 1 its upper."""
        edges = {"run": (self.thresholds.run, 1.0), "confirm": (self.thresholds.confirm, self.thresholds.run)}
        edges |= {"suggest": (self.thresholds.suggest, self.thresholds.confirm), "ask": (0.0, self.thresholds.suggest)}
        low, high = edges[action]
        return low + share * (high - low)

    def say(
        self, given: Given, random: Random, instead: dict[str, str] | None = None, more: Sequence[tuple[str, str]] = ()
    ) -> Draft:
        """A request for what is given.

        Args:
            instead: what is said in the place of an argument's value, which is then not in the sentence.
            more: (name, clause) of further clauses, without a value.
        """
        instead = instead or {}
        form = random.choice(list(wordings.FORMS))
        values = _Values(given, instead, random)
        phrase, slots = self._phrase(given, form, random)
        phrase = re.sub(r"\{(\w+)\}", lambda match: values.mark(match[1]), phrase)
        parts = [(a.name, self._clause(a, values, random)) for a in given.command.arguments if a.name in given.arguments]
        parts = [part for part in parts if part[0] not in slots]
        for name in given.flags:
            flag = given.command.flag(name)
            assert flag is not None
            parts.append((name, random.choice(flag_clauses(flag, name))))
        parts += more
        ordered = _ordered(parts, given.command, random)
        sentence = _framed(_joined(phrase, [text for _, text in ordered], random), wordings.FORMS[form], random)
        order = (*slots, *(name for name, _ in ordered))
        return Draft(form, sentence, tuple(values.said), tuple(values.names), order)

    def _phrase(self, given: Given, form: str, random: Random) -> tuple[str, list[str]]:
        """The request itself, and the arguments that it has slots for."""
        if wordings.FORMS[form].command:
            return random.choice(self.lexicon.paths(given.command)), []
        own = [p for p in self.lexicon.verbs[given.command.name] if given.arguments.keys() >= set(phrase_slots(p))]
        if own and random.random() < OWN_PHRASE:
            phrase = random.choice(own)
            return phrase, phrase_slots(phrase)
        return random.choice(self.lexicon.named(given.command)), []

    @staticmethod
    def _clause(argument: Argument, values: _Values, random: Random) -> str:
        text = random.choice(clauses(argument))
        if argument.name in values.instead and values.instead[argument.name].split()[0] in ("the", "what"):
            # 'the same seed as before' says the name already.
            text = "with {value}" if argument.option else text if "{words}" not in text else "for {value}"
        return text.replace("{value}", values.mark(argument.name))


class _Values:
    """The values of a request, each with a mark where the sentence has it."""

    def __init__(self, given: Given, instead: dict[str, str], random: Random) -> None:
        self.given, self.instead, self.random = given, instead, random
        self.said: list[str] = []
        self.names: list[str] = []

    def mark(self, name: str) -> str:
        """The marks of an argument's value, or what is said in its place."""
        if name in self.instead:
            return self.instead[name]
        value = self.given.arguments[name]
        argument = self.given.command.argument(name)
        assert argument is not None
        items = value if argument.multiple else [value]
        marks = [" ".join(self._one(text, name) for text in texts(item)) for item in items]
        if len(marks) == 1:
            return marks[0]
        return self.random.choice((", ".join(marks[:-1]) + " and " + marks[-1], " and ".join(marks), " ".join(marks)))

    def _one(self, text: str, name: str) -> str:
        # Two words or more are no value that one could tell from the sentence around it.
        quoted = f'"{text}"' if not text or re.search(r"\s", text) else text
        self.said.append(quoted)
        self.names.append(name)
        return f"\0{len(self.said) - 1}\0"


def _ordered(parts: list[tuple[str, str]], command: Command, random: Random) -> list[tuple[str, str]]:
    """Half of the time what the command works on comes first; else any order."""
    random.shuffle(parts)
    if random.random() < 0.5:
        first = {argument.name for argument in command.arguments if not argument.option}
        parts.sort(key=lambda part: part[0] not in first)
    return parts


def _joined(phrase: str, parts: list[str], random: Random) -> str:
    """A request with its clauses: spaces, commas, 'and'."""
    text = phrase
    joint = random.choice((", ", " ", " and ", ", "))
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        verb = part.split(" ")[0] in wordings.VERBS
        between = " " if number == 0 and not verb else ", and " if last and number and random.random() < 0.4 else joint
        if verb and between == " ":
            between = " and "
        text += between + part
    return text


def opened(opening: str, text: str) -> str:
    """A text behind an opening, which may be empty."""
    return f"{opening} {text}" if opening else text


def closed(closing: str) -> str:
    """A closing as it follows a text: punctuation goes right behind it."""
    return " " + closing if closing[:1].isalpha() or closing[:1] == ":" else closing


def _framed(text: str, form: wordings.Form, random: Random) -> str:
    opening, closing = random.choice(form.openings), random.choice(form.closings)
    whole = opened(opening, text) + closed(closing)
    if form.command and opening == "":
        return whole
    if whole[:1].islower() and random.random() < 0.4:
        whole = whole[0].upper() + whole[1:]
    # No full stop behind a value: it might be a part of it.
    return whole + "." if whole[-1].isalpha() and not closing and random.random() < 0.4 else whole


LETTERS = "qwertyuiop", "asdfghjkl", "zxcvbnm"
WORD = re.compile(r"(?<![\w\0./=<>{}-])[A-Za-z]{4,}(?![\w\0./=-])")


def with_typos(draft: Draft, count: int, random: Random) -> Draft | None:
    """The same request with slips in ``count`` of its words, never in a value or an option; None if it has too few words."""
    words = list(WORD.finditer(draft.sentence))
    if len(words) < count:
        return None
    sentence = draft.sentence
    for match in sorted(random.sample(words, count), key=lambda match: -match.start()):
        sentence = sentence[: match.start()] + _slip(match[0], random) + sentence[match.end() :]
    return replace(draft, sentence=sentence)


def _slip(word: str, random: Random) -> str:
    """One slip: two letters swapped, one lost, one doubled, or a neighbour on the keyboard."""
    place = random.randrange(1, len(word) - 1)
    slips = (
        word[:place] + word[place + 1] + word[place] + word[place + 2 :],
        word[:place] + word[place + 1 :],
        word[:place] + word[place] + word[place:],
        word[:place] + _neighbour(word[place], random) + word[place + 1 :],
    )
    changed = [slip for slip in slips if slip != word]
    return random.choice(changed)


def _neighbour(letter: str, random: Random) -> str:
    row = next((row for row in LETTERS if letter.lower() in row), "")
    if not row:
        return ""
    place = row.index(letter.lower())
    return random.choice([row[n] for n in (place - 1, place + 1) if 0 <= n < len(row)])
