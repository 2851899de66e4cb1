"""The Python API: the command line's verbs as functions, with the same configs, events and results.

>>> from mlxforge import CptConfig, plain, train
>>> config = CptConfig(model="tiny", data=["notes/"], epochs=2)
>>> result = train(config, listeners=[plain()])  # doctest: +SKIP
>>> result.path, result.result["valid"]["bpb"]  # doctest: +SKIP
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mlxforge.core.blas import load_blas
from mlxforge.core.config import checked
from mlxforge.core.events import Control, Emit, fan_out
from mlxforge.core.settings import TrainSettings
from mlxforge.runs import train as training
from mlxforge.runs.execution import RunResult

load_blas()  # before anything imports MLX


def train(config: TrainSettings, listeners: Sequence[Emit] = (), control: Control | None = None) -> RunResult:
    """Trains as the config says: ``CptConfig`` on text, ``SftConfig`` on chats, ``DpoConfig`` and kin on preferences.

    Blocks until the run ends. ``listeners`` hear every event, ``control`` steers from outside.

    Raises:
        MlxforgeError: one clear line on what is wrong, where, and the fix.
    """
    with _tracked(listeners) as heard:
        return training.train(checked(config), heard, control)


def resume(
    run: str = "last", *, runs_dir: str = "runs", listeners: Sequence[Emit] = (), control: Control | None = None
) -> RunResult:
    """Goes on with an interrupted or killed run, by name, path or ``last``."""
    with _tracked(listeners) as heard:
        return training.resume(run, runs_dir, heard, control)


@contextmanager
def _tracked(listeners: Sequence[Emit]) -> Iterator[list[Emit]]:
    """The listeners, and the trackers that the settings name."""
    from mlxforge.ui.trackers import Trackers

    following = Trackers(fan_out(listeners))
    try:
        yield [*listeners, following]
    finally:
        following.close("interrupted")


def plan(config: TrainSettings, listeners: Sequence[Emit] = ()) -> dict[str, Any]:
    """What a run would do and need (rows, tokens, steps, memory in bytes by part, seconds); writes nothing."""
    return training.dry_run(checked(config), listeners)


def list_runs(runs_dir: str = "runs") -> list[Any]:
    """Summaries of the run directories, newest first."""
    from mlxforge.runs import record

    return record.list_runs(Path(runs_dir))


def detect_model(name: str) -> dict[str, Any]:
    """Family, template and end-of-turn tokens of a model folder or hub id, without its weights."""
    from mlxforge.runs import models

    return models.detect_model(name)


def plain(stream: TextIO | None = None) -> Emit:
    """A listener that writes one line for each thing worth knowing."""
    from mlxforge.ui.plain import Plain

    return Plain(stream or sys.stdout)


def dashboard(control: Control | None = None) -> Any:
    """The live dashboard as a context manager that yields a listener: ``with dashboard() as show: train(c, [show])``."""
    from mlxforge.ui.listen import listeners

    return listeners("auto", control, trackers=False)
