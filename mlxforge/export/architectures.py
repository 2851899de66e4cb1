"""The architectures that become GGUF: what llama.cpp calls them, wants of their tensors, and can't do. One table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxforge.core.errors import ModelError

Keys = dict[str, Any]
Rule = tuple[str, ...]  # an op of tensors.OPS, then the keys of config.json that give its numbers


class Config(dict[str, Any]):
    """config.json of a language model; a key that is missing is an error that names the file."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise ModelError(f"no '{key}'", where=self.where, fix="add it: the export needs it")


LLAMA_ROPE: dict[str, Rule] = {
    "self_attn.q_proj": ("interleaved", "num_attention_heads"),
    "self_attn.k_proj": ("interleaved", "num_key_value_heads"),
}
SHIFTED: dict[str, Rule] = {"norm.weight": ("plus_one",)}
VALUES = ("linear_num_key_heads", "linear_num_value_heads")
GATED_DELTA: dict[str, Rule] = {
    "linear_attn.in_proj_qkv": ("tiled_rows", *VALUES, "linear_value_head_dim"),
    "linear_attn.conv1d": ("tiled_rows", *VALUES, "linear_value_head_dim"),
    "linear_attn.in_proj_z": ("tiled_rows", *VALUES),
    "linear_attn.in_proj_a": ("tiled_rows", *VALUES),
    "linear_attn.in_proj_b": ("tiled_rows", *VALUES),
    "linear_attn.dt_proj": ("tiled_rows", *VALUES),
    "linear_attn.A_log": ("decay", *VALUES),
    "linear_attn.out_proj": ("tiled_columns", *VALUES),
    "linear_attn.norm": ("copy",),
}
QKV = ("q_proj", "k_proj", "v_proj")
ALL_LINEAR = (*QKV, "o_proj", "gate_proj", "up_proj", "down_proj")
SCALED = ("default", "linear", "yarn")


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        name: ``general.architecture`` of the file.
        ops: part of a tensor's name -> what is done to it; the first that fits. All others are copied.
        shift: rules of norms that hold only where the base has Hugging Face's layout, not mlx-lm's.
        head: ``optional``: tied where config.json says so; ``required``: llama.cpp wants one, a tied one is written twice;
            ``stored``: used where it is stored, whatever config.json says; ``own``: always there; ``none``: never.
        biases: layers whose biases llama.cpp reads.
        scalings: types of rope scaling that it has.
        square: it takes heads of hidden_size / num_attention_heads only.
        defaults: keys of config.json that may be missing.
        norm: name of the epsilon in config.json; ``layer_norm`` says that the norms have a mean.
        keys: further hyperparameters, without the architecture's name in front.
        problem: what llama.cpp can't do of this config.json; empty where all is well.
    """

    name: str
    ops: Mapping[str, Rule] = field(default_factory=dict)
    shift: Mapping[str, Rule] = field(default_factory=dict)
    head: str = "optional"
    biases: tuple[str, ...] = QKV
    scalings: tuple[str, ...] = SCALED
    square: bool = False
    defaults: Keys = field(default_factory=dict)
    norm: str = "rms_norm_eps"
    layer_norm: bool = False
    keys: Callable[[Config], Keys] = lambda _: {}
    problem: Callable[[Config], str] = lambda _: ""


def layers(config: Config) -> range:
    """The indices of the layers."""
    return range(int(config["num_hidden_layers"]))


def windows(config: Config, period: int) -> list[bool]:
    """Whether each layer slides: as layer_types says, else all but every ``period``-th."""
    types = config.get("layer_types")
    return [kind == "sliding_attention" for kind in types] if types else [(i + 1) % period != 0 for i in layers(config)]


def rotated(config: Config) -> int:
    """How many numbers of a head the rope turns."""
    part = (config.get("rope_parameters") or {}).get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    return int(config["head_dim"] * part)


def full_attention(config: Config) -> str:
    """The llama architecture has no sliding layers."""
    return "layers of sliding attention" if "sliding_attention" in (config.get("layer_types") or []) else ""


def smollm3(config: Config) -> str:
    """llama.cpp leaves the rope out of every fourth layer."""
    interval = int(config.get("no_rope_layer_interval", 4))
    roped = config.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in layers(config)]
    wanted = [int((i + 1) % 4 != 0) for i in layers(config)]
    return "" if list(roped) == wanted else "layers without rope other than every fourth (no_rope_layers)"


def qwen3_moe(config: Config) -> str:
    """llama.cpp has experts in every layer and normalises their weights."""
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        return "layers without experts (mlp_only_layers, decoder_sparse_step)"
    return "" if config.get("norm_topk_prob", False) else "expert weights that are not normalised (norm_topk_prob)"


def query_scale(config: Config, largest: int) -> str:
    """llama.cpp scales queries by the head's width, in the largest model (by its layers) by hidden_size / heads."""
    whole = config["hidden_size"] // config["num_attention_heads"]
    wanted = whole if config["num_hidden_layers"] == largest else config["head_dim"]
    return "" if config["query_pre_attn_scalar"] == wanted else f"query_pre_attn_scalar other than {wanted}"


