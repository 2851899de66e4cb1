"""Which tensors and hyperparameters a GGUF file has, and what in a model each is made of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import gguf
from gguf.constants import MODEL_ARCH_NAMES, MODEL_TENSOR, MODEL_TENSORS, GGUFValueType

from mlxforge.core.errors import ModelError
from mlxforge.export.architectures import EXPORTABLE, Architecture, Config, Rule
from mlxforge.export.rope import rope_keys, rope_tensors
from mlxforge.export.source import Source, text_config
from mlxforge.export.tensors import OPS, Placed

__all__ = ["OPS", "Placed", "architecture", "layout", "left_out", "metadata"]

ARCHS = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
FLOAT32 = (MODEL_TENSOR.FFN_GATE_INP, MODEL_TENSOR.SSM_CONV1D, MODEL_TENSOR.SHORTCONV_CONV)
# How the names of Hugging Face and of mlx-lm become one; the first group that is a number is the place in a stack.
RENAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in {
        r"^(?:language_model\.model|model\.language_model)\.": "model.",
        r"^language_model\.lm_head\.": "lm_head.",
        r"\.(?:mlp|block_sparse_moe)\.switch_mlp\.(\w+_proj)\.": r".mlp.experts.\1.",
        r"\.block_sparse_moe\.experts\.(\d+)\.w1\.": r".mlp.experts.#\1.gate_proj.",
        r"\.block_sparse_moe\.experts\.(\d+)\.w2\.": r".mlp.experts.#\1.down_proj.",
        r"\.block_sparse_moe\.experts\.(\d+)\.w3\.": r".mlp.experts.#\1.up_proj.",
        r"\.mlp\.experts\.(\d+)\.": r".mlp.experts.#\1.",
        r"_layernorm\.norms\.(\d+)\.": r"_layernorm.#\1.",
        r"\.linear_attn\.dt_bias$": ".linear_attn.dt_proj.bias",
    }.items()
)
# What a GGUF file of the language model does without: the start of a name -> what it is.
LEFT_OUT = {
    "vision_tower.": "vision tower",
    "model.vision_tower.": "vision tower",
    "model.visual.": "vision tower",
    "visual.": "vision tower",
    "multi_modal_projector.": "projector of images",
    "model.multi_modal_projector.": "projector of images",
    "mtp.": "head of several tokens",
    "model.mtp.": "head of several tokens",
    "language_model.mtp.": "head of several tokens",
}
HALVES = {"gate_proj": "first_half", "up_proj": "second_half"}  # of input_linear
TYPES = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING,
         list: GGUFValueType.ARRAY}  # fmt: skip


def architecture(source: Source) -> Architecture:
    """The row of ``EXPORTABLE`` that describes the model.

    Raises:
        ModelError: there is none, or llama.cpp can't do what config.json asks for.
    """
    kind = str(source.config.get("model_type"))
    if kind not in EXPORTABLE:
        what = f"'{kind}' is no architecture that mlxforge can write as GGUF (it can: {', '.join(EXPORTABLE)})"
        fix = "use 'mlxforge export mlx', or 'mlxforge fuse' and llama.cpp's convert_hf_to_gguf.py on the result"
        raise ModelError(what, where=str(source.path), fix=fix)
    row = EXPORTABLE[kind]
    config = settings(source, row)
    problem = row.problem(config) or ("rotated neighbours (rope_traditional)" if config.get("rope_traditional") else "")
    if problem:
        fix = "use 'mlxforge export mlx'; the model cannot run there as it was trained"
        raise ModelError(f"llama.cpp's {row.name} has no {problem}", where=str(source.path / "config.json"), fix=fix)
    return row


def settings(source: Source, row: Architecture) -> Config:
    """config.json of the language model, with the architecture's defaults."""
    where = str(source.path / "config.json")
    given = {key: value for key, value in text_config(source.config).items() if value is not None}
    config = Config({**row.defaults, **given, "model_type": source.config["model_type"]}, where)
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config["head_dim"] = head_width(source, config, row)
    return config


def head_width(source: Source, config: Config, row: Architecture) -> int:
    """Width of an attention head, by the keys' tensor; by config.json where q, k and v are stored as one."""
    rows = [entry.shape[0] for name, entry in source.entries.items() if name.endswith("self_attn.k_proj.weight")]
    whole = int(config["hidden_size"]) // int(config["num_attention_heads"])
    width = rows[0] // int(config["num_key_value_heads"]) if rows else whole
    if row.square and width != whole:
        what = f"heads {width} wide, where llama.cpp's {row.name} takes hidden_size / num_attention_heads = {whole} only"
        raise ModelError(what, where=str(source.path), fix="use 'mlxforge export mlx'")
    return width


def left_out(source: Source) -> dict[str, str]:
    """The stored tensors that the GGUF file does without, and what each is."""
    row = architecture(source)
    config = settings(source, row)
    found = {}
    for name in source.entries:
        what = next((what for start, what in LEFT_OUT.items() if name.startswith(start)), "")
        if name.endswith("rotary_emb.inv_freq"):
            what = "rope frequencies, which are computed"
        if canonical(name)[0] == "lm_head.weight" and not own_head(row, config):
            what = "output head, which is the embedding's"
        if what:
            found[name] = what
    return found


