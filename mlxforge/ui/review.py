"""Looking at rows one by one: the row, the text it came from, what the gates said, and a key for what the person says."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from mlxforge.ui import panels
from mlxforge.ui.frame import boxed
from mlxforge.ui.keys import Keys
from mlxforge.ui.listen import terminal_signals
from mlxforge.ui.talk import harmless

KEYS = (
    *(("a", "accept"), ("e", "edit"), ("r", "reject"), ("s", "skip")),
    *(("b", "back"), ("j/k", "scroll"), ("q", "quit")),  # the last is always shown
)
WORDS = {"a": "accept", "r": "reject"}
STYLES = {"accept": "bold #41c98e", "edit": "bold #41c98e", "reject": "bold red", "accepted": "#41c98e", "rejected": "red"}
PAST = {"accept": "accepted", "edit": "edited", "reject": "rejected", "": "to do"}
ROLES = {"user": "bold #5fafff", "assistant": "bold #41c98e", "system": "bold bright_black", "chosen": "bold #41c98e"}
ROLES |= {"rejected": "bold red", "prompt": "bold #5fafff"}
NOT_SHOWN = ("source", "review", "made_by")
TOLD = ("style", "model", "way", "judge", "grounded", "job")  # of where a row comes from
ROOMY = 80  # columns from which all keys have room
WIDE = 100  # columns from which row and source stand side by side
SHORT = 100  # characters of JSON that stay on one line
PAUSE = 0.25


class Row(Protocol):
    """A row as :class:`mlxforge.runs.review.Row` has it."""

    @property
    def place(self) -> str: ...
    @property
    def values(self) -> dict[str, Any]: ...
    @property
    def verdict(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def reviewed(self) -> str: ...


class Passage(Protocol):
    """What a row came from."""

    @property
    def text(self) -> str: ...
    @property
    def span(self) -> tuple[int, int]: ...
    @property
    def place(self) -> str: ...
    @property
    def problem(self) -> str: ...


class Sitting(Protocol):
    """Rows to look at, as :class:`mlxforge.runs.review.Review` has them."""

    name: str

    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> Row: ...
    def said(self) -> Counter[str]: ...
    def say(self, number: int, word: str) -> None: ...
    def edit(self, number: int, text: str) -> str: ...
    def passage(self, row: Any) -> Passage: ...


def counts(said: Mapping[str, int]) -> str:
    """``3 accepted · 1 rejected · 36 to do``."""
    return " · ".join(f"{said[word]:,} {past}" for word, past in PAST.items() if said.get(word))


def row_text(values: Mapping[str, Any]) -> Text:
    """A row as people read it: turns under their roles, other keys under their names, provenance last."""
    text = Text()
    for key, value in values.items():
        if key not in NOT_SHOWN and value is not None:
            for label, said in _turns(key, value):
                text.append(f"{harmless(label)}\n", ROLES.get(label, ROLES.get(key, "bold")))
                text.append(harmless(said).rstrip() + "\n\n")
    told = [
        f"{name} {part[name]}"
        for part in map(_mapping, map(values.get, ("source", "made_by")))
        for name in TOLD
        if part.get(name)
    ]
    text.append(harmless(" · ".join(told)).replace("\n", " "), "bright_black")
    text.rstrip()
    return text


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _turns(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, list) and value and all(isinstance(turn, dict) and "role" in turn for turn in value):
        named = [(str(turn["role"]), turn.get("content") or _plain(turn.get("tool_calls", ""))) for turn in value]
        return [(role if key == "messages" else f"{key}: {role}", _plain(content)) for role, content in named]
    return [(key, _plain(value))]


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    line = json.dumps(value, ensure_ascii=False)
    return line if len(line) <= SHORT else json.dumps(value, ensure_ascii=False, indent=2)


def source_text(passage: Passage) -> Text:
    """The chunk with the row's span standing out; what keeps it from being shown where there is none."""
    if passage.problem:
        return Text(passage.problem, "bright_black")
    begin, end = passage.span
    text = Text(harmless(passage.text[:begin]))
    text.append(harmless(passage.text[begin:end]), "reverse" if end > begin else "")
    return text.append(harmless(passage.text[end:]))