def gemma3(config: Config) -> str:
    """llama.cpp has every sixth layer look at everything."""
    period = int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6)
    wanted = [(i + 1) % 6 != 0 for i in layers(config)]
    if [(i + 1) % period != 0 for i in layers(config)] != wanted or windows(config, 6) != wanted:
        return "sliding windows other than in five layers of six (sliding_window_pattern)"
    return query_scale(config, 62)


def gemma3_keys(config: Config) -> Keys:
    local = (config.get("rope_parameters") or {}).get("sliding_attention", {}).get("rope_theta")
    keys = {
        "attention.sliding_window": int(config["sliding_window"]),
        "rope.freq_base_swa": float(local or config["rope_local_base_freq"]),
    }
    return keys | ({"final_logit_softcapping": float(cap)} if (cap := config.get("final_logit_softcapping")) else {})


def gemma2_keys(config: Config) -> Keys:
    return {
        "attn_logit_softcapping": float(config["attn_logit_softcapping"]),
        "final_logit_softcapping": float(config["final_logit_softcapping"]),
        "attention.sliding_window": int(config["sliding_window"]),
    }


def granite_keys(config: Config) -> Keys:
    names = {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }
    return {key: float(config[name]) for key, name in names.items()}


def expert_keys(config: Config) -> Keys:
    return {"expert_count": int(config["num_local_experts"]), "expert_used_count": int(config["num_experts_per_tok"])}


def qwen3_moe_keys(config: Config) -> Keys:
    return {
        "expert_count": int(config["num_experts"]),
        "expert_used_count": int(config["num_experts_per_tok"]),
        "expert_feed_forward_length": int(config["moe_intermediate_size"]),
    }


def olmo3_keys(config: Config) -> Keys:
    return {
        "attention.sliding_window": int(config["sliding_window"]),
        "attention.sliding_window_pattern": windows(config, 4),
    }


def conv_layers(config: Config) -> list[bool]:
    """Whether each layer of an LFM2 is a convolution."""
    if (types := config.get("layer_types")) is not None:
        return [kind != "full_attention" for kind in types]
    return [i not in config["full_attn_idxs"] for i in layers(config)]


def lfm2_keys(config: Config) -> Keys:
    heads = int(config["num_key_value_heads"])
    return {
        "shortconv.l_cache": int(config["conv_L_cache"]),
        "attention.head_count_kv": [0 if conv else heads for conv in conv_layers(config)],
    }


def qwen3_5(config: Config) -> str:
    """llama.cpp has one width for keys and values of linear attention, and full attention at an even interval."""
    if config["linear_key_head_dim"] != config["linear_value_head_dim"]:
        return "linear_key_head_dim other than linear_value_head_dim"
    if sum(sections(config)) != rotated(config) // 2:
        return f"mrope_section that does not add up to {rotated(config) // 2}"
    interval = int(config["full_attention_interval"])
    wanted = ["linear_attention" if (i + 1) % interval else "full_attention" for i in layers(config)]
    return "" if list(config.get("layer_types") or wanted) == wanted else "layer_types other than full_attention_interval says"