def own_head(row: Architecture, config: Config) -> bool:
    """Whether an output head that is stored is used: transformers leaves tie_word_embeddings out where it is the default."""
    return row.head in ("stored", "own") or (row.head != "none" and not config.get("tie_word_embeddings"))


@cache
def canonical(name: str) -> tuple[str, int | None]:
    """(the name as Hugging Face has it with stacked experts, its place in the stack or None)."""
    for pattern, new in RENAMES:
        name = pattern.sub(new, name)
    place = re.search(r"\.#(\d+)", name)
    return re.sub(r"\.#\d+", "", name), int(place[1]) if place else None


def layout(source: Source) -> list[Placed]:
    """The tensors of the GGUF file: embedding, output, then layer by layer.

    Raises:
        ModelError: an architecture that is not proven, a tensor that has no place in the file, a stack with gaps, an
            embedding, a head or a layer that is missing.
    """
    row = architecture(source)
    config = settings(source, row)
    names = gguf.get_tensor_name_map(ARCHS[row.name], int(config["num_hidden_layers"]))
    groups = grouped(source)
    placed, lost = [], []
    for name, members in groups.items():
        found = list(placements(source, row, config, names, name, members))
        placed += found
        lost += [] if found else members
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        what = f"no place in a {row.name} GGUF for {', '.join(lost[:3])}{more}"
        raise ModelError(what, where=str(source.path), fix="nothing is left out silently: use 'mlxforge export mlx'")
    placed += extras(row, config, placed)
    check_complete(source, row, config, placed)
    return sorted(placed, key=lambda tensor: position(row, tensor.name))


def grouped(source: Source) -> dict[str, list[str]]:
    """The tensors to place by canonical name; the members of a stack in order."""
    skipped = left_out(source)
    groups: dict[str, dict[int, str]] = {}
    for name in source.entries:
        if name in skipped:
            continue
        common, place = canonical(name)
        members = groups.setdefault(common, {})
        if (place or 0) in members:
            raise ModelError(f"{members[place or 0]} and {name} are the same tensor", where=str(source.path), fix="remove one")
        members[place or 0] = name
    for common, members in groups.items():
        if sorted(members) != list(range(len(members))):
            gap = next(i for i in range(len(members)) if i not in members)
            raise ModelError(f"number {gap} of {common} is missing", where=str(source.path), fix="download the model again")
    return {common: [members[i] for i in sorted(members)] for common, members in groups.items()}


def placements(
    source: Source, row: Architecture, config: Config, names: gguf.TensorNameMap, name: str, members: list[str]
) -> Iterator[Placed]:
    """The tensors of the file that one group of stored tensors makes: one, two of a fused pair of experts, or none."""
    stem, _, part = name.rpartition(".")
    parts: list[tuple[str, Rule]]
    if name.endswith(".input_linear.weight"):
        block = stem.removesuffix(".block_sparse_moe.input_linear")
        parts = [(f"{block}.mlp.experts.{half}.weight", (op,)) for half, op in HALVES.items()]
    else:
        parts = [(name, rule(source, row, name))]
    for common, chosen in parts:
        kind, new = names.get_type_and_name(common, (".weight", ".bias")) or (None, "")
        if kind is None or (part == "bias" and not allowed_bias(row, stem)):
            continue
        yield made(source, config, new, kind, members, chosen)


def allowed_bias(row: Architecture, stem: str) -> bool:
    """Whether llama.cpp reads the bias of a layer."""
    return stem.endswith((*row.biases, "linear_attn.dt_proj"))


def rule(source: Source, row: Architecture, name: str) -> Rule:
    """What is done to a tensor of this name."""
    rules = {**row.ops, **(row.shift if row.shift and huggingface_layout(source) else {})}
    return next((rule for part, rule in rules.items() if part in name), ("copy",))


def huggingface_layout(source: Source) -> bool:
    """Whether a Qwen3.5's tensors are Hugging Face's: mlx-lm moves the convolution's last axis and shifts the norms with it."""
    return any(name.endswith("conv1d.weight") and entry.shape[-1] != 1 for name, entry in source.entries.items())


