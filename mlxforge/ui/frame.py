"""One picture of a run at the size of the screen: panels where there is room, a few lines where there is not."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.layout import Layout
from rich.panel import Panel
from rich.text import Text

from mlxforge.ui import panels
from mlxforge.ui.state import State

KEYS = (("s", "save"), ("e", "evaluate"), ("q", "finish after this step"))
BORDER = "grey37"


class Frame:
    """Renders the state at the console's size: never more lines, never a wider line, whatever the size."""

    def __init__(self, state: State, keys: Sequence[tuple[str, str]] = (), height: int | None = None) -> None:
        self.state, self.keys, self.height = state, keys, height
        self.message = ""
        self.above: Text | None = None  # a line of what the run is a part of

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, self.height or options.height or console.height
        if self.above is not None and height >= 12:
            yield panels.fit(self.above, width)
            height -= 1
        if width >= 76 and height >= 20:
            yield from console.render(self._panels(width, height), options.update(width=width, height=height))
        else:
            yield Text("\n", no_wrap=True, overflow="crop", end="").join(self._lines(width, height))

    def _footer(self, width: int) -> Text:
        keys = [panels.line((f" {key} ", "reverse"), f" {what}") for key, what in self.keys]
        message = panels.fit(panels.line((self.message, "bold yellow")), width)
        if not self.message:
            return panels.joined(keys, width)
        room = width - message.cell_len - 2
        return panels.spread(panels.joined(keys, room) if room > 8 else panels.line(), message, width)

    def _ends(self, width: int) -> list[Text]:
        footer = [self._footer(width)] if self.keys or self.message else []
        return [panels.progress(self.state, width), *footer]

    def _lines(self, width: int, height: int) -> list[Text]:
        """The small picture. Under eight lines there is no curve; the bar goes last."""
        state = self.state
        head, ends = panels.header(state, width), self._ends(width)
        middle = panels.compact(state, width) if state.latest else panels.tasks(state, width)
        if state.latest and height >= 10:
            middle.append(panels.last_words(state, width))
        room = height - 1 - len(ends) - len(middle)
        curve: list[Text] = []
        if state.latest and room >= 4:
            curve = list(panels.loss_plot(state, width, room).split("\n", allow_blank=True))[:room]
        elif room > 0:
            middle += [panels.line()] * room
        if height <= len(ends):
            return ends[:height]
        return [head, *curve, *middle][: height - len(ends)] + ends

    def _panels(self, width: int, height: int) -> Layout:
        ends = self._ends(width)
        bottom = max(5, min(9, height // 4 - 1))
        whole = Layout()
        whole.split_column(
            Layout(panels.header(self.state, width), size=1),
            self._body(width, height - 1 - len(ends) - bottom),
            self._bottom(width, bottom),
            *(Layout(end, size=1) for end in ends),
        )
        return whole

    def _body(self, width: int, height: int) -> Layout:
        state, right = self.state, max(36, min(48, width * 36 // 100))
        left, body = width - right, Layout(size=height)
        if state.latest is None and not state.plan:
            body.update(boxed(panels.tasks(state, width - 4), "preparing"))
            return body
        if state.latest is None:
            main = boxed(panels.tasks(state, left - 4), "preparing")
            aside: list[Layout] = [Layout(boxed(panels.plan(state, right - 4), "plan"))]
        else:
            main = boxed(panels.loss_plot(state, left - 4, height - 2), panels.legend(state, left - 6))
            aside = self._measures(right, height)
        side = Layout(size=right)
        side.split_column(*aside)
        body.split_row(Layout(main, size=left), side)
        return body

    def _measures(self, width: int, height: int) -> list[Layout]:
        scores = panels.scores(self.state, width - 4) if self.state.evaluations or self.state.scored else []
        used = len(scores) + 2 if scores and height - len(scores) >= 8 else 0
        numbers = panels.numbers(self.state, width - 4, height - used - 2)
        parts = [Layout(boxed(numbers, "numbers"), size=height - used)]
        return [*parts, Layout(boxed(scores, "evaluation"), size=used)] if used else parts

    def _bottom(self, width: int, height: int) -> Layout:
        state, bottom = self.state, Layout(size=height)
        events = panels.happenings
        if not state.samples:
            bottom.update(boxed(events(state, width - 4, height - 2), "events"))
            return bottom
        left = width // 2
        title = f"sample at step {state.samples[-1].step:,}"
        bottom.split_row(
            Layout(boxed(panels.sample(state, left - 4, height - 2), title), size=left),
            Layout(boxed(events(state, width - left - 4, height - 2), "events"), size=width - left),
        )
        return bottom


def boxed(content: Text | list[Text], title: str | Text) -> RenderableType:
    """A panel around lines that already have their width."""
    body = Text("\n", no_wrap=True, overflow="crop", end="").join(content) if isinstance(content, list) else content
    heading = title if isinstance(title, Text) else Text(title, style="bold default")
    return Panel(body, title=heading, title_align="left", box=box.ROUNDED, border_style=BORDER, padding=(0, 1))
