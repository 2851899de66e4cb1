"""``mlxforge pipeline``."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxforge.cli.shaping import show_json, show_next

if TYPE_CHECKING:
    from mlxforge.core.events import Control, Emit
    from mlxforge.evals.road import Forecast, PlanRow, Summary
    from mlxforge.runs.pipeline import Pipeline
    from mlxforge.runs.pipeline_order import Step


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[FORGE.yaml]")
@click.option("--from", "start", metavar="STAGE", help="Do this stage again and what follows from it; the ones before stay.")
@click.option("--only", metavar="STAGE", help="Do this stage alone, again.")
@click.option("--dry-run", is_flag=True, help="Show the plan with its forecasts; write nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask; needed where there is no terminal.")
@click.option("--plain", is_flag=True, help="Lines instead of the dashboard.")
@click.option("--json", "as_json", is_flag=True, help="One result object on stdout, logs on stderr.")
def pipeline(
    file: Path | None, start: str | None, only: str | None, dry_run: bool, yes: bool, plain: bool, as_json: bool
) -> int:
    """From documents to a verified file: all stages of a project, as its forge.yaml says.

    \b
    mlxforge init handbook --example handbook
    mlxforge pipeline handbook --dry-run
    mlxforge pipeline handbook --yes
    mlxforge pipeline --only sft:formal

    FORGE.yaml is a project file or its folder. The stages: ingest, cpt, synth, sft, pairs, dpo (or orpo, simpo, cpo, kto),
    eval, fuse, export, verify; the file has those that you want. All that they need is checked before the first one runs. What
    did not change is skipped. It can be stopped or killed at any time: the same command goes on, in the middle of a stage too.

    Exit code 1 where the report does not reach what the section 'gate' requires.
    """
    from mlxforge.runs.pipeline import open_pipeline
    from mlxforge.ui.console import console
    from mlxforge.ui.pipeline import show_plan

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found = open_pipeline(file, start, only)
    out = console(sys.stderr if as_json else sys.stdout)
    asks = not yes and sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    forecasts = _forecasts(found) if dry_run or asks or yes else {}
    rows = _rows(found, forecasts)
    if dry_run and as_json:
        import msgspec

        show_json({"project": found.project.name, "stages": msgspec.to_builtins(rows)})
        return 0
    show_plan(rows, out)
    if dry_run or not _wanted(found, yes, asks):
        return 0
    summary = _run(found, "json" if as_json else "plain" if plain else "auto", out)
    return _tell(found, summary, as_json, out)


def _wanted(found: Pipeline, yes: bool, asks: bool) -> bool:
    """Whether the work shall begin: asked on a terminal, else said by --yes.

    Raises:
        ConfigError: neither.
    """
    from mlxforge.core.errors import ConfigError

    if yes or not found.work:
        return True
    if asks:
        return click.confirm("Go on?", default=True)
    line = shlex.join(["mlxforge", *sys.argv[1:], "--yes"])
    raise ConfigError(f"{len(found.work)} stages are to be done, and nobody is there to ask", fix=f"to do them: {line}")


def _forecasts(found: Pipeline) -> dict[str, Forecast]:
    from mlxforge.runs.pipeline_forecast import check_disk, forecasts
    from mlxforge.ui.bars import bars

    with bars() as emit:
        made = forecasts(found, emit)
    check_disk(found, made)
    return made


def _rows(found: Pipeline, forecasts: dict[str, Forecast]) -> list[PlanRow]:
    from mlxforge.evals.road import PlanRow

    return [
        PlanRow(stage=one.step.label, action=one.action, why=one.why, forecast=forecasts.get(one.step.label))
        for one in found.planned
    ]


def _run(found: Pipeline, mode: Any, out: Any) -> Summary:
    from mlxforge.core.events import Control
    from mlxforge.runs.pipeline import run
    from mlxforge.runs.pipeline_report import summarise
    from mlxforge.runs.stage_settings import TRAINING

    @contextmanager
    def shown(step: Step, states: dict[str, str]) -> Iterator[tuple[Emit, Control]]:
        control = Control()
        # A polite kill ends other stages as Ctrl-C does; a run it leaves as kill -9 would, to go on from its checkpoint.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if step.stage in TRAINING else signal.default_int_handler)
        with _screen(step.stage, states, control, mode, out) as emit:
            yield emit, control

    if found.work:
        run(found, shown)
    return summarise(found)


@contextmanager
def _screen(
    stage: str, states: Mapping[str, str], control: Control, mode: Any, out: Any, *, watching: bool = False
) -> Iterator[Emit]:
    """What shows a stage: the dashboard of training with the line of all stages above, else that line and bars or lines."""
    from mlxforge.runs.stage_settings import TRAINING
    from mlxforge.ui.bars import bars
    from mlxforge.ui.listen import can_draw, listeners
    from mlxforge.ui.panels import stages

    trains = stage in TRAINING
    control.stages = states
    if not (trains and mode == "auto" and can_draw(sys.stdout)):
        out.print(stages(states), soft_wrap=True)
    with listeners(mode, control, watching=watching) if trains or mode != "auto" else bars() as emit:
        yield emit


def _tell(found: Pipeline, summary: Summary, as_json: bool, out: Any) -> int:
    """What it came to; the exit code."""
    from mlxforge.ui.pipeline import show_summary

    if as_json:
        import msgspec

        show_json(msgspec.to_builtins(summary))
    else:
        show_summary(summary, out)
        show_next(_next(found, summary))
        if summary.report and found.work and sys.stdout.isatty():
            click.launch(summary.report)
    return 1 if summary.ships is False else 0


def _next(found: Pipeline, summary: Summary) -> list[str]:
    """What to run now."""
    last = next((step for step in reversed(found.road.steps) if step.stage in ("fuse", "export")), None)
    commands = []
    if last is not None and last.stage == "fuse":
        commands.append(shlex.join(["mlxforge", "chat", "--model", str(found.road.table["fuse"].makes(found.road, last)[0])]))
    elif last is not None:
        commands.append(shlex.join(["llama-cli", "-m", str(found.road.table["export"].makes(found.road, last)[0])]))
    if summary.ships is False and summary.report:
        commands.append(shlex.join(["open", summary.report]))
    return commands


def project_of(run: str, runs_dir: Path) -> Path | None:
    """The folder of the project that ``runs watch`` means: the one named, or the one that the runs are of, or none."""
    from mlxforge.runs.project import FILE

    if run == "last":
        return next((place for place in (runs_dir.parent, Path()) if (place / FILE).is_file()), None)
    named = Path(run)
    if not run:  # no path, and not this folder either
        return None
    return named if (named / FILE).is_file() else named.parent if named.name == FILE and named.is_file() else None


def runs_of(project: Path) -> Path:
    """The folder of a project's runs."""
    from mlxforge.runs.project import FILE, read_project

    return read_project(project / FILE).runs_dir


def watch_pipeline(project: Path, mode: Any) -> bool:
    """Shows the pipeline that works on a project until it ends or ``q`` is typed; false where none does."""
    from mlxforge.core.eventlog import EVENTS, replay
    from mlxforge.core.events import Control
    from mlxforge.runs.pipeline_state import Ledger
    from mlxforge.ui.console import console
    from mlxforge.ui.pipeline import watch

    ledger, control, out = Ledger(project), Control(), console()
    if not ledger.live:
        return False

    def open_stage(label: str, states: Mapping[str, str]) -> Any:
        return _screen(label.partition(":")[0], states, control, mode or "auto", out, watching=True)

    alive = lambda: ledger.live and not control.finish  # noqa: E731
    watch(replay(ledger.folder / EVENTS, follow=True, alive=alive, ends=None), open_stage, out)
    return True
