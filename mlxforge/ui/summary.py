"""What a run leaves on the screen at its end: what came out, where it is, what to run next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from mlxforge.ui import units
from mlxforge.ui.state import State

SIGNS = {"finished": ("✓", "bold #41c98e"), "interrupted": ("■", "bold yellow"), "failed": ("✗", "bold red")}
SCORES = (("loss", "loss"), ("perplexity", "perplexity"), ("bpb", "bits a byte"))
MANY = 8


def summary(state: State) -> Text:
    """The end of a run from its events; of one that ended without a word, what is known. Empty if it never began."""
    text = Text(overflow="fold", end="")
    if state.started:
        _headline(text, state)
        if state.ended:
            outcome(text, state.ended.result)
    for mark, style, said in (("! ", "bold yellow", state.warnings), ("· ", "bright_black", state.notes)):
        for message, times in list(said.items())[:MANY]:
            text.append(f"  {mark}", style).append(units.one_line(message) + (f" ({times} times)" if times > 1 else "") + "\n")
        if len(said) > MANY:
            text.append(f"  {mark}and {len(said) - MANY} more, in events.jsonl\n", style)
    if state.path:
        text.append("  saved in  ", "bright_black").append(f"{state.path}\n", "bold")
    following(text, state.ended.next_steps if state.ended else [])
    return text


def _headline(text: Text, state: State) -> None:
    result: Mapping[str, Any] = state.ended.result if state.ended else {}
    sign, style = SIGNS.get(state.status, ("■", "bold yellow"))
    status = state.status if state.ended else "goes on" if state.left else "stopped"
    steps = state.ended.step if state.ended else state.latest.step if state.latest else 0
    trained, speed = result.get("trained_tokens", state.trained), result.get("tokens_per_second") or state.tokens_per_second
    peak = result.get("peak_memory_bytes") or (state.latest.memory_peak if state.latest else 0)
    facts = [f"{units.one_line(state.run)} {status}", f"{steps:,} steps in {units.clock(state.elapsed)}"]
    facts += [f"{units.count(trained)} tokens trained"] if trained else []
    facts += [f"{speed:,.0f} tokens/s"] if speed else []
    facts += [f"peak {units.size(peak)}"] if peak else []
    text.append(f"{sign} {facts[0]}", style).append("".join(f" · {fact}" for fact in facts[1:]) + "\n")
    if state.reason:
        text.append(f"  {units.one_line(state.reason)}\n", style)


def outcome(text: Text, result: Mapping[str, Any]) -> None:
    """Before and after of every set, the best step, and the task's own scores. Whatever is missing or null is left out."""
    retention = _mapping(result.get("retention"))
    sets = {
        "valid": (_mapping(result.get("before")), _mapping(result.get("valid"))),
        "retention": (_mapping(retention.get("before")), _mapping(retention.get("after"))),
    }
    shown = {name: pair for name, pair in sets.items() if any(pair)}
    if shown:
        text.append("  " + " " * 11 + "".join(f"{title:<18}" for _, title in SCORES).rstrip() + "\n", "bright_black")
    for name, (before, after) in shown.items():
        if "accuracy" in after:
            preferences(text, name, before, after)
            continue
        text.append(f"  {name:<11}")
        for key, _ in SCORES:
            text.append(f"{change(before.get(key), after.get(key)):<18}", _verdict(before.get(key), after.get(key)))
        text.rstrip()
        text.append("\n")
    best = _mapping(result.get("best"))
    if best.get("step") is not None:
        text.append(f"  {'best':<11}").append(f"{units.number(_float(best.get('loss')))} at step {best['step']:,}\n")
    elif _float(result.get("train_loss")) is not None:
        text.append(f"  {'train loss':<11}").append(f"{units.number(_float(result['train_loss']))}\n")
    if skipped := result.get("skipped_updates"):
        text.append(f"  {'skipped':<11}").append(f"{skipped} updates: loss or gradient not finite\n", "bold yellow")
    for name, value in _leaves(_mapping(result.get("task"))):
        text.append(f"  {name.replace('_', ' '):<10} ").append(f"{value}\n")


def preferences(text: Text, name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Of pairs: loss, accuracy and margin. The columns of text do not fit them."""
    text.append(f"  {name:<11}").append(f"{change(before.get('loss'), after.get('loss'))}")
    text.append(f"   accuracy {shares(before.get('accuracy'), after.get('accuracy'))}")
    text.append(f"   margin {change(before.get('margin'), after.get('margin'))}\n")


def following(text: Text, steps: list[str]) -> None:
    """The commands to go on with."""
    for index, step in enumerate(steps):
        text.append("  next      " if index == 0 else " " * 12, "bright_black").append(f"{step}\n", "#4aa8ff")


def change(before: Any, after: Any) -> str:
    """``4.220 → 1.990``; one of them where the other is not known."""
    known = [units.number(_float(value)) for value in (before, after) if _float(value) is not None]
    return " → ".join(known) or units.NONE


def shares(before: Any, after: Any) -> str:
    """``0.0% → 91.7%``, as a task's scores are shares of 1."""
    return " → ".join(f"{known:.1%}" for value in (before, after) if (known := _float(value)) is not None) or units.NONE


def _verdict(before: Any, after: Any) -> str:
    first, last = _float(before), _float(after)
    return "" if first is None or last is None or first == last else "#41c98e" if last < first else "yellow"


def _leaves(task: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in task.items():
        if isinstance(value, dict) and {"before", "after"} & set(value) and not isinstance(value.get("after"), dict):
            yield prefix + name, shares(value.get("before"), value.get("after"))
        elif isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name} ")
        elif value is not None:
            yield prefix + name, units.number(value) if isinstance(value, float) else units.one_line(str(value))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
