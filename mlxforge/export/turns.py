"""A chat template as a table of turns: what stands around each message, read off by asking the template.

Ollama renders Go templates, not Jinja. A Jinja text cannot be translated in general, but most of them only put fixed texts
around messages. Those texts are measured on probe conversations and checked on others. The table then renders conversations
here, and :mod:`mlxforge.export.gotemplate` writes it as a Go text that renders the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

from mlxforge.core.errors import ModelError
from mlxforge.core.rows import Message, Messages
from mlxforge.models.render import TemplateRefused
from mlxforge.models.template import ChatTemplate

Fold = Literal["turn", "first", "last"]
Around = tuple[str, str]
Gaps = dict[tuple[str, str], str]
BEGIN, END = "^", "$"  # stand for roles before the first message and after the last

SYSTEM, FIRST, SAID, NEXT = (
    Message("system", "zqsystem"),
    Message("user", "zqfirst"),
    Message("assistant", "zqsaid"),
    Message("user", "zqnext"),
)
THOUGHT = Message("assistant", "zqsaid", reasoning="zqthought")
PROBES: tuple[Messages, ...] = ((FIRST,), (FIRST, SAID, NEXT), (SYSTEM, FIRST), (SYSTEM, FIRST, SAID, NEXT))
LATE: Messages = (FIRST, SAID, SYSTEM, NEXT)
BEGUN: Messages = (SAID, NEXT)

# What a table must render as its template does: texts of many kinds, in the order of a conversation.
TEXTS = (
    "Hm?", "By the river,\n\nwhere else?", 'She said: "{{ .Content }}" & {% raw %}', "<b>1984</b> isn't\t{}", "Grüße, 世界 😀",
    "- one\n- two", "```\n{a: [1, 2]}\n```",
)  # fmt: skip


class NoTable(ModelError):
    """A template that is no table of turns."""


@dataclass(frozen=True)
class Turns:
    """The texts around messages; the token that begins every text is not among them, since the tokenizer adds it.

    Attributes:
        lead: before the first message, where it is a system message and where it is another.
        fold: a system message is a ``turn``, or goes into the ``first`` user turn after it, or into the ``last`` one.
        system, user, assistant: before and after such a message; of a folded system message, inside the user's turn.
        opening: what the answer follows; with thoughts, where ``silent`` is another one.
        silent: the opening of an answer that is told not to think; None where there is no such choice.
        thoughts: before and after an assistant's thoughts, None where none are written.
        keeps: thoughts are written for earlier turns too, not for the last alone.
    """

    lead: Around
    fold: Fold
    system: Around
    user: Around
    assistant: Around
    opening: str
    silent: str | None = None
    thoughts: Around | None = None
    keeps: bool = False

    def render(self, messages: Messages, *, thinking: bool = True) -> str:
        """What the Go text writes for messages of alternating roles; a last assistant's message is left open, to go on."""
        text, waiting = (self.lead[messages[0].role != "system"] if messages else ""), ""
        whole = "\n\n".join(message.content for message in messages if message.role == "system")
        opening = self.silent if self.silent is not None and not thinking else self.opening
        for at, message in enumerate(messages):
            last = at == len(messages) - 1
            if message.role == "system" and self.fold == "turn":
                text += _inside(self.system, message.content)
            elif message.role == "system":
                waiting = _inside(self.system, message.content)
            elif message.role == "user":
                inner = waiting if self.fold == "first" else _inside(self.system, whole) if last and whole else ""
                text += _inside(self.user, (inner if self.fold != "turn" else "") + message.content)
                waiting = ""
            elif message.role == "assistant":
                thoughts = _inside(self.thoughts, message.reasoning) if self.thoughts and message.reasoning else ""
                if last:
                    text += (self.assistant[0] + thoughts if thoughts else opening) + message.content
                else:
                    text += _inside(self.assistant, (thoughts if self.keeps else "") + message.content)
            if last and message.role != "assistant":
                text += opening
        return text


