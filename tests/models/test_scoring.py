"""Log-probabilities in chunks equal the plain ones, with their gradients, for every kind of head."""

from __future__ import annotations

import importlib

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_map

from mlxforge.core.errors import ConfigError
from mlxforge.core.settings import LoraSettings
from mlxforge.models import scoring
from mlxforge.models.hooks import checkpoint_layers
from mlxforge.models.lora import adapter_config, make_trainable
from mlxforge.models.scoring import Scorer

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 160, "rms_norm_eps": 1e-5, "head_dim": 8,
}  # fmt: skip
HEADS = {
    "tied": ("llama", {}),
    "untied": ("llama", {"tie_word_embeddings": False}),
    "soft cap": ("gemma2", {"final_logit_softcapping": 30.0, "query_pre_attn_scalar": 8}),
    "scaled up": ("cohere", {"logit_scale": 0.0625, "layer_norm_eps": 1e-5}),
    "scaled down": (
        "granite",
        {"logits_scaling": 8.0, "attention_multiplier": 0.1, "embedding_multiplier": 2.0, "residual_multiplier": 0.5,
         "max_position_embeddings": 64, "attention_bias": False, "mlp_bias": False, "rope_theta": 1e4},
    ),
}  # fmt: skip
LINEAR = {"tied", "untied", "scaled up", "scaled down"}


def build(head: str, bits: int = 0, kind: str = "lora", dropout: float = 0.0):
    name, extra = HEADS[head]
    module = importlib.import_module(f"mlx_lm.models.{name}")
    mx.random.seed(3)
    model = module.Model(module.ModelArgs.from_dict({"model_type": name} | SIZES | extra))
    if bits:
        nn.quantize(model, 32, bits)
    scorer = Scorer(model)
    make_trainable(model, adapter_config(model, LoraSettings(kind=kind, rank=4, alpha=8.0, dropout=dropout), "x"))
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.1 * mx.random.normal(module.lora_b.shape)
    model.train()
    return model, scorer


