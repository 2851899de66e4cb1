"""Export an adapter as PEFT reads it: weights, config, tokenizer, template and card in one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxforge.core.blas import load_blas
from mlxforge.core.errors import ModelError
from mlxforge.core.files import check_new_directory, new_directory
from mlxforge.models.adapters import ADAPTER_CONFIG, PEFT_WEIGHTS, is_peft
from mlxforge.models.hub import resolve_model
from mlxforge.runs.cards import facts_of, shown_base
from mlxforge.runs.opening import TEMPLATE, Base
from mlxforge.runs.origin import write_origin

# What belongs to the tokenizer; config.json stays away, since a folder with one is a model.
TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "*.model",
    "*.jinja",
)
SETTINGS = "tokenizer_config.json"
SHOWN = ("kind", "r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "layers_to_transform")


def export_peft(
    base: Base,
    output: Path,
    *,
    named: str | None = None,
    force: bool = False,
    public: bool = False,
    licence: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Writes the adapters of ``base`` as one of PEFT's; ``output`` appears whole or not at all.

    Args:
        named: what ``base_model_name_or_path`` shall be; by default the base's hub id, or its folder.
        licence: the base's, for the card, where its folder does not state it.
        public: for strangers: a base that is a folder here is named by its last part alone.

    Returns:
        ``output``, ``base`` (as named), ``kind``, ``r``, ``lora_alpha``, ``use_rslora``, ``use_dora``, ``target_modules``,
        ``layers_to_transform``, ``tensors``, ``bytes``.

    Raises:
        ModelError: no adapter, one of another base, or PEFT has no words for it; or the base is packed and ``named`` is not
            given.
        ConfigError: the output exists, or is one of the inputs.
    """
    if base.adapter is None:
        raise ModelError("there is no adapter to export", where=base.model, fix="name a run, or --model M --adapter DIR")
    load_blas()
    from mlxforge.export.card import card, public_name
    from mlxforge.export.peft import as_peft

    path = resolve_model(base.model)
    inputs = (path, *base.adapters)
    check_new_directory(output, inputs, force, what="adapter", kind="PEFT adapter", ours=_is_adapter)
    name = named or _named_base(base, path, public)
    adapter = as_peft(path, base.adapters, name)
    scaling = {"Rank": adapter.config["r"], "Alpha": adapter.config["lora_alpha"]}
    facts = facts_of(
        base,
        path,
        kind=adapter.kind,
        relation="adapter",
        library="peft",
        extra=scaling,
        **{"licence": licence} if licence else {},
    )
    with new_directory(output, replace=force) as folder:
        adapter.write(folder)
        write_tokenizer(folder, path, base)
        shown = public_name(named) if named else shown_base(base, path)
        (folder / "README.md").write_text(card(shown, facts), encoding="utf-8")
        write_origin(folder, base, path, "peft")
        size = (folder / PEFT_WEIGHTS).stat().st_size
    said = {"kind": adapter.kind} | adapter.config
    return {
        "output": str(output),
        "base": name,
        **{key: said[key] for key in SHOWN},
        "tensors": len(adapter.weights),
        "bytes": size,
    }


def write_tokenizer(folder: Path, path: Path, base: Base) -> None:
    """The base's tokenizer, with the template of training and no other beside it."""
    for file in sorted({file for pattern in TOKENIZER for file in path.glob(pattern) if file.is_file()}):
        shutil.copyfile(file, folder / file.name)
    homes = [home for home in (base.run, *reversed(base.adapters)) if home and (home / TEMPLATE).is_file()]
    if not homes:
        return
    shutil.copyfile(homes[0] / TEMPLATE, folder / TEMPLATE)
    if (folder / SETTINGS).is_file():
        content = json.loads((folder / SETTINGS).read_bytes())
        if content.pop("chat_template", None) is not None:
            (folder / SETTINGS).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _named_base(base: Base, path: Path, public: bool) -> str:
    """The base as PEFT is to find it."""
    from mlxforge.export.card import front_of, is_hub_id

    config = json.loads((path / "config.json").read_bytes())
    if "quantization" in config:
        original = front_of(path).get("base_model", "")
        if is_hub_id(original):
            return original
        what = "the base is packed by MLX, which PEFT cannot load"
        raise ModelError(what, where=base.model, fix="--base ID: the float model that it was made of")
    shown = shown_base(base, path)
    return shown if public or is_hub_id(shown) else str(path.absolute())


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file() and is_peft(folder)
