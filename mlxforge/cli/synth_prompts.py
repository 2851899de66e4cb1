"""``mlxforge synth prompts``."""

from __future__ import annotations

from pathlib import Path

import click

from mlxforge.cli.shaping import FORCE, show_next, some


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@FORCE
def prompts(folder: Path, force: bool) -> None:
    """Copy the shipped prompts, to change them.

    \b
    mlxforge synth prompts my-prompts/

    A file has what the system says, a line ---, and what the user says with {passage}, {title}, {heading}, {count} and
    {audience} in their places. Files that are taken away are taken from mlxforge again.
    """
    from mlxforge.core.errors import DataError
    from mlxforge.core.files import disk_errors, write_atomic
    from mlxforge.knowledge.templates import PROMPTS

    files = sorted(PROMPTS.glob("*.md"))
    for there in (folder / file.name for file in files):
        if there.exists() and not force:
            raise DataError("is there already", where=str(there), fix="--force replaces it")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        write_atomic(folder / file.name, file.read_bytes())
    click.echo(f"wrote {some(len(files), 'prompt')} to {folder}")
    show_next([f"mlxforge synth qa kb.sqlite -o sft.jsonl --prompts {folder} --dry-run"])
