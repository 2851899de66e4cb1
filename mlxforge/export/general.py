"""The ``general.*`` keys of a GGUF file: what it is called, how large it is, and where it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_VERSION, GGUFValueType
from gguf.utility import size_label

from mlxforge.core.errors import ModelError
from mlxforge.export.header import Key
from mlxforge.export.quantize import Described, quant_of

TEXT, COUNT = GGUFValueType.STRING, GGUFValueType.UINT32
# llama.cpp lets special tokens swallow the space after them where general.name holds this, all but these three.
PHI3 = re.compile(r"phi-?(3)", re.IGNORECASE)
STRIPPING = re.compile(rb'"rstrip":\s*true')
UNSTRIPPED = {"<unk>", "<s>", "<|endoftext|>"}


def general(folder: Path, placed: Iterable[Described], name: str, base_model: str = "") -> list[Key]:
    """The keys after the architecture; licence and base model from the model card in ``folder`` where it says them."""
    card = model_card(folder)
    rows: list[Key] = [
        ("general.type", "model", TEXT),
        ("general.name", honest_name(name or folder.name, folder), TEXT),
        ("general.size_label", size_label(*parameters(placed)), TEXT),
    ]
    rows += [(f"general.{key}", card[key], TEXT) for key in ("license", "license_name", "license_link") if card.get(key)]
    bases = [base_model] if base_model else card["base_model"]
    if bases:
        rows.append(("general.base_model.count", len(bases), COUNT))
    for number, base in enumerate(bases):
        rows.append((f"general.base_model.{number}.name", base.rpartition("/")[2], TEXT))
        if base.count("/") == 1 and not Path(base).exists():
            rows.append((f"general.base_model.{number}.organization", base.partition("/")[0], TEXT))
            rows.append((f"general.base_model.{number}.repo_url", f"https://huggingface.co/{base}", TEXT))
    return rows


def file_keys(quant: str) -> list[Key]:
    """The keys that llama-quantize sets anew, and so puts last."""
    version = ("general.quantization_version", GGML_QUANT_VERSION, COUNT)
    return [version, ("general.file_type", quant_of(quant).number, COUNT)]


def parameters(placed: Iterable[Described]) -> tuple[int, int, int, int]:
    """Weights in all, outside the experts, of one expert, and the number of experts."""
    total = shared = expert = 0
    counts: set[int] = set()
    for tensor in placed:
        size = 1
        for length in tensor.shape:
            size *= length
        total += size
        if "_exps." in tensor.name and len(tensor.shape) >= 3:
            counts.add(tensor.shape[-3])
            expert += size // tensor.shape[-3]
        else:
            shared += size
    return total, shared, expert, max(counts, default=0)


def honest_name(name: str, folder: Path) -> str:
    """The name, so that llama.cpp takes the special tokens for what they are.

    It treats them as Phi-3's where the name holds "phi-3" or "phi3": that is added to a model with such a tokenizer, and
    spelled "Phi 3" in the name of any other.
    """
    file = folder / "tokenizer.json"
    stored = file.read_bytes() if file.is_file() else b"{}"
    if not PHI3.search(name) and not STRIPPING.search(stored):
        return name  # without parsing megabytes of merges
    content = json.loads(stored)
    added = content.get("added_tokens") or []
    known = {token["content"] for token in added} | set((content.get("model") or {}).get("vocab") or {} if added else ())
    stripping = any(token.get("rstrip") for token in added)
    plain = {token["content"] for token in added if token.get("special") and not token.get("rstrip")}
    if stripping and plain <= UNSTRIPPED and known >= UNSTRIPPED | {"</s>"}:
        return name if PHI3.search(name) else f"{name} (Phi-3 tokens)"
    return PHI3.sub(r"Phi \1", name)


def model_card(folder: Path) -> dict[str, Any]:
    """``license``, ``license_name``, ``license_link`` (texts) and ``base_model`` (list) of the folder's README.md."""
    import yaml

    found: dict[str, Any] = {"base_model": []}
    file = folder / "README.md"
    head = re.match(r"---\n(.*?)\n---", file.read_text("utf-8", "replace"), re.DOTALL) if file.is_file() else None
    try:
        rows = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError as error:
        line = str(error).splitlines()[0]
        raise ModelError(f"its head is no YAML: {line}", where=str(file), fix="mend or remove the lines between ---") from error
    for key, value in rows.items() if isinstance(rows, dict) else ():
        if key == "base_model":
            found[key] = [str(one) for one in (value if isinstance(value, list) else [value]) if one]
        elif isinstance(value, str):
            found[str(key)] = value
    return found
