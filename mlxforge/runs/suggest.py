"""What a sweep tries next, and which trial is given up: Optuna's TPE sampler and median rule, as functions of the past.

Nothing of Optuna's is stored: the trials are run directories, and the study is made of them anew each time. The sampler is
seeded by (seed, number of the trial), so that a sweep that was killed goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxforge.core.errors import MissingExtraError
from mlxforge.core.files import bytes_hash
from mlxforge.runs.space import Dimension

STARTUP = 4  # trials drawn at random before TPE begins, and finished ones before the median rule begins


@dataclass(frozen=True)
class Trial:
    """A trial that has ended. ``curve`` is the judged loss at each evaluation; ``value`` is None where it did not finish."""

    params: dict[str, Any]
    curve: list[float] = field(default_factory=list)
    value: float | None = None


def check_installed() -> None:
    """Whether Optuna is there.

    Raises:
        MissingExtraError: it is not.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise MissingExtraError("optuna", "sweep", "a sweep") from None


def suggest(space: Sequence[Dimension], past: Sequence[Trial], seed: int, higher: bool) -> dict[str, Any]:
    """The settings of the next trial; the same for the same past and seed."""
    drawn = _study(space, past, seed, higher).ask(_distributions(space)).params
    return {one.key: json.loads(drawn[one.key]) if one.values else one.rounded(drawn[one.key]) for one in space}


def hopeless(curve: Sequence[float], past: Sequence[Trial], higher: bool) -> bool:
    """Whether a trial's best value so far is worse than the median of what the finished trials had at that evaluation."""
    if not curve:
        return False
    trial = _study([], past, 0, higher).ask()
    for index, value in enumerate(curve):
        trial.report(value, index)
    return bool(trial.should_prune())


def _study(space: Sequence[Dimension], past: Sequence[Trial], seed: int, higher: bool) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize" if higher else "minimize",
        sampler=optuna.samplers.TPESampler(seed=int(bytes_hash(str(seed), str(len(past)))[:8], 16), n_startup_trials=STARTUP),
        # The first evaluation comes while the rate still warms up.
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=1),
    )
    states, distributions = optuna.trial.TrialState, _distributions(space)
    for trial in past:
        done = trial.value is not None
        params = {one.key: json.dumps(trial.params[one.key]) if one.values else trial.params[one.key] for one in space}
        study.add_trial(
            optuna.trial.create_trial(
                state=states.COMPLETE if done else states.PRUNED,
                value=trial.value,
                params=params,
                distributions=distributions,
                intermediate_values={index: value for index, value in enumerate(trial.curve) if math.isfinite(value)},
            )
        )
    return study


def _distributions(space: Sequence[Dimension]) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def of(one: Dimension) -> Any:
        if one.values:
            return CategoricalDistribution([json.dumps(value) for value in one.values])
        if one.whole:
            return IntDistribution(int(one.low), int(one.high), log=one.log)
        return FloatDistribution(one.low, one.high, log=one.log)

    return {one.key: of(one) for one in space}
