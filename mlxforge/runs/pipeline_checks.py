"""What several stages of a pipeline look at before anything runs: models, files, and what lies where they write."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mlxforge.core.errors import MlxforgeError
from mlxforge.runs.pipeline_order import Road, Step
from mlxforge.runs.text import expand


def place(road: Road, step: Step, key: str) -> Path:
    """The file that a setting of a stage names."""
    return Path(road.project.place(str(step.get(key))))


def check_model(road: Road, step: Step) -> Iterator[str]:
    """The base is there; of one on the hub its description is fetched."""
    from mlxforge.models.check import check_model_files
    from mlxforge.models.hub import DESCRIPTION, is_folder, resolve_model
    from mlxforge.runs.opening import resolve_base

    def look() -> None:
        base = resolve_base(road.model(step), road.project.runs_dir)
        path = resolve_model(base.model, DESCRIPTION)
        if base.model == "tiny" or is_folder(base.model):
            check_model_files(path)

    yield from told(look)


def missing(road: Road, specs: list[str]) -> Iterator[str]:
    """A line for each file that is neither there nor made by a stage."""
    from mlxforge.data.sources import HUB, parse_spec

    for spec in dict.fromkeys(specs):
        path = Path(expand(parse_spec(spec).path)).expanduser()
        if not spec.startswith((HUB, "run:")) and not path.exists() and road.maker(spec) is None:
            yield f"no such file or folder: {road.shown(spec)} (mend the path, or put it there)"


def not_ours(road: Road, step: Step) -> Iterator[str]:
    """A line for each file that would be written over and that no stage made."""
    if road.ledger.read(step.name) is None:
        for path in road.table[step.stage].makes(road, step):
            if os.path.lexists(path):
                shown = road.ledger.shown(path)
                yield f"{shown} is there already, and no pipeline made it (move it away, or name another output)"


def told(look: Callable[[], object]) -> Iterator[str]:
    """What is wrong, as lines."""
    try:
        look()
    except MlxforgeError as error:
        if error.where.startswith("--"):  # a flag of another command; the caller says where it stands here
            error.where = ""
        yield from str(error).splitlines()