def turns_of(template: ChatTemplate) -> tuple[Turns, list[str]]:
    """The table of a chat template as it was trained, and in what it is not the template.

    Raises:
        NoTable: the template does more than put texts around messages.
    """
    turns, notes = _measured(template, thinking=False) if not template.thinks else None, []
    if template.thinks is not False:
        thinking = _with_thoughts(template, _measured(template, thinking=True))
        if turns is None or replace(thinking, thoughts=None, keeps=False) == turns:
            turns = thinking
        elif replace(thinking, opening="", thoughts=None, keeps=False) == replace(turns, opening=""):
            turns = replace(thinking, silent=turns.opening)
        else:
            notes.append("thoughts: never asked for, since the template then writes earlier turns differently")
    assert turns is not None
    _check(template, turns)
    return turns, [*notes, *_differences(template, turns)]


def _measured(template: ChatTemplate, thinking: bool) -> Turns:
    gaps: Gaps = {}
    last = False
    for messages in PROBES:
        found, order = _gaps(template, messages, thinking)
        last |= "system" in order[1:]
        for pair, text in found.items():
            if gaps.setdefault(pair, text) != text:
                names = {BEGIN: "the beginning", END: "the answer"}
                between = " and ".join(names.get(role, f"the {role}'s message") for role in pair)
                raise NoTable(f"the text between {between} changes", where="chat template")
    return _table(template, gaps, last, thinking)


def _gaps(template: ChatTemplate, messages: Messages, thinking: bool, generation: bool = True) -> tuple[Gaps, list[str]]:
    """The texts between messages by the roles around them, and the roles in the order they are written in."""
    text = template.render(messages, generation=generation, thinking=thinking)
    if template.bos is not None:
        text = text.removeprefix(str(template.renderer.variables["bos_token"]))
    for message in messages:
        if text.count(message.content) != 1:
            how = "left out" if message.content not in text else "written twice"
            raise NoTable(f"the {message.role}'s message is {how}", where="chat template")
    gaps: Gaps = {}
    role: str = BEGIN
    order: list[str] = []
    for message in sorted(messages, key=lambda one: text.index(one.content)):
        before, _, text = text.partition(message.content)
        if gaps.setdefault((role, message.role), before) != before:
            raise NoTable(f"the text before the {message.role}'s message changes", where="chat template")
        role = message.role
        order.append(role)
    return gaps | {(role, END): text}, order


def _table(template: ChatTemplate, gaps: Gaps, last: bool, thinking: bool) -> Turns:
    """The gaps cut into what belongs to each message: any cut renders the same, this one reads well."""
    begin, again = gaps[BEGIN, "user"], gaps["assistant", "user"]
    user = _common_end(begin, again)
    fold: Fold = "last" if last else "turn" if gaps["system", "user"].endswith(user) else "first"
    if fold == "turn":
        user = _common_end(user, gaps["system", "user"])
    enders = _enders(template, gaps)
    user = user[len(_ender(user, enders)) :] or user
    lead, said_after = begin.removesuffix(user), again.removesuffix(user)
    shared = _common_start(gaps["user", "assistant"], gaps["user", END])
    asked_after = _ender(shared, enders) or shared[: len(shared) - len(shared.lstrip())]
    alone = _seen(template, BEGUN, thinking).get((BEGIN, "assistant"))
    if alone is not None and gaps["user", "assistant"].endswith(alone := alone.removeprefix(lead)):
        known = gaps["user", "assistant"].removesuffix(alone)
        asked_after = known if shared.startswith(known) else asked_after
    said_before, opening = (gaps["user", to].removeprefix(asked_after) for to in ("assistant", END))
    start, before, after = gaps[BEGIN, "system"], "", gaps["system", "user"]
    if fold == "turn":
        after = after.removesuffix(user)
        middle = _seen(template, LATE, thinking).get(("assistant", "system"), "")
        before = middle[len(said_after) :] if middle.startswith(said_after) else ""
        before = before or start.removeprefix(lead)
        first = start.removesuffix(before) if start.endswith(before) else None
        before, first = (start, "") if first is None else (before, first)
    else:
        before, first = start.removeprefix(lead + user), lead
        if not start.startswith(lead + user) or (last and gaps["assistant", "system"] != said_after + user + before):
            raise NoTable("the system message stands in no one place", where="chat template")
    return Turns((first, lead), fold, (before, after), (user, asked_after), (said_before, said_after), opening)


