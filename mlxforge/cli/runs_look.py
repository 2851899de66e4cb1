"""``mlxforge runs show|last|watch|plot``: what was run, what came out, and a look at a run from another terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from mlxforge.cli.runs import FOLDER, JSON, RUN
from mlxforge.cli.runs_list import draw


@click.command()
@FOLDER
@click.option("--objective", metavar="NAME", help="The newest of this objective, such as cpt.")
@JSON
def last(runs_dir: Path, objective: str | None, as_json: bool) -> None:
    """Print the name of the newest run that is finished, for scripts: --model run:$(mlxforge runs last)."""
    from mlxforge.core.errors import RunError
    from mlxforge.runs.record import list_runs

    found = [one for one in list_runs(runs_dir) if one.status == "finished" and objective in (None, one.objective)]
    if not found:
        raise RunError(f"no finished run{f' of {objective}' if objective else ''}", where=str(runs_dir), fix="train one first")
    click.echo(json.dumps({"name": found[-1].name, "path": found[-1].path}) if as_json else found[-1].name)


@click.command()
@RUN
@FOLDER
@JSON
def show(run: str, runs_dir: Path, as_json: bool) -> None:
    """Show what a run was given and what came out.

    Settings that differ from the defaults, result, lineage with what was made of it, and files.
    """
    from mlxforge.runs import record
    from mlxforge.runs.checkpoints import marked_steps
    from mlxforge.runs.lineage import branch, lineage_tree, searched

    path = record.find_run(run, runs_dir)
    kept = record.read_record(path)
    page: dict[str, Any] = {
        "name": path.name,
        "path": str(path),
        "objective": kept.get("objective"),
        "status": record.status_of(path, kept),
        "reason": kept.get("reason") or None,
        "settings": record.changed_settings(record.read_config(path), str(kept.get("objective"))),
        "result": kept.get("result"),
        "lineage": kept.get("lineage"),
        "gate": record.read_gate(path),
        "checkpoints": marked_steps(path),
        "tree": branch(lineage_tree(path.parent, searched(path.parent)), path),
        "files": record.files_of(path),
    }
    if as_json:
        import msgspec

        click.echo(json.dumps(msgspec.to_builtins(page), indent=2, ensure_ascii=False))
        return
    _page(page)


def _page(page: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    from mlxforge.ui.summary import outcome
    from mlxforge.ui.units import size

    console = Console(highlight=False, soft_wrap=True)
    facts = " · ".join(str(page[key]) for key in ("name", "objective", "status", "reason") if page[key])
    console.print(Text(facts, style="bold"))
    if page["result"]:
        text = Text("\nresult\n", style="")
        outcome(text, page["result"])
        console.print(text, end="")
    gate, steps = page["gate"], page["checkpoints"]
    if gate is not None:
        verdict = {True: "passed", False: "failed"}.get(gate.get("passed"), "gate.json is damaged")
        console.print(Text("\n".join([f"\ngate: {verdict}", *map(_check, gate.get("requirements") or ())])))
    if steps:
        kept = (f"{step} ({', '.join(links)})" if links else f"{step}" for step, links in steps.items())
        console.print(Text(f"\ncheckpoints: {', '.join(kept)}, as run:{page['name']}@STEP"))
    if page["tree"]:
        console.print(Text("\nwhere it comes from, and what was made of it"))
        draw([page["tree"]], page["path"])
    files = {name: size(octets) for name, octets in page["files"].items()}
    sections = (("settings that differ from the defaults", page["settings"]), ("lineage", page["lineage"]), ("files", files))
    for title, values in sections:
        lines = [f"  {key:<24} {value}" for key, value in _flat(values or {})]
        console.print(Text("\n".join(["", title, *(lines or ["  none"])])))


def _check(one: dict[str, Any]) -> str:
    """A line of the gate's verdict: a requirement that several models meet has one line each."""
    words = (one.get("text"), "passed" if one.get("passed") else "failed", one.get("model"), one.get("why"))
    return "  ".join(["", *(str(word) for word in words if word)])


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as dotted lines."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            lines.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return lines


@click.command()
@RUN
@FOLDER
@click.option("--plain", "mode", flag_value="plain", default=None, help="Lines instead of the dashboard.")
def watch(run: str, runs_dir: Path, mode: str | None) -> None:
    """Watch a live run or pipeline from another terminal; q leaves, it goes on.

    RUN may be a project's folder too. A pipeline that is at work is shown stage by stage; of a run that has ended, the last
    picture is shown.
    """
    from mlxforge.cli.pipeline import project_of, runs_of, watch_pipeline

    project = project_of(run, runs_dir)
    if project is not None and watch_pipeline(project, mode):
        return
    if project is not None and run != "last":
        run, runs_dir = "last", runs_of(project)
    from mlxforge.core.errors import RunError
    from mlxforge.core.eventlog import EVENTS, replay
    from mlxforge.core.events import Control
    from mlxforge.runs.record import find_run, is_live, list_runs
    from mlxforge.ui.listen import can_draw, listeners

    if project is not None and not list_runs(runs_dir):
        raise RunError(
            "no pipeline is at work here, and no run has begun", where=str(project), fix="mlxforge pipeline begins it"
        )
    path = find_run(run, runs_dir)
    log, control = path / EVENTS, Control()
    if mode is None and can_draw(sys.stdout) and not is_live(path):
        from mlxforge.ui.dashboard import show_ended

        show_ended(log)
        return
    with listeners("plain" if mode == "plain" else "auto", control, watching=True) as emit:
        for event in replay(log, follow=True, alive=lambda: is_live(path) and not control.finish):
            emit(event)


@click.command()
@RUN
@FOLDER
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="curves.png",
    show_default=True,
    help="A .png, .svg or .pdf file.",
)
def plot(run: str, runs_dir: Path, output: Path) -> None:
    """Draw the curves of a run: training, validation and retention loss, learning rate."""
    from mlxforge.core.eventlog import EVENTS
    from mlxforge.runs.record import find_run
    from mlxforge.ui.figure import draw_curves

    draw_curves(find_run(run, runs_dir) / EVENTS, output)
    click.echo(f"wrote {output}")
