"""Export as a quantized MLX folder: adapters merged in float32, then packed layer by layer."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxforge.core.blas import load_blas
from mlxforge.core.events import Emit, Noted, Warned, ignore
from mlxforge.core.files import TEMPORARY, array_errors, disk_errors, new_directory
from mlxforge.models.detect import read_config
from mlxforge.models.hub import resolve_model
from mlxforge.runs.cards import facts_of, shown_base
from mlxforge.runs.fuse import COPIED, INDEX, check_output, fuse
from mlxforge.runs.opening import Base
from mlxforge.runs.origin import write_origin

if TYPE_CHECKING:
    from mlxforge.export.quantized import Packed

MERGED = ("model.safetensors", INDEX)


def export_mlx(
    base: Base,
    output: Path,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    mode: str = "affine",
    force: bool = False,
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Writes ``base`` with its adapters, packed, to ``output``, which appears whole or not at all.

    Returns:
        ``output``, ``base``, ``packing``, ``bits_per_weight``, ``layers``, ``kept`` (rows that do not divide) and ``others``
        (kept whole by the model's own code), ``error`` (mean absolute change over mean absolute weight), ``before`` and
        ``after`` in bytes, and ``kl``, ``perplexity_before``, ``perplexity_after`` on three short texts, None where the model
        as floats would take over half of the memory.

    Raises:
        ConfigError: the output exists or is an input; MLX has no such packing, or no layer takes it.
        ModelError: see :func:`mlxforge.runs.fuse.fuse`.
    """
    from mlxforge.export.quantized import packing

    chosen = packing(bits, group_size, mode)
    path = resolve_model(base.model)
    check_output(output, (path, *base.adapters), force)
    load_blas()
    import mlx_lm.utils

    from mlxforge.export.quantized import open_floats, pack

    with merged(base, path, output, emit) as folder:
        model = open_floats(folder)
        if {"quantization", "quantization_config"} & set(read_config(path)):
            emit(Noted(message="the base is packed: its layers are unpacked first, so they lose precision twice"))
        measure = measured(model, folder, emit)
        result = pack(model, chosen, emit)
        figures = measure(model) if measure else {}
        if result.kept:
            what = f"{len(result.kept)} layers stay as they are: their rows do not divide by {chosen.group_size}"
            emit(Warned(message=f"{what} ({', '.join(result.kept[:3])}{', …' if len(result.kept) > 3 else ''})"))
        with new_directory(output, replace=force) as made:
            with array_errors(made):
                mlx_lm.utils.save_model(made, model, donate_model=True)
            write_rest(made, folder, base, result, str(chosen))
    return {
        "output": str(output), "base": base.model, "packing": str(chosen), "bits_per_weight": result.bits_per_weight,
        "layers": len(result.layers), "kept": result.kept, "others": result.others, "error": result.error,
        "before": result.before, "after": result.after, "kl": None, "perplexity_before": None, "perplexity_after": None,
        **figures,
    }  # fmt: skip


@contextmanager
def merged(base: Base, path: Path, output: Path, emit: Emit = ignore) -> Iterator[Path]:
    """A folder with the model as floats or as its base was packed; for adapters one beside ``output`` that goes again."""
    if not base.adapters:
        yield path
        return
    with disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        place = tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.", suffix=TEMPORARY)
    try:
        fuse(base, Path(place) / "model", emit=emit)
        yield Path(place) / "model"
    finally:
        shutil.rmtree(place, ignore_errors=True)


class Measure:
    """The distance of a packed model from what it was, on a few texts."""

    def __init__(self, model: Any, folder: Path) -> None:
        from mlxforge.export.quantized import TEXTS, logprobs
        from mlxforge.models.template import load_template

        codec = load_template(folder).codec
        self.texts = [codec.encode(text)[0] for text in TEXTS]
        self.exact = logprobs(model, self.texts)

    def __call__(self, model: Any) -> dict[str, float]:
        from mlxforge.export.quantized import distance, logprobs

        return distance(self.exact, logprobs(model, self.texts), self.texts)


def measured(model: Any, folder: Path, emit: Emit) -> Measure | None:
    """What the model says now; None where it would not fit into half of the memory."""
    from mlxforge.export.quantized import fits, sizes

    size = sizes(model)[0]
    if not fits(size):
        emit(Noted(message=f"not measured: as floats the model takes {size / 1e9:.0f} GB, over half of the memory"))
        return None
    return Measure(model, folder)


def write_rest(made: Path, folder: Path, base: Base, result: Packed, packing: str) -> None:
    """config.json, tokenizer, template, generation config and card."""
    from mlxforge.export.card import card
    from mlxforge.models.template import load_template

    for file in sorted({file for pattern in COPIED for file in folder.glob(pattern) if file.is_file()}):
        if file.name not in MERGED:
            shutil.copyfile(file, made / file.name)
    config = json.loads((folder / "config.json").read_bytes())
    config |= {"quantization": result.settings, "quantization_config": result.settings}
    (made / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    template = load_template(folder)
    if template.name != "own":
        template.save(made)
    path = resolve_model(base.model)
    files = [f"{len(result.layers)} layers packed, mean error {result.error:.1%}, {result.bits_per_weight:.2f} bits a weight"]
    files += [f"not packed, since their rows do not divide: {', '.join(result.kept)}"] if result.kept else []
    facts = facts_of(base, path, packing=packing, relation="quantized", library="mlx", files=files)
    (made / "README.md").write_text(card(shown_base(base, path), facts), encoding="utf-8")
    write_origin(made, base, path, "mlx", packing=packing)
