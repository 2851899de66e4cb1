"""Run directories as they lie on the disk: what each one is, which one a name means, whether its process still lives."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from mlxforge.core.config import walk
from mlxforge.core.errors import ConfigError, RunError, did_you_mean
from mlxforge.core.eventlog import EVENTS as EVENTS
from mlxforge.core.files import write_atomic
from mlxforge.core.settings import CONFIGS, TrainSettings
from mlxforge.evals.report import VERDICT

RECORD = "run.json"
CONFIG = "config.yaml"
LAST = "last"


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``runs list``. ``damaged`` says what is wrong with the record, empty where nothing is; ``gate`` whether it
    passed its gate, None where none was held."""

    name: str
    path: str
    objective: str = ""
    status: str = ""
    created: str = ""
    model: str = ""
    steps: int | None = None
    loss: float | None = None
    bpb: float | None = None
    ended: float | None = None
    gate: bool | None = None
    damaged: str = ""


def write_record(run: Path, record: Mapping[str, Any]) -> None:
    """Replaces ``run/run.json`` in one step. Numbers that are not finite become null: the file is JSON for every reader.

    Raises:
        MlxforgeError: the disk is full or the folder forbidden.
    """
    plain = msgspec.json.decode(msgspec.json.encode(record))
    write_atomic(run / RECORD, json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def read_record(run: Path) -> dict[str, Any]:
    """The content of ``run/run.json``.

    Raises:
        RunError: it is missing or not a JSON object.
    """
    path = run / RECORD
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"no {RECORD}", where=str(run), fix="is this a run directory?") from None
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except ValueError as error:
        raise RunError(f"damaged: {error}", where=str(path), fix="a resumed run writes it anew") from error
    if not isinstance(record, dict):
        raise RunError("damaged: not a JSON object", where=str(path), fix="a resumed run writes it anew")
    for key in ("result", "lineage"):
        if not isinstance(record.get(key) or {}, dict):
            raise RunError(f"damaged: '{key}' is not a JSON object", where=str(path), fix="a resumed run writes it anew")
    return record


