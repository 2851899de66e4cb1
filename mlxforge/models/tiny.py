"""Tiny random models of every family, made in a moment: fixtures for tests, and for trying a pipeline without a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlxforge.core.blas import load_blas
from mlxforge.core.errors import ModelError, did_you_mean
from mlxforge.core.files import new_directory
from mlxforge.models.detect import remapped_type, template_text
from mlxforge.models.families import FAMILIES, TEMPLATES, Family

VOCABULARY = 512
# Merges of several letters, digits, contractions and newlines, so that a wrong pre-tokenizer shows.
TEXT = (
    "The old mill by the river was built in 1984 and it's been there ever since.\n\n"
    "They're open from 10:30 to 17:45; we'll meet at 2024 Main Street, won't we?\n"
    "def area(width, height):\n    return width * height\n\n"
    "The price rose from 100 to 250 in 1999, and then the river rose too. I've seen 12345 birds there.\n"
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}
# Large factors of real configs would make a tiny model's logits vanish or explode.
GRANITE = {"logits_scaling": 1.0, "attention_multiplier": 0.25, "embedding_multiplier": 1.0, "residual_multiplier": 1.0}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
ROUTED = {
    **{"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    **{"first_k_dense_replace": 1, "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1, "norm_topk_prob": True},
}
LATENT = {
    **{"kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16},
    **{"num_key_value_heads": 4, "tie_word_embeddings": False},
}
QWEN_MOE = {**EXPERTS, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
SHARED = {**QWEN_MOE, "shared_expert_intermediate_size": 64}
GATED_DELTA = {
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
    **{"linear_conv_kernel_dim": 4, "full_attention_interval": 2, "partial_rotary_factor": 0.5},
    "rope_parameters": {"type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}
MAMBA = {
    **{"mamba_d_ssm": 64, "mamba_d_head": 16, "mamba_n_heads": 4, "mamba_d_state": 16, "mamba_d_conv": 4},
    **{"mamba_n_groups": 1, "mamba_expand": 1, "mamba_proj_bias": False, "mamba_conv_bias": True},
}
SHORT_CONV = {
    **{"norm_eps": 1e-5, "conv_bias": False, "conv_L_cache": 3, "layer_types": ["conv", "full_attention"]},
    **{
        "block_dim": 64,
        "block_ff_dim": 64,
        "block_multiple_of": 16,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    },
}
SCALED_QUERIES = {
    **{"rope_type": "default", "rope_theta": 10000.0, "llama_4_scaling_beta": 0.1},
    "original_max_position_embeddings": 8,
}
YARN = {
    **{"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256, "beta_fast": 32, "beta_slow": 1},
    **{"mscale": 0.707, "mscale_all_dim": 0.707},
}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}

# model_type -> what its configuration needs beyond COMMON. Sliding windows are short, so that tests see them.
NEEDS: dict[str, dict[str, Any]] = {
    "mixtral": {**EXPERTS, "tie_word_embeddings": False},
    "mistral3": {"text": {"model_type": "ministral3", "rope_parameters": SCALED_QUERIES}},
    "ministral3": {"rope_parameters": SCALED_QUERIES},
    "smollm3": {"no_rope_layer_interval": 2},
    "qwen2_moe": SHARED,
    "qwen3_moe": QWEN_MOE,
    "qwen3_next": {**SHARED, **GATED_DELTA},
    "qwen3_5": {"text": {"model_type": "qwen3_5_text", **GATED_DELTA}},
    "qwen3_5_moe": {"text": {"model_type": "qwen3_5_moe_text", **GATED_DELTA, **SHARED}},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"text": {"model_type": "gemma3_text", "query_pre_attn_scalar": 16, "sliding_window": 8,
                        "sliding_window_pattern": 2}},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window": 8, "sliding_window_pattern": 2},
    "phi": {"num_key_value_heads": 4, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
    "olmo3": {**WINDOWS, "tie_word_embeddings": False},
    "olmoe": EXPERTS,
    "granite": GRANITE,
    "granitemoe": {**GRANITE, **EXPERTS},
    "granitemoehybrid": {**GRANITE, **MAMBA, **EXPERTS, "shared_intermediate_size": 64, "layer_types": ["mamba", "attention"]},
    "stablelm": {"use_qkv_bias": False, "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5},
    "deepseek": {**ROUTED, "tie_word_embeddings": False},
    "deepseek_v2": {**ROUTED, **LATENT, "topk_method": "greedy", "rope_scaling": YARN},
    "deepseek_v3": {**ROUTED, **LATENT, "topk_method": "noaux_tc"},
    "glm4": {"partial_rotary_factor": 0.5},
    "glm4_moe": {**ROUTED, "partial_rotary_factor": 0.5, "use_qk_norm": True, "rope_scaling": None},
    "cohere": {"layer_norm_eps": 1e-5, "logit_scale": 1.0},
    "cohere2": {"layer_norm_eps": 1e-5, "logit_scale": 1.0, "sliding_window": 8, "sliding_window_pattern": 2},
    "lfm2": SHORT_CONV,
    "lfm2_moe": {**SHORT_CONV, **EXPERTS, "use_expert_bias": True, "num_dense_layers": 1, "norm_topk_prob": True},
    "falcon_h1": {**MAMBA, "lm_head_multiplier": 1.0},
    "gpt_oss": {**WINDOWS, **EXPERTS, "tie_word_embeddings": False},
    "starcoder2": {"norm_epsilon": 1e-5},
    "hunyuan_v1_dense": {"use_qk_norm": True},
    "exaone4": {**WINDOWS, "rope_scaling": None, "sliding_window_pattern": "LG"},
    "ernie4_5": {"use_bias": False},
}  # fmt: skip


def make_tiny(
    family: str,
    directory: Path | str,
    *,
    seed: int = 0,
    dtype: str = "float32",
    chat_template: bool = True,
    **overrides: Any,
) -> Path:
    """Writes a tiny random model folder of a family (or a ``model_type`` of the table). Returns the folder.

    It holds config.json, model.safetensors in mlx-lm's own layout, tokenizer.json, tokenizer_config.json (with the family's
    template, unless ``chat_template`` is false). Hidden size 64, two layers, vocabulary 512; ``overrides`` are keys of
    config.json, such as ``hidden_size=256``. The same arguments give the same bytes.

    Raises:
        ModelError: no such family.
    """
    row, model_type = find(family)
    directory = Path(directory)
    with new_directory(directory) as folder:
        specials = special_tokens(row)
        config = tiny_config(row, model_type, specials, overrides)
        save_json(folder / "config.json", config)
        write_tokenizer(folder, row, specials, chat_template)
        write_weights(folder / "model.safetensors", config, seed, dtype)
    return directory


def find(family: str) -> tuple[Family, str]:
    """(row, model_type) for a family's name or a model type."""
    if row := FAMILIES.get(family):
        return row, family if family in row.model_types else row.model_types[0]
    for row in FAMILIES.values():
        if family in row.model_types:
            return row, family
    raise ModelError(f"no family '{family}'", fix=did_you_mean(family, FAMILIES))