def made(source: Source, config: Config, name: str, kind: MODEL_TENSOR, members: list[str], chosen: Rule) -> Placed:
    """One tensor of the file; its shape follows from what it is made of."""
    stored = tuple(source.entries[member].shape for member in members)
    op, *options = chosen
    shape = stored[0]
    if len(set(stored)) > 1:
        raise ModelError(f"the tensors of {name} have several shapes", where=str(source.path), fix="download the model again")
    if OPS[op].half is not None:
        shape = (shape[0], shape[1] // 2, *shape[2:])
    if kind in (MODEL_TENSOR.SSM_CONV1D, MODEL_TENSOR.SHORTCONV_CONV):
        shape = (shape[0], shape[1] * shape[2])
    if len(members) > 1:
        shape = (len(members), *shape)
    keep32 = len(shape) == 1 or name.endswith("_norm.weight") or kind in FLOAT32
    return Placed(name, shape, tuple(members), op, keep32, stored, tuple(int(config[key]) for key in options))


def extras(row: Architecture, config: Config, placed: list[Placed]) -> list[Placed]:
    """Tensors that are stored nowhere: rope factors, and the tied head where llama.cpp wants one."""
    found = [Placed(name, (len(values),), (), keep32=True, values=values) for name, values in rope_tensors(row, config)]
    embedding = next((tensor for tensor in placed if tensor.name == "token_embd.weight"), None)
    if embedding and row.head == "required" and all(tensor.name != "output.weight" for tensor in placed):
        found.append(Placed("output.weight", embedding.shape, embedding.sources, stored=embedding.stored))
    return found


def check_complete(source: Source, row: Architecture, config: Config, placed: list[Placed]) -> None:
    """Refuses a model without embedding, without a head that is not tied, or that lacks a layer, a part of one, or experts."""
    damaged = {"where": str(source.path), "fix": "download the model again"}
    names = {tensor.name for tensor in placed}
    missing = [] if "token_embd.weight" in names else ["model.embed_tokens.weight"]
    needed = row.head == "own" or (row.head in ("optional", "required") and config.get("tie_word_embeddings") is False)
    if needed and "output.weight" not in names:
        missing.append("lm_head.weight")
    missing += incomplete(names, int(config["num_hidden_layers"]))
    if missing:
        raise ModelError(f"{missing[0]} is missing", **damaged)
    # A tied head that is written twice has two names.
    if len(names) < len(placed):
        twice = next(tensor.name for i, tensor in enumerate(placed) if tensor.name in {one.name for one in placed[:i]})
        raise ModelError(f"two tensors would be {twice}", **damaged)
    for tensor in placed:
        if "_exps." in tensor.name and tensor.shape[0] != (count := row.keys(config)["expert_count"]):
            raise ModelError(f"{tensor.name} has {tensor.shape[0]} experts, config.json {count}", **damaged)


def incomplete(names: set[str], count: int) -> list[str]:
    """Layers that are missing, and tensors that other layers of the same kind have."""
    parts: dict[int, set[str]] = {i: set() for i in range(count)}
    for name in names:
        if name.startswith("blk."):
            parts.setdefault(int(name.split(".")[1]), set()).add(name.split(".", 2)[2])
    kinds = [{part for part in own if part.startswith(("ssm_", "shortconv."))} != set() for own in parts.values()]
    missing = [f"layer {i}" for i, own in parts.items() if not own]
    for (i, own), kind in zip(parts.items(), kinds, strict=True):
        wanted = set().union(*(other for other, same in zip(parts.values(), kinds, strict=True) if same == kind))
        missing += [f"blk.{i}.{part}, which other layers have," for part in sorted(wanted - own)]
    return missing


def position(row: Architecture, name: str) -> tuple[int, int, str]:
    """Where a tensor stands in the file: what belongs to no layer first, then by layer, as gguf lists the architecture's."""
    block = int(name.split(".")[1]) if name.startswith("blk.") else -1
    stem = re.sub(r"^blk\.\d+\.", "blk.{bid}.", name).removesuffix(".weight").removesuffix(".bias")
    kinds = [gguf.TENSOR_NAMES[kind] for kind in MODEL_TENSORS[ARCHS[row.name]]]
    return block, kinds.index(stem) if stem in kinds else len(kinds), name


def metadata(source: Source) -> list[tuple[str, Any, GGUFValueType]]:
    """The architecture's hyperparameters: (key, value, type), without vocabulary, name and file type.

    Raises:
        ModelError: a key of config.json is missing, or llama.cpp can't do what it says.
    """
    row = architecture(source)
    config = settings(source, row)
    keys: dict[str, Any] = {
        "vocab_size": next(t.shape[0] for t in layout(source) if t.name == "token_embd.weight"),
        "context_length": int(config["max_position_embeddings"]),
        "embedding_length": int(config["hidden_size"]),
        "block_count": int(config["num_hidden_layers"]),
        "feed_forward_length": feed_forward(source, config),
        "attention.head_count": int(config["num_attention_heads"]),
        "attention.head_count_kv": int(config["num_key_value_heads"]),
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        f"attention.layer_norm_{'' if row.layer_norm else 'rms_'}epsilon": float(config[row.norm]),
        **rope_keys(row, config),
        **row.keys(config),
    }
    found = [("general.architecture", row.name, GGUFValueType.STRING)]
    return found + [(f"{row.name}.{key}", value, TYPES[type(value)]) for key, value in keys.items()]


def feed_forward(source: Source, config: Config) -> int:
    """Width of the feed-forward network: an LFM2's config.json may name it before it is adjusted, so its tensor says it."""
    widths = [entry.shape[0] for name, entry in source.entries.items() if name.endswith(".feed_forward.w1.weight")]
    return widths[0] if widths else int(config["intermediate_size"])
