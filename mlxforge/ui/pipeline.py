"""A pipeline on the terminal: the plan, one line of all stages, and at the end what each gained and cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlxforge.core import events as ev
from mlxforge.evals.road import Forecast, Gain, Outcome, PlanRow, Summary
from mlxforge.ui import units
from mlxforge.ui.panels import SIGNS
from mlxforge.ui.report import show_checks

ACTIONS = {"run": "bold", "resume": "bold yellow", "skip": "bright_black", "leave": "bright_black"}
FIGURES = ("tokens", "steps", "time", "memory", "disk", "cost")
WIDE, NARROW = 100, 80  # columns: for all figures, and for some with their reasons
WORDS = {"run": "run", "resume": "go on", "skip": "skip", "leave": "leave"}


OpenStage = Callable[[str, Mapping[str, str]], AbstractContextManager[ev.Emit]]


def watch(events: Iterable[ev.Event], open_stage: OpenStage, out: Console) -> None:
    """Shows a pipeline of another process by its events: the line of all stages, and each stage as its own command would."""
    with ExitStack() as stage:
        emit: ev.Emit = ev.ignore
        for event in events:
            if isinstance(event, (ev.StageStarted, ev.StageEnded)):
                stage.close()
                emit = ev.ignore
            if isinstance(event, ev.StageStarted):
                emit = stage.enter_context(open_stage(event.stage, event.states))
            elif isinstance(event, ev.StageEnded):
                out.print(stage_end(event))
            else:
                emit(event)


def stage_end(event: ev.StageEnded) -> Text:
    """``✓ cpt done in 0:31: valid bpb 1.393 → 1.016``."""
    sign, style = SIGNS.get(event.status, SIGNS["failed"])
    gained = f": {event.gained}" if event.gained else ""
    return Text(f"{sign} {event.stage} {event.status} in {units.clock(event.seconds)}", style) + Text(gained)


def show_plan(planned: Sequence[PlanRow], out: Console) -> None:
    """What happens to each stage and why; what it is expected to take where that was asked for."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    found = [one.forecast for one in planned if one.forecast]
    shown, reasons = _fitting(out.width) if found else ((), True)
    for title in ("stage", "", "why") if reasons else ("stage", ""):
        table.add_column(title, no_wrap=title != "why", overflow="fold")
    for title in shown:
        table.add_column(title, justify="right", no_wrap=True)

    def row(stage: str, action: str, why: str, style: str, figures: Mapping[str, str]) -> None:
        words = (stage, action, why) if reasons else (stage, action)
        table.add_row(*(Text(word, style) for word in words), *(figures.get(title, "") for title in shown))

    for one in planned:
        why = "; ".join(filter(None, (one.why, one.forecast.why if one.forecast else "")))
        row(one.stage, WORDS[one.action], why, ACTIONS[one.action], _forecast(one.forecast) if one.forecast else {})
    if found:
        table.add_section()
        row("all", "", "forecasts; time of training alone", "", _total(found))
    out.print(table)


def _fitting(width: int) -> tuple[tuple[str, ...], bool]:
    """The figures that a terminal has room for, and whether the reasons have any."""
    if width >= WIDE:
        return FIGURES, True
    return ("tokens", "time", "memory", "cost") if width >= NARROW else ("time", "memory", "cost"), width >= NARROW


def _forecast(one: Forecast) -> dict[str, str]:
    about = "~" if one.rough else ""
    return {
        "tokens": about + units.count(one.tokens) if one.tokens is not None else "",
        "steps": f"{about}{one.steps:,}" if one.steps is not None else "",
        "time": "~" + units.clock(one.seconds) if one.seconds is not None else "",
        "memory": about + units.size(one.memory) if one.memory is not None else "",
        "disk": units.size(one.disk) if one.disk is not None else "",
        "cost": units.dollars(one.cost) if one.cost is not None else "",
    }


def _total(all_of: Sequence[Forecast]) -> dict[str, str]:
    """The sums; of memory the most. What nothing is known of stays empty."""
    tokens, seconds, disk, cost = (
        sum(getattr(one, key) or 0 for one in all_of) for key in ("tokens", "seconds", "disk", "cost")
    )
    memory = max((one.memory or 0 for one in all_of), default=0)
    about = "~" if any(one.rough for one in all_of) else ""
    return {
        "tokens": about + units.count(tokens) if tokens else "",
        "time": "~" + units.clock(seconds) if seconds else "",
        "memory": about + units.size(memory) if memory else "",
        "disk": units.size(disk) if disk else "",
        "cost": units.dollars(cost) if cost else "",
    }


def show_summary(summary: Summary, out: Console) -> None:
    """What each stage gained and what it cost, then the verdict and where the report lies."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for title in ("time", "tokens", "peak", "disk"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("gained")
    for one in summary.stages:
        table.add_row(*_outcome(one))
    table.add_section()
    cost = units.dollars(summary.cost) if summary.cost else ""
    peak = units.size(summary.peak_memory)
    table.add_row("all", units.clock(summary.seconds), units.count(summary.tokens), peak, units.size(summary.disk), cost)
    out.print(table)
    if summary.gate:
        show_checks(summary.gate["requirements"], bool(summary.gate["passed"]), out)
    if summary.report:
        out.print(Text("report ", "bright_black") + Text(summary.report, "bold"), soft_wrap=True)


def _outcome(one: Outcome) -> tuple[Text | str, ...]:
    sign, style = SIGNS["done" if one.done else "skipped"] if one.status == "done" else SIGNS["waits"]
    if one.status != "done":
        return (Text(f"{sign} {one.stage}", style), "", "", "", "", Text(one.status, "bright_black"))
    gained = Text(one.made)
    for gain in one.gains:
        gained.append("\n" if gained else "").append(f"{gain.name.replace('_', ' ')} ").append(_change(gain), _better(gain))
    return (
        Text(f"{sign} {one.stage}", style),
        units.clock(one.seconds),
        units.count(one.tokens) if one.tokens else "",
        units.size(one.peak_memory) if one.peak_memory else "",
        units.size(one.disk),
        gained,
    )


def _change(gain: Gain) -> str:
    write = (lambda value: f"{value:.1%}") if gain.share else units.number
    known = [write(value) for value in (gain.before, gain.after) if value is not None]
    return " → ".join(known) or units.NONE


def _better(gain: Gain) -> str:
    if gain.before is None or gain.after is None or gain.before == gain.after:
        return ""
    return "#41c98e" if (gain.after > gain.before) == (gain.better == "higher") else "yellow"
