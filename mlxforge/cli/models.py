"""``mlxforge models``: the models on this disk, the families, and what a model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
RUNS = click.option(
    "--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Folder that holds the runs."
)


@click.group()
def models() -> None:
    """Models on this disk, model families, and what a model is."""


@models.command("list")
@RUNS
@click.option(
    "--in",
    "places",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Look here too; repeatable. [always: this folder and that of the runs]",
)
@click.option("--hub/--no-hub", default=True, help="The models in the Hugging Face cache too.")
@JSON
def list_command(runs_dir: Path, places: tuple[Path, ...], hub: bool, as_json: bool) -> None:
    """List the models on this disk (folders, fused and exported results, GGUF files, the hub's cache), then the families.

    What stands under 'model' is what commands take. With --json all are one list; families are of kind 'family'. Training
    runs are in 'mlxforge runs list'.
    """
    from mlxforge.runs.inventory import list_models
    from mlxforge.runs.lineage import searched
    from mlxforge.runs.models import list_families

    found = list_models(searched(runs_dir, places), hub=hub)
    if as_json:
        import msgspec

        families = [{"name": row["family"], "kind": "family", **row} for row in list_families()]
        click.echo(json.dumps([*msgspec.to_builtins(found), *families], indent=2, ensure_ascii=False))
        return
    from mlxforge.ui.units import NONE, one_line, size

    rows = [(one.name, one.kind, one.family or NONE, size(one.size), _made_of(one.origin) or NONE, one.note) for one in found]
    _table(("model", "kind", "family", "size", "made of", ""), [[one_line(cell) for cell in row] for row in rows])
    click.echo()
    _families(list_families())


def _made_of(origin: dict[str, Any]) -> str:
    """The run or the model that a result was made of."""
    run, adapters = origin.get("run") or {}, origin.get("adapters") or []
    if run.get("name"):
        return f"run:{run['name']}" + (f"@{run['step']}" if run.get("step") is not None else "")
    name = adapters[-1].get("name") if adapters else (origin.get("model") or {}).get("name")
    return str(name or "")


@models.command("families")
@JSON
def families_command(as_json: bool) -> None:
    """List the model families that are known by name.

    Other families that mlx-lm loads can be trained too, without packing and GGUF export.
    """
    from mlxforge.runs.models import list_families

    families = list_families()
    if as_json:
        click.echo(json.dumps(families, indent=2, ensure_ascii=False))
        return
    _families(families)


def _families(families: list[dict[str, Any]]) -> None:
    titles = ("family", "models", "end of turn", "thinking", "packed", "GGUF")
    rows = [
        (row["family"], row["title"], row["eot"][0], row["thinking"], "yes" if row["packable"] else "no", row["gguf"] or "-")
        for row in families
    ]
    _table(titles, rows, folded=("models", "end of turn"))


def _table(titles: tuple[str, ...], rows: list[Any], folded: tuple[str, ...] = ("model", "made of", "")) -> None:
    from rich.table import Table
    from rich.text import Text

    from mlxforge.ui.console import console

    table = Table(box=None, pad_edge=False)
    for title in titles:
        justify = "right" if title == "size" else "left"
        table.add_column(title, no_wrap=title not in folded, overflow="fold", justify=justify)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


@models.command("detect")
@click.argument("model", metavar="PATH_OR_ID")
@RUNS
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def detect_command(model: str, runs_dir: Path, as_json: bool) -> None:
    """Say what a model is: 'tiny', a folder, a Hugging Face id, or the base of run:NAME. No weights are read."""
    from mlxforge.runs.models import detect_model

    found = detect_model(model, runs_dir)
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for key, value in found.items():
        shown = {True: "yes", False: "no", None: "-"}.get(value) if value in (True, False, None) else value
        click.echo(f"{key:<12}{', '.join(shown) if isinstance(shown, list) else shown}")
