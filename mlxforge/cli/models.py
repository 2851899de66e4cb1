"""``mlxforge models``: the families, and what a model is."""

from __future__ import annotations

import json

import click


@click.group()
def models() -> None:
    """Model families, and what a model is."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def list_command(as_json: bool) -> None:
    """List the model families that are known by name.

    Other families that mlx-lm loads can be trained too, without packing and GGUF export.
    """
    from mlxforge.runs.models import list_families

    families = list_families()
    if as_json:
        click.echo(json.dumps(families, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title, no_wrap in (("family", True), ("models", False), ("end of turn", False), ("thinking", True), ("packed", True)):
        table.add_column(title, no_wrap=no_wrap, overflow="fold")
    table.add_column("GGUF", no_wrap=True)
    for row in families:
        cells = (row["title"], row["eot"][0], row["thinking"], "yes" if row["packable"] else "no", row["gguf"] or "-")
        table.add_row(*(Text(cell) for cell in (row["family"], *cells)))
    Console().print(table)


@models.command("detect")
@click.argument("model", metavar="PATH_OR_ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def detect_command(model: str, as_json: bool) -> None:
    """Say what a model is: 'tiny', a folder, or a Hugging Face id. No weights are read."""
    from mlxforge.runs.models import detect_model

    found = detect_model(model)
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for key, value in found.items():
        shown = {True: "yes", False: "no", None: "-"}.get(value) if value in (True, False, None) else value
        click.echo(f"{key:<12}{', '.join(shown) if isinstance(shown, list) else shown}")
