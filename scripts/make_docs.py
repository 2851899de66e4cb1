"""Writes docs/cli.md (from --help), docs/settings.md (from the settings' own types and help) and data/commands/mlxforge.yaml
(the schema of the command line, from Click); --check compares.

python scripts/make_docs.py
python scripts/make_docs.py --check
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click

from mlxforge.cli.main import cli
from mlxforge.cli.options import flag
from mlxforge.core.config import description, type_name, walk
from mlxforge.core.settings import CpoConfig, CptConfig, DpoConfig, KtoConfig, OrpoConfig, Settings, SftConfig, SimpoConfig
from mlxforge.data.blend import MixSettings, MixSource
from mlxforge.data.speakers import SpeakerSettings
from mlxforge.knowledge.commands.from_click import from_click, merged
from mlxforge.knowledge.commands.reader import read_schema, to_yaml
from mlxforge.knowledge.commands.schema import Argument
from mlxforge.runs.stage_settings import STAGE_SETTINGS, GateSettings, ProjectSettings

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SCHEMA = ROOT / "data" / "commands" / "mlxforge.yaml"
FILES = {
    "A project, `forge.yaml`": ProjectSettings,
    **{
        f"Its stage `{name}`": STAGE_SETTINGS[name] for name in ("ingest", "synth", "pairs", "eval", "fuse", "export", "verify")
    },
    "Its section `gate`": GateSettings,
    "A mix (`mlxforge data mix`)": MixSettings,
    "One of its `sources`": MixSource,
    "Speakers (`mlxforge data extract`)": SpeakerSettings,
}
RUNS = (CptConfig, SftConfig, DpoConfig, OrpoConfig, SimpoConfig, CpoConfig, KtoConfig)
BOUNDS = {flag(key): annotation for settings in RUNS for key, annotation, _ in walk(settings)}
SCHEMA_NOTE = (
    "# The command line of mlxforge, for mlxforge synth commands. Written by scripts/make_docs.py from the program itself:\n"
    "# change phrases, values and confirm here, all else in the code, then make docs.\n"
)
NOTE = "<!-- Written by scripts/make_docs.py: change the code, then `make docs`. -->\n\n"


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, in the order of the table."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from commands(found, f"{name} {child}")


def cli_page() -> str:
    """The command line reference."""
    parts = ["# Command line\n"]
    for name, command in commands(cli, "mlxforge"):
        context = click.Context(command, info_name=name, max_content_width=110, terminal_width=110)
        parts.append(f"## {name}\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return NOTE + "\n".join(parts)


def settings_page() -> str:
    """All settings of a training run, and of the files that data commands take, as tables."""
    lines = [
        "# Settings\n",
        "Every setting is a YAML key, a flag (`lora.rank` is `--lora-rank`) and a key of `--set`. Flags win over a file given"
        " with `-c`, the file wins over the default.\n",
        *table(CptConfig),
    ]
    for title, settings in FILES.items():
        lines += [f"\n## {title}\n", *table(settings)]
    return NOTE + "\n".join(lines) + "\n"


def table(settings: type[Settings]) -> list[str]:
    """The lines of a table with a row a setting."""
    lines = ["| setting | default | values | what it does |", "|---|---|---|---|"]
    for key, annotation, default in walk(settings):
        plain = ", ".join(default) if isinstance(default, list) else repr(default) if default == "\n" else default
        shown = "" if default in (None, "", [], {}) else f"`{plain}`"
        lines.append(f"| `{key}` | {shown} | {type_name(annotation)} | {description(annotation)} |")
    return lines


def schema_page() -> str:
    """The schema of the command line. Phrases, values and confirmations that are written in it stay."""
    schema = from_click(cli, "mlxforge").schema
    if SCHEMA.exists():
        schema = merged(schema, read_schema(SCHEMA))
    bounded = {
        name: replace(command, arguments=tuple(map(with_bounds, command.arguments)))
        for name, command in schema.commands.items()
    }
    return SCHEMA_NOTE + to_yaml(replace(schema, commands=bounded))


def with_bounds(argument: Argument) -> Argument:
    """A setting is text to Click: its bounds are in the settings."""
    annotation = BOUNDS.get(argument.option)
    if annotation is None or argument.kinds[0].type not in ("integer", "number") or argument.kinds[0].minimum is not None:
        return argument
    marks = [mark for part in (annotation, *get_args(annotation)) for mark in getattr(part, "__metadata__", ())]
    found: dict[str, Any] = {}
    for mark in marks:
        for key, name in (("ge", "minimum"), ("gt", "minimum"), ("le", "maximum"), ("lt", "maximum")):
            if (bound := getattr(mark, key, None)) is not None:
                found |= {name: bound, f"{name[:3]}_open": key in ("gt", "lt")}
    return replace(argument, kinds=(replace(argument.kinds[0], **found),))


PAGES = {DOCS / "cli.md": cli_page, DOCS / "settings.md": settings_page, SCHEMA: schema_page}


def main() -> int:
    """Writes the pages, or tells which are not what the code says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    check = parser.parse_args().check
    os.environ["COLUMNS"] = "110"
    texts = {path: page() for path, page in PAGES.items()}
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    if check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run make docs", file=sys.stderr)
        return int(bool(stale))
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(texts[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
