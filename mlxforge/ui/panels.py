"""The parts of the dashboard: each turns the state into lines of a given width, never wider."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from rich.cells import cell_len
from rich.text import Text

from mlxforge.core import events as ev
from mlxforge.ui import units
from mlxforge.ui.plot import Series, plot, spark
from mlxforge.ui.state import State, smooth

TRAIN, RAW, BAD, GOOD, DIM, BRIGHT = "#4aa8ff", "#33608c", "bold red", "#41c98e", "bright_black", "bold"
SETS = {"valid": ("#ffb02e", "●"), "retention": ("#e879d9", "◆")}
OTHERS = (("#41c98e", "▲"), ("#b08cff", "■"))
KINDS = {"warned": "bold yellow", "skipped": BAD, "failed": BAD, "saved": GOOD, "finished": GOOD, "interrupted": "bold yellow"}
STATUS = {"finished": GOOD, "failed": BAD, "interrupted": "bold yellow", "training": TRAIN}
LABEL, VALUE = 11, 9
# Metrics of an objective that come before all others.
LEADING = ("accuracy", "margin")
SHORT = {"reward_chosen": "reward +", "reward_rejected": "reward −", "logp_chosen": "log p +", "logp_rejected": "log p −"}


# Of a pipeline's stages.
SIGNS = {
    "done": ("✓", "#41c98e"),
    "skipped": ("✓", "bright_black"),
    "runs": ("▸", "bold #4aa8ff"),
    "waits": ("·", "bright_black"),
    "interrupted": ("■", "bold yellow"),
    "failed": ("✗", "bold red"),
}


def stages(states: Mapping[str, str]) -> Text:
    """All stages of a pipeline in a line: ``✓ ingest  ✓ cpt  ▸ sft  · dpo``."""
    signs = {label: SIGNS.get(state, SIGNS["waits"]) for label, state in states.items()}
    return Text("  ").join(Text(f"{sign} {label}", style) for label, (sign, style) in signs.items())


def look(state: State, name: str) -> tuple[str, str]:
    """Colour and marker of an evaluated set; sets not known by name take what is left."""
    if name in SETS:
        return SETS[name]
    return OTHERS[[one for one in state.evaluations if one not in SETS].index(name) % len(OTHERS)]


def line(*parts: tuple[str, str] | str) -> Text:
    """One line that is cut rather than wrapped."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis", end="")


def fit(text: Text, width: int) -> Text:
    """``text`` cut to ``width`` cells."""
    text.truncate(max(width, 0), overflow="ellipsis")
    return text


