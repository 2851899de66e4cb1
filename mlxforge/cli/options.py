"""A config field becomes a Click option: name, help, default and bounds are written once, in ``core.settings``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mlxforge.core.config import T, assignments_layer, description, flags_layer, resolve, type_name, walk, yaml_layer
from mlxforge.core.settings import Settings

Command = Callable[..., Any]
SHORT = {"model": "-m", "data": "-d", "name": "-n"}


def flag(key: str) -> str:
    """``lora.rank`` -> ``--lora-rank``."""
    return "--" + key.replace("_", "-").replace(".", "-")


def setting_options(settings: type[Settings]) -> Callable[[Command], Command]:
    """Decorates a command with one option a setting, ``-c`` and ``--set``; it gets them as one dict ``flags``."""

    def decorate(command: Command) -> Command:
        for key, annotation, default in reversed(list(walk(settings))):
            command = _option(key, annotation, default)(command)
        command = click.option(
            "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting, by its YAML key: --set lora.rank=8."
        )(command)
        return click.option(
            "-c", "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="YAML file of settings."
        )(command)

    return decorate


def _option(key: str, annotation: Any, default: Any) -> Callable[[Command], Command]:
    kind = type_name(annotation)
    names = [name for name in (SHORT.get(key), flag(key)) if name]
    parameter = "setting__" + key.replace(".", "__")
    shown = "" if default in (None, [], {}) else f" [default: {_plain(default)}]"
    help_text = description(annotation)
    help_text = f"{help_text}.{shown}"
    if kind == "true or false":
        return click.option(f"{flag(key)}/--no-{flag(key)[2:]}", parameter, default=None, help=help_text)
    multiple = kind.startswith("list of") or kind == "mapping"
    metavar = kind.removeprefix("one of ").replace(", ", "|") if kind.startswith("one of") else _metavar(kind)
    return click.option(*names, parameter, default=None, multiple=multiple, metavar=metavar, help=help_text)


def _plain(default: Any) -> str:
    return ", ".join(default) if isinstance(default, list) else str(default)


def _metavar(kind: str) -> str:
    if kind.startswith("list of one of "):
        return kind.removeprefix("list of one of ").replace(", ", "|")
    return "KEY=KEY" if kind == "mapping" else kind.removeprefix("list of ").removesuffix(" or null").upper()


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given as flags, by dotted key."""
    values = {key: value for key, value in flags.items() if key.startswith("setting__") and value not in (None, ())}
    return {
        key.removeprefix("setting__").replace("__", "."): list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
    }


def config_from(settings: type[T], file: Path | None, assignments: tuple[str, ...], flags: dict[str, Any]) -> T:
    """Defaults < file < ``--set`` and flags."""
    layers = [yaml_layer(file)] if file else []
    return resolve(settings, *layers, assignments_layer(list(assignments)), flags_layer(given(flags)))
