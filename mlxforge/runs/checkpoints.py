"""The kept checkpoints of a run, as ``run:NAME@best``, ``run:NAME@last`` and ``run:NAME@STEP`` name them."""

from __future__ import annotations

import os
from pathlib import Path

from mlxforge.core.blas import load_blas
from mlxforge.core.errors import RunError
from mlxforge.core.files import bytes_hash, cache_dir, file_hash, new_directory
from mlxforge.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_file
from mlxforge.models.hub import resolve_model

BEST, LAST = "best", "last"
FOLDER, PREFIX = "checkpoints", "step-"


def kept_steps(run: Path) -> dict[int, Path]:
    """step -> folder of the checkpoints that the run still has, the earliest first."""
    found = [path for path in (run / FOLDER).glob(f"{PREFIX}*") if (path / ADAPTER_WEIGHTS).is_file()]
    steps = {step: path for path in found if (step := step_of(path)) is not None}
    return dict(sorted(steps.items()))


def step_of(checkpoint: Path) -> int | None:
    """The step in the name of a checkpoint's folder."""
    number = checkpoint.name.removeprefix(PREFIX)
    return int(number) if number.isdecimal() else None


def linked_step(run: Path, link: str) -> int | None:
    """The step that the run's link ``best`` or ``last`` points at; None where it has none."""
    try:
        return step_of(Path(os.readlink(run / link)))
    except OSError:
        return None


def checkpoint(run: Path, at: str) -> Path | None:
    """The folder of the checkpoint ``at``; None where it is the best one, whose adapter is the run's own.

    Raises:
        RunError: ``at`` is no step, or one that was not kept.
    """
    steps, best = kept_steps(run), linked_step(run, BEST)
    if at == BEST:
        return None
    step = linked_step(run, LAST) if at == LAST else int(at) if at.isdecimal() else None
    if step is not None and step == best:
        return None
    if step in steps:
        return steps[step]
    shown = ", ".join(f"{one}" for one in steps)
    fix = f"kept are {shown}; or {BEST}, {LAST}" if steps else f"its adapter is {BEST}"
    gone = at.isdecimal() or at == LAST
    what = f"no checkpoint '{at}' was kept" if gone else f"'{at}' is no checkpoint: give {BEST}, {LAST} or a step"
    raise RunError(what, where=str(run), fix=fix)


def marked_steps(run: Path) -> dict[int, list[str]]:
    """step -> ``best`` and ``last`` where it is that, of the checkpoints that a run still has."""
    links = {link: linked_step(run, link) for link in (BEST, LAST)}
    return {step: [link for link, at in links.items() if at == step] for step in kept_steps(run)}


def published(step: Path, below: Path, model: str, dtype: str) -> Path:
    """A checkpoint of a run that lies over another adapter, as one adapter of both: the run's own one is made like that.

    It is made once and kept in the cache.

    Args:
        below: folder of the adapter under it.
        model, dtype: the base of both, as the run loaded it.
    """
    files = [file for folder in (below, step) for file in (adapter_file(folder), folder / ADAPTER_CONFIG)]
    base = str(resolve_model(model))
    folder = cache_dir() / "adapters" / bytes_hash(*map(file_hash, files), base, dtype)[:32]
    if not (folder / ADAPTER_WEIGHTS).is_file():
        load_blas()
        from mlxforge.models.load import load
        from mlxforge.models.lora import read_adapter, save_adapter
        from mlxforge.models.stack import stack

        weights, config = read_adapter(step)
        whole = stack(load(model, dtype).model, config, 0, below)(weights, config)
        with new_directory(folder) as directory:
            save_adapter(directory, *whole)
    return folder