def special_tokens(row: Family) -> list[str]:
    """Every token that the family's row names, once; its id is its place."""
    chat = row.chat
    tells = row.tells.tokens if row.tells else ()
    named = (chat.bos, chat.eos, *TEMPLATES[chat.template], *chat.eot, *tells, *(row.think if row.thinking != "none" else ()))
    return list(dict.fromkeys(token for token in named if token))


def tiny_config(row: Family, model_type: str, specials: list[str], overrides: dict[str, Any]) -> dict[str, Any]:
    """config.json: COMMON, what the type needs, then ``overrides``; nested under text_config where the type nests."""
    needs = dict(NEEDS.get(model_type, {}))
    text = needs.pop("text", None)
    ids = {"eos_token_id": specials.index(row.chat.eos)}
    if row.chat.bos:
        ids["bos_token_id"] = specials.index(row.chat.bos)
    theta = {"rope_theta": row.tells.rope_theta[0]} if row.tells and row.tells.rope_theta else {}
    flat = {**COMMON, "vocab_size": VOCABULARY, **theta, **needs, **(text or {}), **overrides}
    if text is None:
        return {"model_type": model_type, **flat, **ids}
    outer = {"model_type": model_type, "vocab_size": flat["vocab_size"], "tie_word_embeddings": flat["tie_word_embeddings"]}
    return {**outer, "text_config": flat, **ids}


def write_tokenizer(folder: Path, row: Family, specials: list[str], chat_template: bool) -> None:
    """A byte-level BPE trained on ``TEXT``, the family's special tokens in front."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 64, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT * 4], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": row.chat.eos, "pad_token": row.chat.eos}
    if row.chat.bos:
        settings["bos_token"] = row.chat.bos
    if chat_template:
        settings["chat_template"] = template_text(row.chat.template)
    save_json(folder / "tokenizer_config.json", {**settings, "clean_up_tokenization_spaces": False})


def write_weights(file: Path, config: dict[str, Any], seed: int, dtype: str) -> None:
    """Random weights from mlx-lm's own class. What it starts at zero (routers, sinks) gets small noise, lest they tie."""
    load_blas()
    from mlxforge.models.load import quiet_import

    with quiet_import():
        import mlx.core as mx
        import mlx_lm.utils
        from mlx.utils import tree_flatten
    mx.random.seed(seed)
    model_class, arguments = mlx_lm.utils._get_classes(config)
    # from_dict may fill in what is missing: the config on disk stays as it was written.
    model = model_class(arguments.from_dict(json.loads(json.dumps(config))))
    weights = {}
    for name, value in tree_flatten(model.parameters()):
        if name.endswith("lm_head.weight") and remapped_type(config["model_type"]).startswith("gemma3"):
            continue
        noise = 0.05 * mx.random.normal(value.shape) if not mx.any(value != 0) else mx.zeros_like(value)
        weights[name] = (value + noise).astype(getattr(mx, dtype))
    mx.save_safetensors(str(file), weights, metadata={"format": "mlx"})


def save_json(file: Path, content: dict[str, Any]) -> None:
    """Readable JSON; unicode stays as it is."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