def _seen(template: ChatTemplate, messages: Messages, thinking: bool) -> Gaps:
    """The gaps of an unusual conversation; none where the template does not take it."""
    try:
        return _gaps(template, messages, thinking)[0]
    except ModelError:
        return {}


def _enders(template: ChatTemplate, gaps: Gaps) -> list[str]:
    """Tokens that end a turn of whatever role."""
    added = template.codec.added
    ends = (gaps["user", "assistant"], gaps["assistant", "user"])
    both = [token for token in template.codec.special if all(gap.startswith(token) for gap in ends)]
    return sorted({token for token, index in added.items() if index in template.stop} | set(both), key=len, reverse=True)


def _ender(text: str, enders: list[str]) -> str:
    """The token at the beginning that ends a turn, with the white space around it; empty where the text is nothing else."""
    found = re.match(rf"\s*(?:{'|'.join(map(re.escape, enders))})\s*", text)
    return found[0] if found and found.end() < len(text) else ""


def _with_thoughts(template: ChatTemplate, turns: Turns) -> Turns:
    """The table with how thoughts are written."""
    if "reasoning" not in template.writes:
        return turns
    try:
        text = template.render((FIRST, THOUGHT), thinking=True)
        kept = THOUGHT.reasoning in template.render((FIRST, THOUGHT, NEXT), thinking=True, generation=True)
    except TemplateRefused:
        return turns
    before, _, rest = text.partition(FIRST.content)[2].partition(THOUGHT.reasoning)
    between = rest.partition(SAID.content)[0]
    expected = turns.user[1] + turns.assistant[0]
    if not before.startswith(expected) or THOUGHT.content not in rest or not between.strip():
        return turns
    return replace(turns, thoughts=(before[len(expected) :], between), keeps=kept)


def _check(template: ChatTemplate, turns: Turns) -> None:
    """Renders conversations both ways.

    Raises:
        NoTable: one of them differs.
    """
    modes = (False, True) if turns.silent is not None else (bool(template.thinks),)
    for messages in conversations():
        for thinking in modes:
            ours, own = turns.render(messages, thinking=thinking), template.render(messages, generation=True, thinking=thinking)
            if ours != plain(template, own):
                raise NoTable(f"a conversation of {len(messages)} messages is rendered otherwise", where="chat template")


def conversations() -> list[Messages]:
    """One to four questions, with a system message and without, of texts of all kinds."""
    made = []
    for questions in range(1, 5):
        for shift in range(2):
            roles = ["user", "assistant"] * questions
            texts = (TEXTS[shift:] + TEXTS[:shift])[: 2 * questions - 1]
            talk = tuple(Message(role, text) for role, text in zip(roles, texts, strict=False))  # type: ignore[arg-type]
            made += [talk, (Message("system", TEXTS[-1 - shift]), *talk)]
    return made


def plain(template: ChatTemplate, text: str) -> str:
    """A rendered text without the token that the tokenizer adds."""
    return text.removeprefix(str(template.renderer.variables["bos_token"])) if template.bos is not None else text


# Conversations beyond the usual: they may differ, and then it is said.
EXTRAS: dict[str, Messages] = {
    "white space at the ends of a message, which is kept": (Message("user", " zqfirst\n"),),
    "a system message in the middle": LATE,
    "a conversation that the assistant begins": BEGUN,
    "thoughts of earlier turns": (FIRST, THOUGHT, NEXT),
}


def _differences(template: ChatTemplate, turns: Turns) -> list[str]:
    found = []
    for name, messages in EXTRAS.items():
        try:
            own = template.render(messages, generation=True, thinking=turns.silent is not None or bool(template.thinks))
        except TemplateRefused:
            continue
        if turns.render(messages) != plain(template, own):
            found.append(name)
    if "tools" in template.writes:
        found.append("tools: Go writes their JSON in another form than Jinja, so they are left out")
    return found


def _common_start(one: str, two: str) -> str:
    return one[: len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False))))]


def _common_end(one: str, two: str) -> str:
    return _common_start(one[::-1], two[::-1])[::-1]


def _inside(around: Around, text: str) -> str:
    return around[0] + text + around[1]
