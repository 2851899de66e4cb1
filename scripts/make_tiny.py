"""Make the embedded base model: corpus, tokenizer, pretraining, files. Everything follows from the seed.

python scripts/make_tiny.py -o data/tiny --general data/general --seed 0    about a quarter of an hour on two cores
python scripts/make_tiny.py -o /tmp/tiny --quick                            seconds; a valid model that knows nothing
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.platform == "linux":
    # Before mlx: its Linux wheel links the reference BLAS, 30 times slower than this one.
    try:
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        print("OpenBLAS not found: this will take hours", file=sys.stderr)

import base_corpus
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 2048
SPECIALS = (base_corpus.END, "<|im_start|>", "<|im_end|>")
# Llama 3's: digits in groups of up to three, so merges of digits exist and a wrong pre-tokenizer shows.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "use_cache": True,
}


@dataclass(frozen=True)
class Recipe:
    """Pretraining: short windows first since they are cheap, longer ones for the last share of the tokens."""

    documents: int = 44_000
    tokens: int = 2_900_000
    step_tokens: int = 4096
    window: int = 128
    last_window: int = 256
    last_share: float = 0.15
    peak: float = 2e-3
    warm_up: int = 40
    floor: float = 0.05
    weight_decay: float = 0.05
    clip: float = 1.0

    @property
    def steps(self) -> int:
        return max(2, self.tokens // self.step_tokens)

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to `floor` of the peak."""
        if step < self.warm_up:
            return self.peak * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.peak * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2)


QUICK = Recipe(documents=1500, tokens=3 * 1024, step_tokens=1024, warm_up=1)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE over `texts`; the three specials are single tokens with the first ids."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All documents end to end, each closed by the end-of-text token."""
    ids = (encoding.ids for encoding in tokenizer.encode_batch([text + base_corpus.END for text in texts]))
    return np.concatenate([np.asarray(row, dtype=np.int32) for row in ids])


def windows(stream: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """The stream cut into rows of `length` + 1 (inputs and shifted targets), in random order. (N, length + 1)"""
    count = (len(stream) - 1) // length
    starts = rng.permutation(count)[:, None] * length
    rows: np.ndarray = stream[starts + np.arange(length + 1)]
    return rows


def batch(rows: np.ndarray, step: int, size: int) -> mx.array:
    """The step's rows, beginning again at the end of the data."""
    return mx.array(np.take(rows, np.arange(step * size, (step + 1) * size), axis=0, mode="wrap"))


def loss(model: nn.Module, rows: mx.array) -> mx.array:
    """Mean cross-entropy of the next token, in nats."""
    nats: mx.array = nn.losses.cross_entropy(model(rows[:, :-1]), rows[:, 1:], reduction="mean")
    return nats


def initialise(model: nn.Module, layers: int) -> None:
    """Normal weights of 0.02; what writes to the residual stream smaller, by the root of its number of writers."""
    for name, weight in tree_flatten(model.parameters()):
        if weight.ndim == 2:
            spread = 0.02 / math.sqrt(2 * layers) if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            model.load_weights([(name, mx.random.normal(weight.shape) * spread)], strict=False)


def pretrain(stream: np.ndarray, recipe: Recipe, seed: int) -> nn.Module:
    """A model trained on the stream by the recipe, in float32."""
    mx.random.seed(seed)
    rng = np.random.default_rng(seed)
    model = llama.Model(llama.ModelArgs.from_dict(CONFIG))
    initialise(model, CONFIG["num_hidden_layers"])
    optimizer = optim.AdamW(recipe.peak, betas=[0.9, 0.95], weight_decay=recipe.weight_decay)
    gradient = nn.value_and_grad(model, loss)
    short, long = (windows(stream, length, rng) for length in (recipe.window, recipe.last_window))
    turn = round(recipe.steps * (1 - recipe.last_share))
    began = time.perf_counter()
    for step in range(recipe.steps):
        rows, length = (short, recipe.window) if step < turn else (long, recipe.last_window)
        optimizer.learning_rate = recipe.rate(step)
        value, gradients = gradient(model, batch(rows, step, recipe.step_tokens // length))
        gradients, _ = optim.clip_grad_norm(gradients, recipe.clip)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        if step % 20 == 0 or step == recipe.steps - 1:
            speed = (step + 1) * recipe.step_tokens / (time.perf_counter() - began)
            print(f"step {step + 1}/{recipe.steps}  loss {value.item():.3f}  {speed:,.0f} tokens/s", flush=True)
    return model


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save(model: nn.Module, tokenizer: Tokenizer, folder: Path) -> None:
    """A model folder in Hugging Face's layout, weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.astype(mx.float16) for name, weight in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = [tokenizer.token_to_id(token) for token in (SPECIALS[0], SPECIALS[2])]
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": ids, "pad_token_id": 0})
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": False,
            "bos_token": SPECIALS[0],
            "eos_token": SPECIALS[0],
            "pad_token": SPECIALS[0],
            "additional_special_tokens": list(SPECIALS[1:]),
            "clean_up_tokenization_spaces": False,
            "model_max_length": CONFIG["max_position_embeddings"],
            "chat_template": TEMPLATE,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--general", type=Path, help="also write retention.txt and replay.jsonl to this folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a useless but valid model, in seconds")
    options = parser.parse_args()
    recipe = QUICK if options.quick else Recipe()
    if options.general:
        base_corpus.write_general(options.seed, options.general)
    texts = base_corpus.documents(options.seed, "train", recipe.documents)
    tokenizer = train_tokenizer(base_corpus.vocabulary_texts(options.seed, recipe.documents // 2))
    stream = token_stream(tokenizer, texts)
    print(f"{len(texts):,} documents, {len(stream):,} tokens", flush=True)
    save(pretrain(stream, recipe, options.seed), tokenizer, options.output)


if __name__ == "__main__":
    main()
