"""Who speaks on a line of text: literal or regular patterns for each role, as a YAML file names them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from mlxforge.core.config import Layer, resolve
from mlxforge.core.errors import ConfigError, did_you_mean
from mlxforge.core.settings import Settings
from mlxforge.core.settings import help as described

Speaker = Literal["system", "user", "assistant"]
ROLES: tuple[Speaker, ...] = ("system", "user", "assistant")
INVISIBLE = "\ufeff\u200e\u200f\u202a\u202c"  # marks of direction that chat exports put before a line


class Pattern(Settings):
    """One way in which a speaker is named: a literal at the start of a line, or a regular expression."""

    literal: str | None = None
    regex: str | None = None
    ignore_case: bool | None = None


class SpeakerSettings(Settings):
    """How conversations are found in text."""

    system: Annotated[list[str | Pattern], described("patterns of the system's lines")] = []
    user: Annotated[
        list[str | Pattern], described("patterns of the user's lines: 'Name:', or {regex: '...', ignore_case: false}")
    ] = []
    assistant: Annotated[list[str | Pattern], described("patterns of the assistant's lines")] = []
    ignore_case: Annotated[bool, described("whether 'user:' is 'User:'; a pattern may say otherwise")] = True
    prefix: Annotated[list[str], described("regular expressions of what stands before a speaker, such as a time stamp")] = []
    separator: Annotated[str | None, described("regular expression of a line that begins a new conversation")] = None
    skip: Annotated[list[str], described("regular expressions of lines that are left out and counted")] = []
    joiner: Annotated[str, described("put between two turns in a row of one speaker")] = "\n"
    fences: Annotated[bool, described("a line between ``` fences is no speaker's")] = True


@dataclass(frozen=True)
class Line:
    """A line that a speaker opens: the role, the rest of the line, and which prefix stood before the speaker."""

    role: Speaker
    rest: str
    stamp: int | None


@dataclass(frozen=True)
class Speakers:
    """The compiled patterns."""

    patterns: tuple[tuple[Speaker, re.Pattern[str]], ...]
    any: re.Pattern[str] | None  # matches where one of the patterns does, if they can be joined
    prefixes: tuple[re.Pattern[str], ...]
    separator: re.Pattern[str] | None
    skips: tuple[re.Pattern[str], ...]
    joiner: str
    fences: bool

    def stamp(self, line: str) -> tuple[int | None, str]:
        """Which prefix a line has, and the line without it; None and the line if it has none."""
        bare = line.lstrip(INVISIBLE)
        for number, prefix in enumerate(self.prefixes):
            if (match := prefix.match(bare)) and match.end():
                return number, bare[match.end() :]
        return None, bare

    def opened(self, line: str) -> Line | None:
        """What a line opens if it names a speaker. The longest of several matches counts, then the first in the settings."""
        stamp, rest = self.stamp(line)
        # A pattern may hold the time stamp itself.
        for text in (rest,) if stamp is None else (rest, line.lstrip(INVISIBLE)):
            if self.any and not self.any.match(text):
                continue
            found = [(role, match) for role, pattern in self.patterns if (match := pattern.match(text)) and match.end()]
            if found:
                role, match = max(found, key=lambda pair: pair[1].end())
                return Line(role, text[match.end() :], stamp)
        return None

    def separates(self, line: str) -> bool:
        """Whether a new conversation begins after this line."""
        return self.separator is not None and self.separator.search(line) is not None

    def skipped(self, line: str) -> bool:
        """Whether a line is left out."""
        return any(pattern.search(line) for pattern in self.skips)


def read_speakers(*layers: Layer, place: str = "speakers") -> Speakers:
    """Compiles the settings of all layers; ``place`` is where a missing key is missed.

    Raises:
        ConfigError: a line for each unknown key and each pattern that cannot be used, with the key's place.
    """
    settings = resolve(SpeakerSettings, *map(_spelled_out, layers))
    where = {key: layer.where[key] for layer in layers for key in layer.values}
    problems: list[str] = []

    def compiled(expression: str, key: str, flags: int = 0) -> list[re.Pattern[str]]:
        try:
            return [re.compile(expression, flags)]
        except re.error as error:
            what = f"{key}: invalid regular expression {expression!r}: {error}"
            problems.append(str(ConfigError(what, where=where.get(key, ""), fix="a backslash before a sign takes it as it is")))
            return []

    patterns: list[tuple[Speaker, re.Pattern[str]]] = []
    for role in ROLES:
        for number, given in enumerate(getattr(settings, role), 1):
            pattern = Pattern(literal=given) if isinstance(given, str) else given
            expression = _expression(pattern)
            if expression is None:
                what = f"{role}: pattern {number} needs one of 'literal' and 'regex', not empty"
                problems.append(str(ConfigError(what, where=where.get(role, ""))))
                continue
            ignore = settings.ignore_case if pattern.ignore_case is None else pattern.ignore_case
            patterns += [(role, one) for one in compiled(expression, role, re.IGNORECASE if ignore else 0)]
    many = {key: [one for text in getattr(settings, key) for one in compiled(text, key)] for key in ("prefix", "skip")}
    separator = compiled(settings.separator, "separator") if settings.separator else []
    problems += [] if problems else _missing(settings, where, place)
    if problems:
        raise ConfigError("\n".join(problems))
    return Speakers(
        tuple(patterns),
        _joined([pattern for _, pattern in patterns]),
        tuple(many["prefix"]),
        separator[0] if separator else None,
        tuple(many["skip"]),
        settings.joiner,
        settings.fences,
    )


def _joined(patterns: list[re.Pattern[str]]) -> re.Pattern[str] | None:
    """One pattern for all, most lines being nobody's; None where groups or flags of one would change another."""
    if any(pattern.groups for pattern in patterns):
        return None
    parts = [f"(?{'i' if pattern.flags & re.IGNORECASE else '-i'}:{pattern.pattern})" for pattern in patterns]
    try:
        return re.compile("|".join(parts))
    except re.error:
        return None