class Picture:
    """One row at the size of the screen: never more lines, never a wider line. ``scroll`` lines are above the top."""

    def __init__(self, sitting: Sitting, height: int | None = None) -> None:
        self.sitting, self.height = sitting, height
        self.number = self.scroll = 0
        self.message = ""
        self.shown: tuple[Row, Passage] | None = None
        self.deepest = 0

    def show(self, number: int) -> None:
        """Turns to a row."""
        row = self.sitting[number]
        self.number, self.scroll, self.shown = number, 0, (row, self.sitting.passage(row))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, self.height or options.height or console.height
        head, verdict, keys = self._head(width), self._verdict(width), self._keys(width)
        room = height - 3
        body = (self._aside if width >= WIDE else self._stacked)(console, options, width, room) if room > 2 else []
        lines = [head, *body, verdict, keys][-height:]
        for number, line in enumerate(lines):
            if number:
                yield Segment.line()
            yield line

    def _head(self, width: int) -> Text:
        left = panels.line((f"{self.sitting.name}", "bold"), f" · row {self.number + 1:,} of {len(self.sitting):,}")
        return panels.spread(left, panels.line((counts(self.sitting.said()), "bright_black")), width)

    def _verdict(self, width: int) -> Text:
        row, _ = self.shown or (self.sitting[self.number], None)
        text = panels.line()
        if row.verdict and not row.reviewed:
            text.append(f"gates: {row.verdict}", STYLES[row.verdict])
        if row.reviewed:
            text.append(f"you: {PAST[row.reviewed]}", STYLES[row.reviewed])
        if row.reason:
            text.append(
                (" · " if text else "") + harmless(row.reason).replace("\n", " "), "bright_black" if row.reviewed else ""
            )
        return panels.fit(text if text else panels.line(("not reviewed", "bright_black")), width)

    def _keys(self, width: int) -> Text:
        if self.message:
            return panels.fit(panels.line((self.message, "bold yellow")), width)
        gap = "  " if width >= ROOMY else " "
        *keys, quits = [panels.line((f" {key} ", "reverse"), f" {what}") for key, what in KEYS]
        return panels.joined([panels.joined(keys, width - len(gap) - quits.cell_len, gap), quits], width, gap)

    def _aside(self, console: Console, options: ConsoleOptions, width: int, height: int) -> list[Any]:
        assert self.shown is not None
        row, passage = self.shown
        left = width // 2
        boxes = [
            (row_text(row.values), f"row · {row.place}", left),
            (source_text(passage), _titled(passage), width - left),
        ]
        self.deepest = max(self._lines(console, text, size) for text, _, size in boxes) - height + 2
        drawn = [self._box(console, options, text, title, size, height) for text, title, size in boxes]
        return [_Line([*one, *other]) for one, other in zip(*drawn, strict=True)]

    def _stacked(self, console: Console, options: ConsoleOptions, width: int, height: int) -> list[Any]:
        assert self.shown is not None
        row, passage = self.shown
        above, below = row_text(row.values), source_text(passage)
        if height < 8:
            self.deepest = self._lines(console, above, width) - height + 2
            return [_Line(line) for line in self._box(console, options, above, f"row · {row.place}", width, height)]
        # Neither part takes more than it needs, nor more than half where the other needs that.
        wants = [self._lines(console, text, width) + 2 for text in (above, below)]
        top = min(max(height // 2, height - wants[1]), max(wants[0], height - wants[1]))
        top = max(4, min(top, height - 4))
        self.deepest = max(wants[0] - top, wants[1] - (height - top))
        parts = ((above, f"row · {row.place}", top), (below, _titled(passage), height - top))
        return [_Line(line) for text, title, size in parts for line in self._box(console, options, text, title, width, size)]

    def _lines(self, console: Console, text: Text, width: int) -> int:
        return len(text.wrap(console, width - 4))

    def _box(
        self, console: Console, options: ConsoleOptions, text: Text, title: str, width: int, height: int
    ) -> list[list[Segment]]:
        lines = list(text.wrap(console, width - 4))
        room = height - 2
        first = max(0, min(self.scroll, len(lines) - room))
        content = [panels.fit(line, width - 4) for line in lines[first : first + room]]
        content += [Text()] * (room - len(content))
        more = f" · {len(lines) - first - room} more lines" if len(lines) - first > room else ""
        named = panels.fit(Text(harmless(title).replace("\n", " "), "bold default"), max(4, width - 6 - len(more)))
        named.append(more, "bright_black")
        return console.render_lines(boxed(content, named), options.update(width=width, height=height), pad=True)


def _titled(passage: Passage) -> str:
    return f"source · {passage.place}" if passage.place else "source"


class _Line:
    """A line that is drawn already."""

    def __init__(self, segments: list[Segment]) -> None:
        self.segments = segments

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.segments


class Reviewer:
    """The loop: a picture, a key, the next row.

    Args:
        editor: gives a text to the user's editor and returns it as it was left, None where it was not saved.
    """

    def __init__(
        self,
        sitting: Sitting,
        editor: Callable[[str], str | None],
        *,
        console: Console | None = None,
        keyboard: TextIO | None = None,
    ) -> None:
        self.sitting, self.editor = sitting, editor
        self.console = console or Console(file=sys.stdout, highlight=False)
        self.keys = Keys(keyboard if keyboard is not None else sys.stdin)
        self.picture = Picture(sitting)
        self._live = Live(
            self.picture, console=self.console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._left = False

    def run(self) -> None:
        """Returns after the last row, or when the user leaves; what was said is kept by then."""
        if not len(self.sitting):
            return
        self.picture.show(0)
        with self.keys, self._live, terminal_signals(self._give_back, self._suspend):
            size: object = None
            while not self._left:
                if size != self.console.size:
                    size = self.console.size
                    self._live.refresh()
                typed = self.keys.wait(PAUSE)
                if self.keys.terminal is None:  # the terminal is gone
                    return
                for key in typed:
                    self._press(key.lower())
                    if self._left:
                        return
                if typed:
                    self._live.refresh()

    def _give_back(self) -> None:
        self._live.stop()
        self.keys.restore()

    def _suspend(self) -> None:
        """Ctrl-Z: the terminal is the shell's until the job comes back to the foreground."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()

    def _take(self) -> None:
        self.keys.grab()
        self._live.start(refresh=True)

    def _press(self, key: str) -> None:
        picture = self.picture
        picture.message = ""
        if key in WORDS:
            self.sitting.say(picture.number, WORDS[key])
            self._turn(1)
        elif key == "s":
            self._turn(1)
        elif key == "b":
            self._turn(-1)
        elif key == "e":
            self._edit()
        elif key in "jk":
            picture.scroll = max(0, min(picture.scroll + (1 if key == "j" else -1), picture.deepest))
        elif key == "q":
            self._left = True

    def _turn(self, step: int) -> None:
        number = max(0, self.picture.number + step)
        if number == len(self.sitting):
            self._left = True
        else:
            self.picture.show(number)

    def _edit(self) -> None:
        """The row in the user's editor, as JSON, until it is right or left as it was."""
        row = self.sitting[self.picture.number]
        text = before = json.dumps(row.values, ensure_ascii=False, indent=2) + "\n"
        self._give_back()
        try:
            left = self.editor(text)
        finally:
            self._take()
        if left is None or left.strip() == before.strip():
            self.picture.message = "nothing was changed"
            return
        wrong = self.sitting.edit(self.picture.number, left)
        if wrong:
            self.picture.message = f"not kept: {wrong}"
        else:
            self._turn(1)
