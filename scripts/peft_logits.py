"""Logits of PEFT's adapters on torch's CPU, in float32; run by a Python that has torch, transformers and peft.

    python scripts/peft_logits.py JOBS.json

JOBS.json holds ``tokens``, rows of ids of one length, and ``jobs``: each with ``base``, a model folder, and ``adapter``, a
folder that is loaded over it, or, where the job has ``make`` (arguments of LoraConfig), made with random weights and saved.
The adapter's folder gets ``logits.npy``, (B, T, V), or ``logits.txt``: why not. ``names``, if any, are model folders, of which
only config.json is read: each gets ``names.json``, name -> shape of every linear layer and embedding of transformers' class.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText


def adapted(job: dict[str, Any]) -> Any:
    """The base with the adapter; nothing of it may be left over or missing."""
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32, attn_implementation="eager")
    if "make" not in job:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # PEFT warns of missing keys
            return PeftModel.from_pretrained(model, job["adapter"])
    torch.manual_seed(0)
    adapter = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **job["make"]))
    with torch.no_grad():
        for name, value in adapter.named_parameters():
            if "lora_" in name:
                value.add_(0.05 * torch.randn_like(value))
    adapter.save_pretrained(job["adapter"])
    return adapter


def module_shapes(folder: Path) -> dict[str, list[int]]:
    """Name -> shape of the weight of every linear layer and embedding, by the config alone."""
    config = AutoConfig.from_pretrained(folder)
    config.get_text_config().pad_token_id = 0
    known = AutoModelForImageTextToText if config.model_type == "mistral3" else AutoModelForCausalLM
    with torch.device("meta"):
        model = known.from_config(config)
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    return {name: list(module.weight.shape) for name, module in model.named_modules() if isinstance(module, kinds)}


def main() -> None:
    """Does all jobs; a failure is written, not raised."""
    work = json.loads(Path(sys.argv[1]).read_text())
    tokens = torch.tensor(work["tokens"])
    for job in work.get("jobs", ()):
        folder = Path(job["adapter"])
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with torch.no_grad():
                np.save(folder / "logits.npy", adapted(job).eval()(tokens).logits.float().numpy())
        except Exception as error:  # of whatever kind: the caller shows it
            (folder / "logits.txt").write_text(f"{type(error).__name__}: {error}")
    for folder in map(Path, work.get("names", ())):
        try:
            (folder / "names.json").write_text(json.dumps(module_shapes(folder)))
        except Exception as error:
            (folder / "names.txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
