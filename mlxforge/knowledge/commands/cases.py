"""The six cases of a request, and the answer that each calls for. :data:`CASES` is the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from mlxforge.data.commands import Action
from mlxforge.knowledge.commands import wordings
from mlxforge.knowledge.commands.schema import Argument
from mlxforge.knowledge.commands.sentence import Draft, Given, Maker, closed, opened, with_typos

PLACES = ("file", "folder", "path")

# How sure an answer is, by its case: an action's range, and a share of it. Labels of a rule, not measured probabilities.
Sureness = tuple[Action, float]
STATED: Sureness = ("run", 0.8)
FROM_CONTEXT: Sureness = ("run", 0.4)
SLIPS: tuple[Sureness, ...] = (("confirm", 0.8), ("confirm", 0.5), ("confirm", 0.2))  # with one, two, three slips
OPEN_VALUE: Sureness = ("suggest", 0.75)
OPEN_COMMAND: Sureness = ("suggest", 0.5)
INCOMPLETE: Sureness = ("ask", 0.75)
OFF_TOPIC: Sureness = ("ask", 0.05)


@dataclass(frozen=True)
class Case:
    """``draw`` makes a request, or None where this draw met none; ``possible`` tells whether a schema has any."""

    draw: Callable[[Maker, Random, int], Draft | None]
    possible: Callable[[Maker], bool] = lambda _: True


def surroundings(random: Random, often: float = 0.25) -> dict[str, Any] | None:
    """Where somebody is, at times: a context that changes nothing, so that its being there says nothing."""
    if random.random() >= often:
        return None
    folder = f"~/{random.choice(wordings.FOLDERS)}"
    if random.random() < 0.5:
        return {"cwd": folder}
    names = random.sample(wordings.STEMS, random.choice((1, 2, 3)))
    return {"cwd": folder, "files": [name + random.choice(wordings.ANY_SUFFIX) for name in names]}


def plain(maker: Maker, random: Random, turn: int) -> Draft:
    """Everything is said."""
    given = maker.given(maker.command(turn, list(maker.schema.commands)), random)
    draft = maker.say(given, random)
    return replace(draft, context=surroundings(random), answer=maker.answer(maker.between(*STATED), given))


def context(maker: Maker, random: Random, turn: int) -> Draft | None:
    """One value is in the context alone."""
    names = [name for name, command in maker.schema.commands.items() if command.arguments]
    given = maker.given(maker.command(turn, names), random)
    if not given.arguments:
        given = maker.given(given.command, random, optional=1)
    argument = given.command.argument(random.choice(list(given.arguments)))
    assert argument is not None
    where, said = _in_context(argument, given, random)
    draft = maker.say(given, random, {argument.name: said})
    answer = maker.answer(maker.between(*FROM_CONTEXT), given)
    return replace(draft, context=(surroundings(random, 0.5) or {}) | where, answer=answer)


def _in_context(argument: Argument, given: Given, random: Random) -> tuple[dict[str, Any], str]:
    """The part of the context that holds a value, and the words that point there."""
    value, kind = given.arguments[argument.name], argument.kinds[0].type
    if kind in PLACES and len(argument.kinds) == 1:
        many = argument.multiple and len(value) > 1
        table = wordings.SELECTED_MANY if many else wordings.SELECTED
        return {"selected": value if many or not argument.multiple else value[0]}, random.choice(table[kind])
    said = random.choice(wordings.PREVIOUS).replace("{words}", argument.words)
    return {"previous": {"command": given.command.name, "arguments": {argument.name: value}}}, said


def typo(maker: Maker, random: Random, turn: int) -> Draft | None:
    """A clear request with one to three slips: the more, the less sure."""
    draft = plain(maker, random, turn)
    count = random.choice((1, 1, 2, 3))
    slipped = with_typos(draft, count, random)
    if slipped is None:
        return None
    answer = draft.answer
    given = Given(maker.schema.commands[answer["command"]], answer["arguments"], tuple(answer["flags"]))
    return replace(slipped, answer=maker.answer(maker.between(*SLIPS[count - 1]), given))


def incomplete(maker: Maker, random: Random, turn: int) -> Draft:
    """Something is not said that the command needs: ask for it."""
    names = [name for name, command in maker.schema.commands.items() if command.required]
    whole = maker.given(maker.command(turn, names), random)
    required = [argument.name for argument in whole.command.required]
    gone = set(random.sample(required, random.randint(1, len(required))))
    given = Given(whole.command, {n: value for n, value in whole.arguments.items() if n not in gone}, whole.flags)
    missing = [name for name in required if name in gone]
    question = asking([a for a in whole.command.required if a.name in gone])
    answer = maker.answer(maker.between(*INCOMPLETE), given, missing=missing, question=question)
    return replace(maker.say(given, random), context=_cwd(random), answer=answer)


def asking(arguments: Sequence[Argument]) -> str:
    """``Which files, and which output?``"""
    named = [f"which {argument.words}" for argument in arguments]
    text = named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]
    return text[0].upper() + text[1:] + "?"


def clarification(maker: Maker, random: Random, turn: int) -> Draft | None:
    """Several commands fit, or a value is left open: suggest, and ask which."""
    kinds = [kind for kind, fits in OPEN_KINDS if fits(maker)]
    return kinds[turn % len(kinds)](maker, random, turn // len(kinds))


def either(maker: Maker, random: Random, turn: int) -> Draft | None:
    """Two commands of one group, both named."""
    groups = _siblings(maker)
    pair = random.sample(groups[turn % len(groups)], 2)
    wording = [_one_of(maker, name, random) for name in pair]
    text = random.choice(wordings.EITHER).replace("{a}", wording[0]).replace("{b}", wording[1])
    return _which(maker, Draft("casual", opened(random.choice(wordings.OPEN_OPENINGS), text)), pair, random)


def _one_of(maker: Maker, name: str, random: Random) -> str:
    bare = [phrase for phrase in maker.lexicon.verbs[name] if "{" not in phrase]
    return random.choice([*bare, *maker.lexicon.named(maker.schema.commands[name])])


def _siblings(maker: Maker) -> list[tuple[str, ...]]:
    """Commands that somebody may confuse: those of one group, or of the program itself."""
    top = tuple(command.name for command in maker.schema.children("") if command.path)
    return [names for names in (*maker.lexicon.groups.values(), top) if len(names) > 1]


def grouped(maker: Maker, random: Random, turn: int) -> Draft | None:
    """A group is named, none of its commands."""
    group = list(maker.lexicon.groups)[turn % len(maker.lexicon.groups)]
    text = random.choice(wordings.GROUPED).replace("{group}", group).replace("{cli}", maker.schema.cli_name)
    text = opened(random.choice(wordings.OPEN_OPENINGS), text)
    ending = random.choice(wordings.GROUPED_VALUE)
    said: tuple[str, ...] = ()
    if "{value}" in ending:
        said = (random.choice(wordings.STEMS) + random.choice(wordings.ANY_SUFFIX),)
    draft = Draft("casual", text + closed(ending).replace("{value}", "\0" + "0\0"), said, ("value",) * len(said))
    return _which(maker, draft, maker.lexicon.groups[group], random)


def _which(maker: Maker, draft: Draft, names: Sequence[str], random: Random) -> Draft:
    """The question which of several commands is meant, in the order of the schema."""
    ordered = [name for name in maker.schema.commands if name in names]
    question = f"Which one: {', '.join(ordered[:-1])} or {ordered[-1]}?"
    answer = maker.answer(maker.between(*OPEN_COMMAND), candidates=ordered, question=question)
    return replace(draft, context=_cwd(random), answer=answer)


def open_value(maker: Maker, random: Random, turn: int) -> Draft | None:
    """An option is to change, to what is not said."""
    names = [name for name, command in maker.schema.commands.items() if _choosable(command.arguments)]
    given = maker.given(maker.command(turn, names), random)
    left = [a for a in _choosable(given.command.arguments) if a.name not in given.arguments]
    if not left:
        return None
    argument = random.choice(left)
    clause = random.choice(wordings.OPEN).replace("{words}", argument.words)
    draft = maker.say(given, random, more=[(argument.name, clause)])
    question = asking([argument])
    answer = maker.answer(maker.between(*OPEN_VALUE), given, missing=[argument.name], question=question)
    return replace(draft, context=_cwd(random), answer=answer)


def _choosable(arguments: Sequence[Argument]) -> list[Argument]:
    return [argument for argument in arguments if argument.option and not argument.required]


def _cwd(random: Random) -> dict[str, Any] | None:
    return {"cwd": f"~/{random.choice(wordings.FOLDERS)}"} if random.random() < 0.25 else None


OPEN_KINDS: tuple[tuple[Callable[[Maker, Random, int], Draft | None], Callable[[Maker], bool]], ...] = (
    (either, lambda maker: bool(_siblings(maker))),
    (open_value, lambda maker: any(_choosable(command.arguments) for command in maker.schema.commands.values())),
    (grouped, lambda maker: bool(maker.lexicon.groups)),
)


def off_topic(maker: Maker, random: Random, turn: int) -> Draft:
    """Nothing for this program."""
    text = wordings.OFF_TOPIC[turn % len(wordings.OFF_TOPIC)]
    said: list[str] = []
    names: list[str] = []
    for name, values in wordings.TOPICS.items():
        if f"{{{name}}}" in text:
            text = text.replace(f"{{{name}}}", f"\0{len(said)}\0")
            said.append(random.choice(values))
            names.append(name)
    whole = opened(random.choice(wordings.OFF_OPENINGS), text) + closed(random.choice(wordings.OFF_CLOSINGS))
    question = f"That is nothing that {maker.schema.cli_name} does. What shall it do?"
    answer = maker.answer(maker.between(*OFF_TOPIC), question=question)
    return Draft("casual", whole, tuple(said), tuple(names), (), surroundings(random), answer)


CASES = {
    "plain": Case(plain),
    "context": Case(context, lambda maker: any(command.arguments for command in maker.schema.commands.values())),
    "clarification": Case(clarification, lambda maker: any(fits(maker) for _, fits in OPEN_KINDS)),
    "incomplete": Case(incomplete, lambda maker: any(command.required for command in maker.schema.commands.values())),
    "off_topic": Case(off_topic),
    "typo": Case(typo),
}
