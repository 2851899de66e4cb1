"""What a model computes and holds, from its configuration alone: no weights are read, none are made.

mlx-lm's own classes are built, and MLX computes nothing until it is asked to: a model of 70 billion weights is some thousands
of shapes. So weights and adapters are counted exactly, whatever the architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlxforge.core.errors import ModelError
from mlxforge.core.settings import LoraSettings

FLOAT = 4  # bytes of a float32, which adapters are
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
OWN_TYPE = ("torch_dtype", "dtype")  # keys of config.json
GELU = ("gemma", "starcoder2")  # model types with a GELU
FUSED = "gate_up_proj"
ATTENTION = ("self_attn", "attention", "attn")


@dataclass(frozen=True)
class Block:
    """One layer.

    Attributes:
        kept: numbers a token that the backward pass needs, attention's scores left out.
        inner: width of the gate, for all experts that a token meets.
        heads: that score, 0 where there is no attention.
        trained: numbers that are trained.
        unpacked: packed weights that are kept as numbers.
    """

    kept: int
    inner: int
    heads: int
    trained: int
    unpacked: int


@dataclass(frozen=True)
class Shapes:
    """A model with what is trained of it.

    Attributes:
        weights: bytes of the frozen weights.
        trained, trained_bytes: numbers that are trained, and their bytes.
        parameters: of the base, as people count them.
        active: of them, those that one token meets in the layers (a mixture of experts uses some), the head left out.
        width, vocabulary: of a state, and of the head.
        head_trained: whether the output head is among what is trained; ``head_plain``: whether it is one matrix alone.
        low_rank: whether frozen weights need no gradient of their own.
        item: bytes of a number that is computed with.
        keys: numbers of keys and values that a token leaves in the caches of all layers.
        silu: whether the gate is one; families that use another have theirs in GELU or name it in config.json.
        gpu: whether it computes on Metal.
    """

    blocks: tuple[Block, ...]
    weights: int
    trained: int
    trained_bytes: int
    parameters: int
    active: int
    width: int
    vocabulary: int
    head_trained: bool
    head_plain: bool
    low_rank: bool
    item: int
    keys: int
    quantized: bool
    silu: bool
    gpu: bool


def skeleton(config: Mapping[str, Any], where: str = "config.json") -> Any:
    """mlx-lm's model of a configuration, packed where it says so. Its numbers are never computed.

    Raises:
        ModelError: mlx-lm cannot build it.
    """
    from mlxforge.core.blas import load_blas
    from mlxforge.models.load import explain, quiet_import

    load_blas()
    with quiet_import():
        import mlx.nn as nn
        import mlx_lm.utils
    try:
        kind, arguments = mlx_lm.utils._get_classes(dict(config))
        model = kind(arguments.from_dict(_copy(config)))
    except Exception as error:  # a foreign config fails in as many ways as there are model classes
        raise ModelError(explain(error)[0], where=where, fix="take the config of the model's repository") from error
    packed = packing(config)
    if packed:

        def chosen(path: str, module: Any) -> Any:
            if path in packed:
                return packed[path]
            return hasattr(module, "to_quantized") and module.weight.shape[-1] % packed["group_size"] == 0

        nn.quantize(model, packed["group_size"], packed["bits"], mode=packed.get("mode", "affine"), class_predicate=chosen)
    return model


def packing(config: Mapping[str, Any]) -> dict[str, Any]:
    """How the weights are packed, as mlx-lm writes it into config.json; empty where they are not."""
    found = config.get("quantization") or config.get("quantization_config") or {}
    if not found:
        return {}
    return {"group_size": 64, "bits": 4} | {key: value for key, value in found.items() if not isinstance(value, str)}


def shapes(
    config: Mapping[str, Any], lora: LoraSettings, dtype: str = "auto", where: str = "config.json", gpu: bool | None = None
) -> Shapes:
    """The shapes of a model that is trained as ``lora`` says.

    Args:
        dtype: as in the settings; ``auto`` is float32 on a CPU, the model's own on Metal.
        gpu: whether it computes on Metal; by default as here.
    """
    return shapes_of(adapted(skeleton(config, where), lora), config, lora, dtype, gpu)


def adapted(model: Any, lora: LoraSettings) -> Any:
    """The model with its trained layers, in place."""
    from mlxforge.models.lora import adapter_config, make_trainable

    make_trainable(model, adapter_config(model, lora, ""))
    return model


def shapes_of(
    model: Any, config: Mapping[str, Any], lora: LoraSettings, dtype: str = "auto", gpu: bool | None = None
) -> Shapes:
    """As :func:`shapes`, for a model that is made trainable already."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from mlxforge.models.load import on_gpu
    from mlxforge.models.lora import trainable

    gpu = on_gpu() if gpu is None else gpu
    item = SIZES[number_type(config, dtype, gpu)]
    own = trainable(model)
    full = lora.kind == "full"

    def size(name: str, array: Any) -> int:
        # Adapters are float32 whatever the model is.
        if not mx.issubdtype(array.dtype, mx.floating):
            return int(array.nbytes)
        return int(array.size) * (item if full or name not in own else FLOAT)

    every = dict(tree_flatten(model.parameters()))
    text = {**config, **(config.get("text_config") or {})}
    experts = int(text.get("num_experts_per_tok") or 1)
    heads, keys = heads_of(text)
    blocks = tuple(_block(layer, text, heads, keys, experts, lora.kind) for layer in model.layers)
    inner = model
    while "language_model" in inner:
        inner = inner["language_model"]
    body = inner.get("model", inner)
    head = inner["lm_head"] if "lm_head" in inner else body.get("embed_tokens")
    trained_bytes = sum(size(name, array) for name, array in own.items())
    return Shapes(
        blocks=blocks,
        weights=sum(size(name, array) for name, array in every.items()) - trained_bytes,
        trained=sum(int(array.size) for array in own.values()),
        trained_bytes=trained_bytes,
        parameters=sum(_plain_size(module) for _, module in model.named_modules()),
        active=sum(rows * columns * times for layer in model.layers for _, rows, columns, times in linears(layer, experts)),
        width=int(text["hidden_size"]),
        vocabulary=int(text["vocab_size"]),
        head_trained=bool(head is not None and head.trainable_parameters()),
        head_plain=not getattr(getattr(inner, "args", None), "final_logit_softcapping", None),
        silu=_silu(text),
        gpu=gpu,
        low_rank=not full,
        item=item,
        keys=2 * keys * len(model.layers),
        quantized=bool(packing(config)),
    )


