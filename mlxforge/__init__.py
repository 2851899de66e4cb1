"""From a folder of documents to your own local model, on one Mac.

>>> from mlxforge import CptConfig, train
>>> result = train(CptConfig(model="tiny", data=["sample:handbook/documents"]))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlxforge.api import dashboard, detect_model, evaluate, gate, list_runs, pipeline, plain, plan, resume, train
    from mlxforge.core.errors import MlxforgeError
    from mlxforge.core.events import Control
    from mlxforge.core.settings import (
        CpoConfig,
        CptConfig,
        DpoConfig,
        KtoConfig,
        LoraSettings,
        OrpoConfig,
        SftConfig,
        SimpoConfig,
    )
    from mlxforge.knowledge.asked import ProviderSettings
    from mlxforge.runs.eval_job import EvalSettings, JudgeSettings, SuiteSettings

# Looked up when used, so that `import mlxforge` costs nothing.
_EXPORTS = {
    "Control": "mlxforge.core.events",
    "CpoConfig": "mlxforge.core.settings",
    "CptConfig": "mlxforge.core.settings",
    "DpoConfig": "mlxforge.core.settings",
    "EvalSettings": "mlxforge.runs.eval_job",
    "JudgeSettings": "mlxforge.runs.eval_job",
    "KtoConfig": "mlxforge.core.settings",
    "LoraSettings": "mlxforge.core.settings",
    "MlxforgeError": "mlxforge.core.errors",
    "OrpoConfig": "mlxforge.core.settings",
    "ProviderSettings": "mlxforge.knowledge.asked",
    "SftConfig": "mlxforge.core.settings",
    "SimpoConfig": "mlxforge.core.settings",
    "SuiteSettings": "mlxforge.runs.eval_job",
    "dashboard": "mlxforge.api",
    "detect_model": "mlxforge.api",
    "evaluate": "mlxforge.api",
    "gate": "mlxforge.api",
    "list_runs": "mlxforge.api",
    "pipeline": "mlxforge.api",
    "plain": "mlxforge.api",
    "plan": "mlxforge.api",
    "resume": "mlxforge.api",
    "train": "mlxforge.api",
}
__all__ = [
    "Control",
    "CpoConfig",
    "CptConfig",
    "DpoConfig",
    "EvalSettings",
    "JudgeSettings",
    "KtoConfig",
    "LoraSettings",
    "MlxforgeError",
    "OrpoConfig",
    "ProviderSettings",
    "SftConfig",
    "SimpoConfig",
    "SuiteSettings",
    "dashboard",
    "detect_model",
    "evaluate",
    "gate",
    "list_runs",
    "pipeline",
    "plain",
    "plan",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mlxforge' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
