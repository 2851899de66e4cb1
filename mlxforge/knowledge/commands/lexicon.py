"""What a schema's commands, arguments and flags are called in sentences. Built once for a schema.

No wording stands for two commands: what several share is used by none of them, nor is one that another command's begins with.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from mlxforge.knowledge.commands import wordings
from mlxforge.knowledge.commands.reader import slots
from mlxforge.knowledge.commands.schema import Argument, Command, Flag, Schema

LONGEST = 90  # characters of a help text that somebody may say


@dataclass(frozen=True)
class Lexicon:
    """Wordings of each command: ``verbs`` begin with a verb; a schema's own phrases, with slots, are among them."""

    cli: str
    verbs: dict[str, tuple[str, ...]]
    groups: dict[str, tuple[str, ...]]  # groups with two commands or more: their commands in order

    @classmethod
    def of(cls, schema: Schema) -> Lexicon:
        """All wordings of a schema."""
        found = {name: _verbs(command) for name, command in schema.commands.items()}
        owners = {_plain(phrase): name for name, phrases in found.items() for phrase in phrases}
        uses = Counter(phrase for phrases in found.values() for phrase in set(map(_plain, phrases)))
        starts = {start: name for phrase, name in owners.items() for start in _starts(phrase)}
        verbs = {
            name: tuple(p for p in phrases if uses[_plain(p)] == 1 and starts.get(_plain(p), name) == name)
            for name, phrases in found.items()
        }
        groups = {name: tuple(c.name for c in schema.children(name)) for name in schema.groups}
        return cls(schema.cli_name, verbs, {name: below for name, below in groups.items() if len(below) > 1})

    def named(self, command: Command) -> list[str]:
        """Wordings that begin with a verb and name the command: ``run the data split command``."""
        return [_fill(text, path=command.name or self.cli, cli=self.cli) for text in wordings.NAMED]

    def paths(self, command: Command) -> list[str]:
        """The command by its name: ``data split``."""
        return [_fill(text, path=command.name, cli=self.cli).replace(" `", "`") for text in wordings.PATHS if command.name] or [
            self.cli
        ]


def _verbs(command: Command) -> list[str]:
    own = list(command.phrases)
    text = short(command.help)
    first, _, rest = text.partition(" ")
    if first.lower() not in wordings.VERBS:
        return own
    first = first.lower()
    return [*own, *(f"{verb} {rest}".strip() for verb in (first, *wordings.SYNONYMS.get(first, ())))]


def short(help_text: str) -> str:
    """The part of a help text that somebody would say: up to a colon, a bracket or the full stop."""
    text = re.split(r"[:;(]|\s-\s|\.(?:\s|$)", help_text, maxsplit=1)[0].strip().rstrip(".")
    return text if len(text) <= LONGEST else ""


def _starts(phrase: str) -> list[str]:
    """The beginnings of a phrase, a word shorter and more."""
    words = phrase.split()
    return [" ".join(words[:length]) for length in range(1, len(words))]


def _plain(phrase: str) -> str:
    return re.sub(r"\W+", " ", re.sub(r"\{[^{}]*\}", "", phrase)).strip().lower()


def _fill(text: str, **values: str) -> str:
    """Like str.format, though values may hold braces and unknown names stay."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), text)


def clauses(argument: Argument) -> tuple[str, ...]:
    """Ways to give an argument its value; ``{value}`` is in each."""
    words = argument.words
    by_name = wordings.BY_NAME.get(words.split()[-1] if words else "", ())
    usual = wordings.OPTION if argument.option else wordings.POSITIONAL.get(argument.kinds[0].type, wordings.OTHER)
    # A curated name is likelier than the usual clauses; a name of several words keeps them.
    some = (*by_name, *usual[:3]) if by_name and words == words.split()[-1] else usual
    return tuple(_fill(text, words=words, option=argument.option) for text in (*argument.phrases, *argument.phrases, *some))


def flag_clauses(flag: Flag, name: str) -> tuple[str, ...]:
    """Ways to switch a flag on, or off where ``name`` is its opposite."""
    words = Flag(name).words
    if name == flag.off:
        plain = re.sub(r"^no[- ]", "", words)
        return tuple(_fill(text, name=name, words=plain) for text in wordings.OFF)
    said = [] if flag.count else _said(flag.help)
    some = wordings.FLAG_BY_NAME.get(words) or (*said, *wordings.FLAG)
    return tuple(_fill(text, name=name, words=words) for text in (*flag.phrases, *flag.phrases, *some))


def _said(help_text: str) -> list[str]:
    """A flag's help, where it is a request: 'replace what is there already'."""
    text = short(help_text.split(",")[0])
    first, _, rest = text.partition(" ")
    return [f"{first.lower()} {rest}"] if rest and first.lower() in wordings.VERBS else []


def phrase_slots(phrase: str) -> list[str]:
    """The arguments that a phrase gives values to."""
    return slots(phrase)
