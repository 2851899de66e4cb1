"""The newest run of a name that has passed its gate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mlxforge.core.errors import RunError, did_you_mean
from mlxforge.evals.report import VERDICT
from mlxforge.models.adapters import ADAPTER_WEIGHTS
from mlxforge.runs.record import RunSummary, is_live, list_runs, moment, read_gate


def prefer_tuned(name: str, runs_dir: Path) -> str:
    """The name of the newest run called ``name``, or ``name-2`` and so on, or of that objective, that passed its gate.

    Raises:
        RunError: there is no such run, or none has passed; it says of each why not.
    """
    wanted = name.removeprefix("run:")
    runs = list_runs(runs_dir)
    numbered = re.compile(rf"{re.escape(wanted)}(-\d+)?")
    found = [run for run in reversed(runs) if numbered.fullmatch(run.name) or run.objective == wanted]
    if not found:
        known = {word for run in runs for word in (run.name, run.objective) if word}
        fix = did_you_mean(wanted, known) if known else "choose the folder with --runs-dir"
        raise RunError(f"no run is called '{wanted}'", where=str(runs_dir), fix=fix)
    reasons = {}
    for run in found:
        if not (reason := why_not(run)):
            return run.name
        reasons[run.name] = reason
    what = f"no run of '{wanted}' has passed its gate: " + "; ".join(f"{run} ({why})" for run, why in reasons.items())
    raise RunError(what, where=str(runs_dir), fix="mlxforge gate REPORT --require …, or name one: --model run:NAME")


def why_not(run: RunSummary) -> str:
    """Why a run is not one that has passed its gate; empty where it is."""
    folder = Path(run.path)
    if run.damaged:
        return f"damaged: {run.damaged}"
    if is_live(folder):
        return "being trained now"
    if not (folder / ADAPTER_WEIGHTS).is_file():
        return "no adapter"
    return _verdict(read_gate(folder), moment(run.ended))


def _verdict(gate: dict[str, Any] | None, ended: float | None) -> str:
    if gate is None:
        return "no gate yet"
    if not isinstance(passed := gate.get("passed"), bool):
        return f"{VERDICT} is damaged"
    if not passed:
        texts = [one.get("text") for one in gate.get("requirements") or () if isinstance(one, dict) and not one.get("passed")]
        return f"failed {', '.join(map(str, texts))}" if texts else "failed"
    held = moment(gate.get("time"))
    if held is not None and ended is not None and held < ended:
        return "trained on since its gate"
    return ""