def spread(left: Text, right: Text, width: int) -> Text:
    """``left`` and ``right`` at the two ends of a line; the right one goes when there is no room for half of the left."""
    room = width - right.cell_len - 1
    if room < min(left.cell_len, width // 2):
        return fit(left, width)
    fit(left, room).append(" " * (width - right.cell_len - left.cell_len))
    return left.append_text(right)


def joined(parts: Iterable[Text], width: int, gap: str = "  ") -> Text:
    """As many whole parts as fit, in order."""
    result = line()
    for part in parts:
        if result.cell_len and result.cell_len + cell_len(gap) + part.cell_len > width:
            continue
        result.append(gap if result.cell_len else "").append_text(part)
    return fit(result, width)


def header(state: State, width: int) -> Text:
    """Run, objective, model; status and elapsed time at the right."""
    left = line((" mlxforge ", f"bold reverse {TRAIN}"), " ", (units.one_line(state.run) or "…", BRIGHT))
    for part in (state.objective, state.model):
        if part:
            left.append(" · ", DIM).append(units.one_line(part))
    style = STATUS.get(state.status, "yellow")
    return spread(left, line((f"● {state.status}", style), (f"  {units.clock(state.elapsed)}", DIM)), width)


def bar(part: float, width: int, style: str) -> Text:
    """A bar of which ``part`` (0 to 1) is filled."""
    filled = round(min(max(part, 0.0), 1.0) * width)
    return line(("━" * filled, style), ("━" * (width - filled), "grey30"))


def progress(state: State, width: int) -> Text:
    """Step and epoch, a bar, per cent and time left."""
    step = state.latest
    if step is None:
        return fit(line((" waiting for the first step", DIM)), width)
    epochs = state.config.get("epochs")
    total = f"/{epochs:g}" if isinstance(epochs, (int, float)) and not state.config.get("steps") else ""
    left = line(" step ", (f"{step.step:,}/{step.steps:,}", BRIGHT))
    if width >= 50:
        left.append("  epoch ").append(f"{step.epoch:.2f}{total}", BRIGHT)
    right = line((f"{step.step / max(step.steps, 1):.0%}", BRIGHT))
    if state.eta is not None:
        right.append("  eta ").append(f"{units.clock(state.eta)} ", BRIGHT)
    room = width - left.cell_len - right.cell_len - 3
    left.append("  " if room >= 4 else " ")
    if room >= 4:
        left.append_text(bar(step.step / max(step.steps, 1), room, TRAIN)).append(" ")
    return fit(left.append_text(right), width)


def legend(state: State, width: int) -> Text:
    """What the colours of the loss curve mean, with the latest values where there is room."""
    recent = smooth(state.loss.ys)
    known = [("━ train", TRAIN, recent[-1] if recent else None)]
    for name, evaluation in state.evaluations.items():
        style, marker = look(state, name)
        known.append((f"{marker} {name}", style, evaluation.last.loss))
    title = line(("loss", "bold default"))
    full = [line((f"{text} {units.number(value)}", style)) for text, style, value in known]
    short = [line((text, style)) for text, style, _ in known]
    parts = full if sum(part.cell_len + 2 for part in [title, *full]) <= width else short
    return joined([title, *parts], width)


def loss_plot(state: State, width: int, height: int) -> Text:
    """Raw training loss as dots, smoothed as a line, every evaluated set with its marker, a star at the best."""
    curves = [Series(state.loss.xs, state.loss.ys, RAW, scatter=True), Series(state.loss.xs, smooth(state.loss.ys), TRAIN)]
    for name, evaluation in state.evaluations.items():
        style, marker = look(state, name)
        curves.append(Series(evaluation.curve.xs, evaluation.curve.ys, style, marker))
    if state.best:
        curves.append(Series([state.best.step], [state.best.loss], f"bold {look(state, state.best.name)[0]}", "★"))
    return plot(curves, width, height)


def row(label: str, value: str, rest: str = "", style: str = "", width: int = 0) -> Text:
    """Label, right-aligned value, and a note or small curve."""
    text = line((f"{label[: LABEL - 1]:<{LABEL}}" if len(label) < LABEL else f"{label[: LABEL - 2]}… ", DIM))
    text.append(f"{value:>{VALUE}}", BRIGHT).append("  ").append(rest, style or DIM)
    return fit(text, width) if width else text


def curve(label: str, value: str, ys: Sequence[float], style: str, width: int, tall: bool) -> list[Text]:
    """A row with its course; a tall one has a second line with the range."""
    bars = spark(ys, width - LABEL - VALUE - 2, 2 if tall else 1)
    rows = [row(label, value, bars[0], style)]
    if tall:
        span = f"{units.number(min(ys), 3)} to {units.number(max(ys), 3)}" if ys else ""
        rows.append(line((f"{span:>{LABEL + VALUE}}  ", DIM), (bars[1], style)))
    return rows


def metric_rows(state: State) -> list[tuple[str, str, Sequence[float], str]]:
    """(label, value, course, colour) of the objective's metrics; those of an evaluated set carry its marker and colour."""
    rows = []
    for name, one in state.metrics.items():
        owner = next((known for known in state.evaluations if name.startswith(f"{known} ")), "")
        bare = name.removeprefix(f"{owner} ")
        style, marker = look(state, owner) if owner else ("#d7d787", "")
        order = LEADING.index(bare) if bare in LEADING else len(LEADING)
        rows.append(
            (order, f"{marker}{SHORT.get(bare, bare.replace('_', ' '))}", units.number(state.values[name]), one.ys, style)
        )
    return [(label, value, ys, style) for _, label, value, ys, style in sorted(rows, key=lambda row: row[0])]


def numbers(state: State, width: int, height: int) -> list[Text]:
    """The latest values, each with the course it took; metrics of the objective follow without being known by name.

    Tall rows where there is room; where there is not even room for low ones, active memory goes first.
    """
    step = state.latest
    if step is None:
        return []
    curves = [
        ("train", units.number(step.loss), state.loss.ys, TRAIN),
        ("lr", units.rate(step.learning_rate), state.learning_rate.ys, GOOD),
        ("gradient", units.number(step.grad_norm, 3), state.grad_norm.ys, "#b08cff"),
        ("tokens/s", f"{state.tokens_per_second or 0:,.0f}", state.speed.ys, "#3fc1c9"),
        *metric_rows(state),
    ]
    padding = units.share(state.slots - state.tokens, state.slots)
    rest = [row("trained", units.share(state.trained, state.slots), f"{'padding' if width > 33 else 'pad'} {padding}")]
    if state.skipped:
        rest.append(row("skipped", f"{state.skipped:,}", "not finite", BAD))
    rest += memory(step, width - LABEL - VALUE - 2)
    if len(curves) + len(rest) > height:
        rest = rest[:-1]
    tall = 2 * len(curves) + len(rest) <= height
    shown = [one for each in curves for one in curve(*each, width, tall)][: max(height - len(rest), 4)]
    return [fit(one, width) for one in [*shown, *rest]][:height]


def memory(step: ev.StepDone, room: int) -> list[Text]:
    """Active and peak memory, against the limit where there is one; nothing where it is not measured."""
    if not step.memory_peak and not step.memory_active:
        return []
    limit = step.memory_limit
    style = BAD if limit and step.memory_peak > 0.9 * limit else TRAIN
    active = row("memory", units.size(step.memory_active))
    peak = row("peak", units.size(step.memory_peak), f"of {units.size(limit)}" if limit else "")
    return [peak, active.append_text(bar(step.memory_active / limit, max(room, 0), style)) if limit else active]


def scores(state: State, width: int) -> list[Text]:
    """Every evaluated set: loss, perplexity, bits a byte, and the change since the first evaluation; the task's scores."""
    wide = width >= 39
    rows = [line((f"{'':<11}{'loss':>7}{'ppl':>7}{'bpb':>6}" + ("  change" if wide else ""), DIM))]
    for name, evaluation in state.evaluations.items():
        style, marker = look(state, name)
        last, change = evaluation.last, evaluation.last.loss - evaluation.first.loss
        text = line((f"{marker} {name[:9]:<9}", style), (f"{units.number(last.loss):>7}", BRIGHT))
        text.append(f"{units.number(last.perplexity):>7}{units.number(last.bpb):>6}")
        if wide:
            text.append(f"{change:>+8.3f}", GOOD if change < 0 else "yellow" if change > 0 else DIM)
        rows.append(text)
    if state.best:
        rows.append(line((f"★ {'best':<9}{units.number(state.best.loss):>7}", GOOD), (f"  at step {state.best.step:,}", DIM)))
    for name, values in state.scored.items():
        after = f" → {values[-1]:.1%}" if len(values) > 1 else " before training"
        rows.append(
            line((f"✓ {name.replace('_', ' ')} ", GOOD), (f" {values[0]:.1%}", BRIGHT), (after, BRIGHT if values[1:] else DIM))
        )
    return [fit(one, width) for one in rows]


def wrapped(text: Text, width: int, height: int) -> list[Text]:
    """``text`` over at most ``height`` lines, broken at spaces where that wastes little."""
    lines: list[Text] = []
    while text.cell_len > width > 0 and len(lines) < height - 1:
        kept = text.copy()
        kept.truncate(width, overflow="crop")
        space = kept.plain.rfind(" ")
        end = space if space > width // 2 else len(kept.plain)
        lines.append(text[:end])
        text = text[end + (end == space) :]
    return [*lines, fit(text, width)][:height]


def sample(state: State, width: int, height: int) -> list[Text]:
    """The last continuations: prompt dim, what the model wrote bright; of an answer also how it was at first."""
    each = max(1, height // max(len(state.samples), 1))
    lines: list[Text] = []
    for one in state.samples:
        text = line((units.one_line(one.prompt), DIM), " ")
        before = state.first_texts.get(one.prompt, one.text)
        if state.objective != "cpt" and before != one.text:
            text.append(units.one_line(before), "grey42").append(" → ", DIM)
        text.append(units.one_line(one.text), BRIGHT)
        lines += wrapped(text, width, each)
    return lines[:height]


def happenings(state: State, width: int, height: int) -> list[Text]:
    """What happened last, the newest at the bottom, under it the tasks that go on."""
    busy = [task(one, width) for one in state.tasks.values() if state.latest and unfinished(one)][:height]
    told = []
    stamp = "%H:%M:%S " if width >= 44 else "%H:%M "
    for time, kind, text in list(state.recent)[-height:]:
        style = KINDS.get(kind) or (look(state, kind)[0] if kind in state.evaluations else DIM)
        told.append(line((datetime.fromtimestamp(time).strftime(stamp), DIM), (f"{kind} ", style), units.one_line(text)))
    room = height - len(busy)
    return [fit(one, width) for one in (told[-room:] if room else [])] + busy


def unfinished(event: ev.Progress) -> bool:
    """Whether a task still goes on."""
    return not event.total or event.done < event.total


def task(event: ev.Progress, width: int) -> Text:
    """One task: name, bar, how much."""
    amount = f"{units.count(event.done)}" + (f"/{units.count(event.total)}" if event.total else "")
    right = line(f" {amount} {event.unit}".rstrip())
    name = line(("✓ " if not unfinished(event) else "· ", GOOD), f"{units.one_line(event.task)} ")
    room = width - name.cell_len - right.cell_len
    if event.total and room >= 6:
        name.append_text(bar(event.done / event.total, room, GOOD if not unfinished(event) else TRAIN))
        return fit(name.append_text(right), width)
    return spread(name, right, width)


def tasks(state: State, width: int) -> list[Text]:
    """All preparation so far."""
    return [task(event, width) for event in state.tasks.values()] or [fit(line(("loading", DIM)), width)]


def plan(state: State, width: int) -> list[Text]:
    """The plain values of the run's plan, before there is anything to measure."""
    rows = []
    for name, value in state.plan.items():
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            shown = f"{value:,}" if isinstance(value, int) else units.number(value, 3) if isinstance(value, float) else value
            rows.append(spread(line((name.replace("_", " "), DIM)), line((units.one_line(shown), BRIGHT)), width))
    return rows


def compact(state: State, width: int) -> list[Text]:
    """The numbers on two lines, for small terminals: what does not fit whole is left out."""
    step = state.latest
    if step is None:
        return []
    losses = [line(("train ", TRAIN), (units.number(step.loss), BRIGHT))]
    for name, evaluation in state.evaluations.items():
        losses.append(line((f"{name} ", look(state, name)[0]), (units.number(evaluation.last.loss), BRIGHT)))
    if state.best:
        losses.append(line(("★ ", GOOD), f"{units.number(state.best.loss)} at {state.best.step:,}"))
    rest = [
        line(("lr ", DIM), units.rate(step.learning_rate)),
        line(f"{state.tokens_per_second or 0:,.0f}", (" tok/s", DIM)),
        line(("grad ", DIM), units.number(step.grad_norm, 3)),
        line(("peak ", DIM), units.size(step.memory_peak)) if step.memory_peak else line(),
        line(("trained ", DIM), units.share(state.trained, state.slots)),
        *(line((f"{name} ", DIM), units.number(value, 3)) for name, value in state.values.items()),
    ]
    return [joined(losses, width), joined([one for one in rest if one.plain], width)]


def last_words(state: State, width: int) -> Text:
    """The sample, or else the last happening, on one line."""
    shown: Sequence[Text] = sample(state, width, 1) or happenings(state, width, 1)
    return shown[0] if shown else line()
