"""From a folder of documents to your own local model, on one Mac.

>>> from mlxforge import CptConfig, train
>>> result = train(CptConfig(model="tiny", data=["sample:handbook/documents"]))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlxforge.api import dashboard, detect_model, list_runs, plain, plan, resume, train
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

# Looked up when used, so that `import mlxforge` costs nothing.
_EXPORTS = {
    "Control": "mlxforge.core.events",
    "CpoConfig": "mlxforge.core.settings",
    "CptConfig": "mlxforge.core.settings",
    "DpoConfig": "mlxforge.core.settings",
    "KtoConfig": "mlxforge.core.settings",
    "LoraSettings": "mlxforge.core.settings",
    "MlxforgeError": "mlxforge.core.errors",
    "OrpoConfig": "mlxforge.core.settings",
    "SftConfig": "mlxforge.core.settings",
    "SimpoConfig": "mlxforge.core.settings",
    "dashboard": "mlxforge.api",
    "detect_model": "mlxforge.api",
    "list_runs": "mlxforge.api",
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
    "KtoConfig",
    "LoraSettings",
    "MlxforgeError",
    "OrpoConfig",
    "SftConfig",
    "SimpoConfig",
    "dashboard",
    "detect_model",
    "list_runs",
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