def sections(config: Config) -> list[int]:
    """Pairs of the rope that time, height and width turn: of text, all turn alike."""
    pairs = rotated(config) // 2
    given = (config.get("rope_parameters") or {}).get("mrope_section")
    return [int(size) for size in given] if given else [(pairs + 2) // 3, (pairs + 1) // 3, pairs // 3]


def qwen3_5_keys(config: Config) -> Keys:
    heads, width = int(config["linear_num_value_heads"]), int(config["linear_value_head_dim"])
    return {
        "ssm.conv_kernel": int(config["linear_conv_kernel_dim"]),
        "ssm.state_size": int(config["linear_key_head_dim"]),
        "ssm.group_count": int(config["linear_num_key_heads"]),
        "ssm.time_step_rank": heads,
        "ssm.inner_size": heads * width,
        "full_attention_interval": int(config["full_attention_interval"]),
        "rope.dimension_sections": [*sections(config), 0],
    }


def hunyuan(config: Config) -> str:
    """llama.cpp normalises q and k."""
    return "" if config.get("use_qk_norm", True) else "attention without norms of q and k (use_qk_norm)"


def stablelm_keys(config: Config) -> Keys:
    return {"use_parallel_residual": bool(config.get("use_parallel_residual", False))}


GEMMA3 = {"head_dim": 256, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6}
GEMMA3_SMALL = {**GEMMA3, "num_attention_heads": 4, "num_key_value_heads": 1, "max_position_embeddings": 32768,
                "sliding_window": 512}  # fmt: skip
GEMMA3_LARGE = {**GEMMA3, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 131072,
                "sliding_window": 1024}  # fmt: skip
GEMMA2 = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096,
          "query_pre_attn_scalar": 144}  # fmt: skip

A = Architecture
# model_type of config.json -> its architecture.
EXPORTABLE: dict[str, Architecture] = {
    "llama": A("llama", LLAMA_ROPE, biases=ALL_LINEAR, scalings=(*SCALED, "llama3"), problem=full_attention),
    "mistral": A("llama", LLAMA_ROPE, biases=ALL_LINEAR, scalings=(*SCALED, "llama3"), problem=full_attention),
    "mixtral": A("llama", LLAMA_ROPE, defaults={"rope_theta": 1e6}, keys=expert_keys),
    "qwen2": A("qwen2", defaults={"rope_theta": 1e6}),
    "qwen3": A("qwen3"),
    "qwen3_moe": A("qwen3moe", keys=qwen3_moe_keys, problem=qwen3_moe),
    "qwen3_5": A("qwen35", GATED_DELTA, SHIFTED, scalings=("default",), keys=qwen3_5_keys, problem=qwen3_5,
                 defaults={"full_attention_interval": 4, "partial_rotary_factor": 0.25, "rope_theta": 1e5}),
    "gemma": A("gemma", SHIFTED, head="none", scalings=("default",)),
    "gemma2": A("gemma2", SHIFTED, head="none", scalings=("default",), defaults=GEMMA2, keys=gemma2_keys,
                problem=lambda config: query_scale(config, 46)),
    "gemma3": A("gemma3", SHIFTED, head="stored", scalings=("default", "linear"), defaults=GEMMA3_LARGE, keys=gemma3_keys,
                problem=gemma3),
    "gemma3_text": A("gemma3", SHIFTED, head="stored", scalings=("default", "linear"), defaults=GEMMA3_SMALL,
                     keys=gemma3_keys, problem=gemma3),
    "phi3": A("phi3", biases=(), scalings=("default", "linear", "longrope", "su"), square=True),
    "olmo2": A("olmo2", head="required", biases=(), square=True),
    "olmo3": A("olmo2", head="required", biases=(), square=True, keys=olmo3_keys),
    "granite": A("granite", LLAMA_ROPE, biases=ALL_LINEAR, scalings=(*SCALED, "llama3"), square=True, keys=granite_keys),
    "granitemoe": A("granitemoe", LLAMA_ROPE, biases=(*QKV, "o_proj"), scalings=(*SCALED, "llama3"), square=True,
                    keys=lambda config: granite_keys(config) | expert_keys(config)),
    "smollm3": A("smollm3", LLAMA_ROPE, problem=smollm3),
    "lfm2": A("lfm2", head="none", biases=(), scalings=("default",), square=True, norm="norm_eps", keys=lfm2_keys,
              defaults={"rope_theta": 1e6}),
    "seed_oss": A("seed_oss"),
    "stablelm": A("stablelm", head="own", biases=(*QKV, "norm", "layernorm"), scalings=("default",), square=True,
                  norm="layer_norm_eps", layer_norm=True, keys=stablelm_keys),
    "starcoder2": A("starcoder2", biases=(*QKV, "o_proj", "c_fc", "c_proj", "norm", "layernorm"), scalings=("default",),
                    square=True, norm="norm_epsilon", layer_norm=True, defaults={"norm_epsilon": 1e-5, "rope_theta": 1e5}),
    "hunyuan_v1_dense": A("hunyuan-dense", scalings=("default", "dynamic"),
                          problem=hunyuan),
}  # fmt: skip
