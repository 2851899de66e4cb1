"""Logits of model folders by transformers on torch's CPU, in float32; run by a Python that has both.

    python scripts/transformers_logits.py TOKENS.json FOLDER…

TOKENS.json holds rows of token ids of one length; every folder gets ``logits.npy``, (B, T, V), or ``logits.txt``: why not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    tokens = torch.tensor(json.loads(Path(sys.argv[1]).read_text()))
    for folder in map(Path, sys.argv[2:]):
        try:
            options = {"dtype": torch.float32, "attn_implementation": "eager", "output_loading_info": True}
            model, loaded = AutoModelForCausalLM.from_pretrained(folder, **options)
            wrong = {name: sorted(map(str, loaded[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
            if any(wrong.values()):
                raise ValueError(f"not the model's own tensors: {wrong}")
            with torch.no_grad():
                np.save(folder / "logits.npy", model.eval()(tokens).logits.float().numpy())
        except Exception as error:  # of whatever kind: the caller shows it
            (folder / "logits.txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
