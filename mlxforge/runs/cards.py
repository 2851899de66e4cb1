"""Model cards from run directories: what the record, the settings and the event log say, without the user's paths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxforge.core.eventlog import replay
from mlxforge.core.events import Evaluated, StepDone
from mlxforge.models.hub import display_name, is_folder
from mlxforge.runs.opening import Base
from mlxforge.runs.record import EVENTS, RECORD, changed_settings, read_config, read_record

if TYPE_CHECKING:
    from mlxforge.export.card import Facts

SETS = ("data", "valid", "retention", "replay")  # settings that name data


def shown_base(base: Base, path: Path) -> str:
    """The base as strangers may know it: its hub id, else the last part of its folder."""
    return display_name(path.resolve()) if base.model == "tiny" or is_folder(base.model) else base.model


def facts_of(base: Base, path: Path, **said: Any) -> Facts:
    """What the card says of a subject; ``path`` is the base's folder, ``said`` are fields of :class:`Facts` on top."""
    from mlxforge.export.card import Facts, licence_of

    known: dict[str, Any] = {"licence": licence_of(path)}
    run = base.run
    if run is None or not (run / RECORD).is_file():
        return Facts(**known | said)
    record, config = read_record(run), read_config(run)
    train, valid = losses(run)
    data = {key: names for key in SETS if (names := _names(config.get(key)))}
    settings = changed_settings(config, str(record.get("objective")))
    known |= {"record": record, "settings": settings, "data": data, "train": train, "valid": valid}
    return Facts(**known | said)


def losses(run: Path) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """(step, loss) of the updates and of the validation set; a step that was done twice counts once, as it was last."""
    train: dict[int, float] = {}
    valid: dict[int, float] = {}
    if (run / EVENTS).is_file():
        for event in replay(run / EVENTS):
            if isinstance(event, StepDone):
                train[event.step] = event.loss
            elif isinstance(event, Evaluated) and event.name == "valid":
                valid[event.step] = event.loss
    return sorted(train.items()), sorted(valid.items())


def _names(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value] if isinstance(value, list) else []