def both_ways(model, scorer, tokens, weights):
    """(loss, gradients) by chunks and by whole logits; each token's loss has its own weight, as preference losses need."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)

    def chunked(_):
        hidden = scorer.hidden(inputs)
        return (weights * -scorer.log_probs(hidden.reshape(-1, hidden.shape[-1]), targets)).sum()

    def plain(_):
        logits = model(inputs)
        return (weights * nn.losses.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets)).sum()

    return [nn.value_and_grad(model, f)(tokens) for f in (chunked, plain)]


def assert_equal(first, second):
    assert first[0].item() == pytest.approx(second[0].item(), rel=1e-5)
    for (name, a), (_, b) in zip(tree_flatten(first[1]), tree_flatten(second[1]), strict=True):
        assert mx.allclose(a, b, rtol=1e-4, atol=1e-4), name


@pytest.mark.parametrize("queued", [True, False], ids=["queued", "at once"])
@pytest.mark.parametrize("bits", [0, 4])
@pytest.mark.parametrize("head", sorted(HEADS))
def test_chunks_equal_the_whole(head, bits, queued, monkeypatch):
    monkeypatch.setattr(scoring, "QUEUE_BYTES", 1 << 30 if queued else 0)
    monkeypatch.setattr(scoring, "CHUNK_BYTES", 32 * 4 * SIZES["vocab_size"])
    model, scorer = build(head, bits)
    assert scorer.split
    assert (scorer.factor is not None) == (head in LINEAR)
    tokens = mx.random.randint(0, SIZES["vocab_size"], (3, 30))
    assert_equal(*both_ways(model, scorer, tokens, mx.random.uniform(shape=(87,))))


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_a_trained_head_gets_its_gradient(head, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK_BYTES", 32 * 4 * SIZES["vocab_size"])
    model, scorer = build(head, kind="full")
    tokens = mx.random.randint(0, SIZES["vocab_size"], (3, 30))
    assert_equal(*both_ways(model, scorer, tokens, mx.ones(87)))


def test_evaluation_equals_training():
    model, scorer = build("tied")
    tokens = mx.random.randint(0, SIZES["vocab_size"], (2, 20))
    hidden = scorer.hidden(tokens[:, :-1]).reshape(-1, 32)
    trained = scorer.log_probs(hidden, tokens[:, 1:].reshape(-1))
    model.eval()
    assert mx.allclose(trained, scorer.log_probs(hidden, tokens[:, 1:].reshape(-1)), atol=1e-5)


def test_a_model_that_cannot_be_split_is_scored_whole():
    model, _ = build("tied")
    body = model.model
    model.model.embed_tokens  # noqa: B018 - the head of a tied model is inside the body

    class Odd(type(model)):
        def __call__(self, inputs, cache=None):
            return super().__call__(inputs, cache) + 0.5 * self.model.layers[0].mlp(body.embed_tokens(inputs)).sum()

    model.__class__ = Odd
    scorer = Scorer(model)
    assert not scorer.split
    tokens = mx.random.randint(0, SIZES["vocab_size"], (2, 12))
    assert_equal(*both_ways(model, scorer, tokens, mx.ones(22)))


def test_checkpointed_layers_have_the_same_gradient_and_do_not_nest():
    model, scorer = build("tied")
    tokens = mx.random.randint(0, SIZES["vocab_size"], (2, 20))
    plain = both_ways(model, scorer, tokens, mx.ones(38))[0]
    checkpoint_layers(model)
    kind = type(model.layers[0])
    checkpoint_layers(model)
    assert type(model.layers[0]) is kind
    assert_equal(plain, both_ways(model, scorer, tokens, mx.ones(38))[0])


def test_recomputed_layers_draw_the_same_dropout():
    """The gradient is that of the masks that made the loss: finite differences along it agree."""
    model, scorer = build("tied", dropout=0.3)
    tokens = mx.random.randint(0, SIZES["vocab_size"], (2, 20))
    checkpoint_layers(model)

    def loss(_):
        mx.random.seed(5)
        hidden = scorer.hidden(tokens[:, :-1])
        return -scorer.log_probs(hidden.reshape(-1, hidden.shape[-1]), tokens[:, 1:].reshape(-1)).sum()

    _, gradients = nn.value_and_grad(model, loss)(0)
    start, size = model.trainable_parameters(), 1e-3
    norm = mx.sqrt(sum(mx.square(g).sum() for _, g in tree_flatten(gradients)))

    def moved(sign):
        model.update(tree_map(lambda p, g: p + sign * size * g / norm, start, gradients))
        return loss(0).item()

    slope = (moved(1) - moved(-1)) / (2 * size)
    assert slope == pytest.approx(norm.item(), rel=0.03)


def test_full_training_of_a_quantized_base_is_refused():
    with pytest.raises(ConfigError, match="not quantized"):
        build("tied", bits=4, kind="full")


def test_the_factor_of_a_head_is_exact_in_half_precision():
    model, _ = build("scaled up")
    model.set_dtype(mx.bfloat16)
    assert Scorer(model).factor == pytest.approx(0.0625, rel=1e-5)
    model, _ = build("scaled down")
    model.set_dtype(mx.bfloat16)
    assert Scorer(model).factor == pytest.approx(0.125, rel=1e-5)


def test_a_break_in_the_gradient_would_be_seen(monkeypatch):
    """The comparison bites: a chunk whose expected embedding is left out gives another gradient."""
    model, scorer = build("tied")
    tokens = mx.random.randint(0, SIZES["vocab_size"], (2, 20))
    monkeypatch.setattr(scoring, "_times_weight", lambda layer, p: mx.zeros((p.shape[0], layer.weight.shape[1])))
    with pytest.raises(AssertionError):
        assert_equal(*both_ways(model, scorer, tokens, mx.ones(38)))
