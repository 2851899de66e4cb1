"""What an adapter folder holds, told without MLX: mlx-lm's files or PEFT's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlxforge.core.errors import ModelError

ADAPTER_CONFIG = "adapter_config.json"  # both formats call it so
ADAPTER_WEIGHTS = "adapters.safetensors"
PEFT_WEIGHTS, PEFT_PICKLE = "adapter_model.safetensors", "adapter_model.bin"


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The folder's adapter_config.json.

    Raises:
        ModelError: it is missing, or no JSON object.
    """
    file = folder / ADAPTER_CONFIG
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"no {ADAPTER_CONFIG}", where=str(folder), fix="name a run or adapter folder") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"the adapter's config cannot be read: {error}", where=str(file)) from error
    if not isinstance(config, dict):
        raise ModelError("the adapter's config cannot be read: not a JSON object", where=str(file))
    return config


def is_peft(folder: Path) -> bool:
    """Whether an adapter folder is PEFT's: its config says which method of PEFT made it."""
    return (folder / ADAPTER_CONFIG).is_file() and "peft_type" in adapter_settings(folder)


def adapter_file(folder: Path) -> Path:
    """The file with an adapter's weights.

    Raises:
        ModelError: there is none, or only a pickle.
    """
    peft = is_peft(folder)
    file = folder / (PEFT_WEIGHTS if peft else ADAPTER_WEIGHTS)
    if file.is_file():
        return file
    if peft and (folder / PEFT_PICKLE).is_file():
        fix = "save it with PEFT as safetensors: model.save_pretrained(DIR)"
        raise ModelError(f"{PEFT_PICKLE} is a pickle, which can run any code when it is read", where=str(folder), fix=fix)
    raise ModelError(f"not a whole adapter: no {file.name}", where=str(folder), fix="name a run or adapter folder")