def _spelled_out(layer: Layer) -> Layer:
    """YAML reads an unquoted ``Ann:`` as a mapping; here it is a name."""
    values = dict(layer.values)
    for role in set(ROLES).intersection(values):
        given = values[role] if isinstance(values[role], list) else [values[role]]
        values[role] = [_literal(one, role, layer.where.get(role, "")) for one in given if one is not None]
    return Layer(values, layer.where)


def _literal(given: Any, role: str, where: str) -> Any:
    if not isinstance(given, dict):
        return given
    if len(given) == 1 and None in given.values():
        return f"{next(iter(given))}:"
    for key in given:
        if key not in Pattern.__struct_fields__:
            raise ConfigError(
                f"{role}: a pattern has no '{key}'", where=where, fix=did_you_mean(str(key), Pattern.__struct_fields__)
            )
    return given


def _expression(pattern: Pattern) -> str | None:
    """A literal as an expression: up to three spaces may stand before it, more are a block of code in markdown."""
    if bool(pattern.literal) == bool(pattern.regex):
        return None
    if pattern.regex:
        return pattern.regex
    literal = (pattern.literal or "").strip()
    # "### Human" must not take "### Human resources"; "User:" and "<user>" are complete in themselves.
    open_end = literal.rstrip("*_")[-1:].isalnum()
    return rf" {{0,3}}{re.escape(literal)}" + (r"[ \t]*(?:[:\uff1a]|$)" if open_end else "") if literal else None


def _missing(settings: SpeakerSettings, where: dict[str, str], place: str) -> list[str]:
    return [
        str(ConfigError(f"{role}: no pattern", where=where.get(role, place), fix=f"write {role}: ['Name:']"))
        for role in ("user", "assistant")
        if not getattr(settings, role)
    ]