def number_type(config: Mapping[str, Any], dtype: str, gpu: bool) -> str:
    """The floating type that a run computes with: see ``mlxforge.models.load.cast``."""
    if dtype != "auto":
        return dtype
    return own_type(config) if gpu else "float32"


def own_type(config: Mapping[str, Any]) -> str:
    """The type that a model's weights are stored as."""
    text = {**(config.get("text_config") or {}), **config}
    found = str(next((text[key] for key in OWN_TYPE if text.get(key)), "bfloat16"))
    return found if found in SIZES else "bfloat16"


def _silu(text: Mapping[str, Any]) -> bool:
    named = text.get("hidden_act") or text.get("hidden_activation")
    return "gelu" not in str(named) and not str(text.get("model_type")).startswith(GELU)


def heads_of(text: Mapping[str, Any]) -> tuple[int, int]:
    """(heads, numbers of a token's keys) of an attention layer."""
    heads = int(text.get("num_attention_heads") or 1)
    width = int(text.get("head_dim") or int(text["hidden_size"]) // heads)
    return heads, int(text.get("num_key_value_heads") or heads) * width


def linears(layer: Any, experts: int) -> Iterator[tuple[str, int, int, int]]:
    """(path, inputs, outputs, times a token meets it) of every linear layer of a block, adapters' bases included."""
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    from mlxforge.models.lora import LINEAR

    for path, module in layer.named_modules():
        if not isinstance(module, LINEAR):
            continue
        outputs, inputs = module.weight.shape[-2:]
        inputs = inputs * 32 // module.bits if "scales" in module else inputs
        yield (
            path.removesuffix(".linear"),
            int(inputs),
            int(outputs),
            experts if isinstance(module, (SwitchLinear, QuantizedSwitchLinear)) else 1,
        )


def _block(layer: Any, text: Mapping[str, Any], heads: int, keys: int, experts: int, kind: str) -> Block:
    """What a layer keeps, counted by what its parts need to go backward.

    A linear layer's frozen weights need nothing, what trains on its input needs the input; a norm its input; attention its
    queries, keys, values and output; a gated layer its gate, its other half, and their product.
    """
    import mlx.nn as nn

    width = int(text["hidden_size"])
    found = list(linears(layer, experts))
    scoring = [one for one in found if one[0].split(".")[0] in ATTENTION]
    inside = [one for one in found if one not in scoring]
    norms = [int(module.weight.size) for _, module in layer.named_modules() if isinstance(module, (nn.RMSNorm, nn.LayerNorm))]
    kept = sum(size for size in norms if size == width) + 2 * width
    if scoring:
        queries = max(heads * int(text.get("v_head_dim") or text.get("head_dim") or width // heads), 1)
        kept += 3 * queries + 2 * keys
    # What a part writes back into the residual stream is added and let go; its input is kept.
    back = [one for one in inside if one[2] == width and one[1] != width]
    kept += sum(outputs * times for path, _, outputs, times in inside if (path, _, outputs, times) not in back)
    inner = sum(inputs * times for _, inputs, _, times in back)
    kept += inner
    # The halves of one matrix are taken apart, which copies them.
    kept += sum(outputs * times for path, _, outputs, times in inside if path.endswith(FUSED))
    modules = dict(layer.named_modules())
    rank = sum(
        min(modules[path].lora_a.shape[-2:]) * times for path, _, _, times in found if hasattr(modules.get(path), "lora_a")
    )
    unpacked = 0
    if kind == "dora":
        # The magnitude multiplies every output, and a packed weight is kept as numbers.
        kept += sum(outputs * times for _, _, outputs, times in found)
        unpacked = sum(
            inputs * outputs for path, inputs, outputs, _ in found if "scales" in getattr(modules.get(path), "linear", ())
        )
    return Block(
        kept=kept + rank,
        inner=inner,
        heads=heads if scoring else 0,
        trained=sum(int(array.size) for _, array in _flat(layer.trainable_parameters())),
        unpacked=unpacked,
    )


def _flat(tree: Any) -> list[tuple[str, Any]]:
    from mlx.utils import tree_flatten

    flat: list[tuple[str, Any]] = tree_flatten(tree)
    return flat


def _plain_size(module: Any) -> int:
    """Numbers of a module's own arrays, unpacked; an adapter's are none of the base."""
    import mlx.core as mx

    if hasattr(module, "lora_a"):
        return 0
    if "scales" in module:
        return int(module.weight.size) * 32 // int(module.bits) + (int(module["bias"].size) if "bias" in module else 0)
    return sum(int(value.size) for value in module.values() if isinstance(value, mx.array))


def _copy(config: Mapping[str, Any]) -> dict[str, Any]:
    """from_dict may fill in what is missing."""
    import json

    plain: dict[str, Any] = json.loads(json.dumps(dict(config)))
    return plain
