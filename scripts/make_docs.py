"""Writes docs/cli.md (from --help) and docs/settings.md (from the settings' own types and help); --check compares.

python scripts/make_docs.py
python scripts/make_docs.py --check
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from mlxforge.cli.main import cli
from mlxforge.core.config import description, type_name, walk
from mlxforge.core.settings import CptConfig, Settings
from mlxforge.data.blend import MixSettings, MixSource
from mlxforge.data.speakers import SpeakerSettings

DOCS = Path(__file__).resolve().parent.parent / "docs"
FILES = {
    "A mix (`mlxforge data mix`)": MixSettings,
    "One of its `sources`": MixSource,
    "Speakers (`mlxforge data extract`)": SpeakerSettings,
}
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


PAGES = {"cli.md": cli_page, "settings.md": settings_page}


def main() -> int:
    """Writes the pages, or tells which are not what the code says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    check = parser.parse_args().check
    os.environ["COLUMNS"] = "110"
    stale = [name for name, page in PAGES.items() if not (DOCS / name).exists() or (DOCS / name).read_text() != page()]
    if check:
        for name in stale:
            print(f"docs/{name} is out of date: run make docs", file=sys.stderr)
        return int(bool(stale))
    DOCS.mkdir(exist_ok=True)
    for name in stale:
        (DOCS / name).write_text(PAGES[name]())
        print(f"wrote docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