def is_live(run: Path) -> bool:
    """Whether a process holds the run's lock. Changes nothing and creates nothing."""
    try:
        with open(run / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def status_of(run: Path, record: Mapping[str, Any]) -> str:
    """The recorded status; 'running' without a process means that it was killed and can go on."""
    status = str(record.get("status") or "unknown")
    return "stopped (resumable)" if status == "running" and not is_live(run) else status


def summarise(run: Path) -> RunSummary:
    """One run for the list; a record that cannot be read is told, not raised."""
    try:
        record = read_record(run)
    except RunError as error:
        return RunSummary(name=run.name, path=str(run), status="damaged", created=_day(run.stat().st_mtime), damaged=error.what)
    result = _mapping(record.get("result"))
    valid = _mapping(result.get("valid"))
    steps = result.get("steps")
    return RunSummary(
        name=run.name,
        path=str(run),
        objective=str(record.get("objective") or ""),
        status=status_of(run, record),
        created=_day(record.get("created")),
        model=str(record.get("model") or ""),
        steps=steps if isinstance(steps, int) else None,
        loss=_number(valid.get("loss")),
        bpb=_number(valid.get("bpb")),
        ended=moment(record.get("ended")),
        gate=None if (gate := read_gate(run)) is None else gate.get("passed") is True,
    )


def list_runs(runs_dir: Path) -> list[RunSummary]:
    """All runs of a folder, oldest first; none where there is no such folder."""
    return [summarise(run) for run in _runs(runs_dir)]


def find_run(name: str | Path, runs_dir: Path) -> Path:
    """The directory that a user means: a name in ``runs_dir``, a path, ``run:NAME``, or 'last' for the newest.

    Raises:
        RunError: there is none such.
    """
    wanted = str(name).removeprefix("run:")
    known = _runs(runs_dir)
    by_name = {run.name: run for run in known}
    if found := by_name.get(wanted):
        return found
    path = Path(wanted).expanduser()
    if (path / RECORD).is_file() or (path / EVENTS).is_file():
        return path
    if not known:
        raise RunError("there are no runs here", where=str(runs_dir), fix="choose the folder with --runs-dir")
    if wanted == LAST:
        return known[-1]
    whole, _, at = wanted.rpartition("@")
    if at and whole in by_name:
        raise RunError("a checkpoint, and this takes whole runs", where=wanted, fix=f"give '{whole}'")
    raise RunError(f"no run '{wanted}' in {runs_dir}", fix=did_you_mean(wanted, by_name))


def find_checkpoint(name: str | Path, runs_dir: Path) -> tuple[Path, str]:
    """The run that ``NAME@best``, ``NAME@last``, ``NAME@STEP`` or ``NAME`` means, and what stands after the ``@``, else "".

    A run whose own name has an ``@`` is found by it.

    Raises:
        RunError: there is no such run.
    """
    wanted = str(name).removeprefix("run:")
    whole, _, at = wanted.rpartition("@")
    if not whole or not at or (runs_dir / wanted).is_dir() or Path(wanted).expanduser().is_dir():
        return find_run(wanted, runs_dir), ""
    return find_run(whole, runs_dir), at


def beside(name: str, run: Path) -> str:
    """A run or a checkpoint that the settings of ``run`` name, ``run:PATH`` or ``PATH``, with or without ``@STEP``: the one
    beside it where both were moved."""
    given, at = name.removeprefix("run:"), ""
    if not Path(given).exists() and "@" in given:
        given, _, at = given.rpartition("@")
    path = Path(given)
    if not path.is_absolute() or path.exists():
        return name
    # A checkpoint lies two folders below its run.
    parts = [path.name] if path.parent.name != "checkpoints" else list(path.parts[-3:])
    neighbour = run.parent.joinpath(*parts)
    if not (run.parent / parts[0] / RECORD).is_file():
        return name
    return f"{'run:' if name.startswith('run:') else ''}{neighbour.resolve()}{'@' if at else ''}{at}"


def objective_of(settings: TrainSettings) -> str:
    """The objective whose settings these are."""
    return next(objective for objective, kind in CONFIGS.items() if type(settings) is kind)


def objective_for(named: str | None, file: Path | None) -> str:
    """The objective of a config: the one named, else that of the run it lies in, else the one word in its file name.

    Raises:
        ConfigError: none can be told.
    """
    if named is not None:
        if named not in CONFIGS:
            raise ConfigError(f"unknown objective '{named}'", where="OBJECTIVE", fix=did_you_mean(named, CONFIGS))
        return named
    if file is not None and (file.parent / RECORD).is_file():
        found = str(read_record(file.parent).get("objective"))
        if found in CONFIGS:
            return found
    words = file.stem.replace("_", "-").replace(".", "-").split("-") if file else []
    known = [word for word in words if word in CONFIGS]
    # sft-after-cpt is a config of sft; of my-sft-cpt nobody knows.
    if known and (len(set(known)) == 1 or words[0] == known[0]):
        return known[0]
    fix = f"name it: one of {', '.join(CONFIGS)}"
    if file is None:
        raise ConfigError("no objective", where="OBJECTIVE", fix=fix)
    raise ConfigError("the file's name does not say its objective", where=str(file), fix=fix)


def runs_dir_flag(runs_dir: str) -> str:
    """`` --runs-dir DIR`` as a shell takes it; empty for the usual folder."""
    return "" if runs_dir == "runs" else f" --runs-dir {shlex.quote(runs_dir)}"


def changed_settings(config: Mapping[str, Any], objective: str) -> dict[str, Any]:
    """The settings of a ``config.yaml`` that differ from the objective's defaults, by dotted key; unknown ones count too."""
    defaults = {key: default for key, _, default in walk(CONFIGS.get(objective, TrainSettings))}
    return {key: value for key, value in dotted_settings(config, defaults) if key not in defaults or defaults[key] != value}


def read_config(run: Path) -> dict[str, Any]:
    """``run/config.yaml`` as plain values; empty where it is missing or damaged."""
    import yaml

    try:
        return dict(_mapping(yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))))
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def read_gate(run: Path) -> dict[str, Any] | None:
    """What the gate found of a run; None where none was held, empty where its file is damaged."""
    try:
        gate = json.loads((run / VERDICT).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return gate if isinstance(gate, dict) else {}


def files_of(run: Path) -> dict[str, int]:
    """The files of a run by relative path, with their bytes; hidden ones are left out."""
    found = {}
    for folder, folders, files in os.walk(run):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for file in sorted(files):
            path = Path(folder, file)
            if not file.startswith(".") and path.is_file():
                found[str(path.relative_to(run))] = path.stat().st_size
    return found


def _runs(runs_dir: Path) -> list[Path]:
    """Folders that look like a run, oldest first."""
    if not runs_dir.is_dir():
        return []
    signs = (RECORD, CONFIG, EVENTS)
    found = [one for one in runs_dir.iterdir() if not one.name.startswith(".") and not one.is_symlink() and one.is_dir()]
    return sorted((one for one in found if any((one / sign).exists() for sign in signs)), key=_age)


def _age(run: Path) -> tuple[float, str]:
    """When a run was made; of a damaged record, when its folder last changed."""
    try:
        stamp = moment(read_record(run).get("created"))
    except RunError:
        stamp = None
    return run.stat().st_mtime if stamp is None else stamp, run.name


def moment(stamp: Any) -> float | None:
    """Seconds since the epoch, of a number or of ISO text; None of anything else."""
    try:
        return datetime.fromisoformat(stamp).timestamp() if isinstance(stamp, str) else float(stamp)
    except (ValueError, TypeError, OverflowError):
        return None


def _day(created: Any) -> str:
    """A moment as ``2026-01-31 14:05``, from ISO text or seconds since the epoch."""
    try:
        time = datetime.fromisoformat(created) if isinstance(created, str) else datetime.fromtimestamp(float(created))
    except (ValueError, TypeError, OverflowError, OSError):
        return ""
    return time.strftime("%Y-%m-%d %H:%M")


def dotted_settings(values: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested groups of settings as dotted keys; a mapping that is itself a setting stays whole."""
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        group = isinstance(value, dict) and dotted not in known and any(one.startswith(f"{dotted}.") for one in known)
        flat += dotted_settings(value, known, f"{dotted}.") if group else [(dotted, value)]
    return flat


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
