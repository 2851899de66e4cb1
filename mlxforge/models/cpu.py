"""What MLX's CPU backend does slowly, done otherwise. On Metal none of this is used: its kernels are fused.

On a CPU, MLX takes three times as long for e^x as for a power, has no fused attention (a causal mask is computed and thrown
away for half of all scores), and computes every element-wise function again in the backward pass. The functions here give the
same values (tested against MLX's own), keep what the backward pass needs, and are put in place of the names that mlx-lm's
model files import.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

BLOCK = 128  # queries that are scored together: against the keys up to the last of them, so nearly half of the scores
MODELS = "mlx_lm.models."


def exp(x: mx.array) -> mx.array:
    """e^x; as a power on a CPU, where the relative error grows to 1e-6 for x = -30."""
    return mx.power(math.e, x) if mx.default_device() == mx.cpu else mx.exp(x)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) * x, which keeps sigmoid(gate) for the backward pass."""
    return _swiglu(gate, x)[0]


@mx.custom_function
def _swiglu(gate: mx.array, x: mx.array) -> tuple[mx.array, mx.array]:
    # e^-g overflows to infinity below -88, and 1 / infinity is the 0 that the sigmoid tends to.
    sigmoid = 1.0 / (1.0 + exp(-gate))
    return gate * sigmoid * x, sigmoid


@_swiglu.vjp
def _swiglu_vjp(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array]:
    (gate, x), d, sigmoid = primals, cotangents[0], outputs[1]
    silu = gate * sigmoid
    return d * x * (sigmoid + silu * (1.0 - sigmoid)), d * silu


def causal_attention(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """softmax(scale * Q K^T + causal mask) V for (B, H, L, D) queries and (B, H / n, L, D) keys and values, block by block."""
    batch, heads, length, width = queries.shape
    groups = keys.shape[1]
    grouped = queries.reshape(batch, groups, heads // groups, length, width)
    out = _blocks(scale)(grouped, keys[:, :, None], values[:, :, None])[0]
    return out.reshape(batch, heads, length, values.shape[-1])


def _blocks(scale: float) -> Callable[..., list[mx.array]]:
    """Attention as a differentiable function: [output, then for each block its unnormalised weights and their sums]."""

    def forward(q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
        outputs, kept = [], []
        for start in range(0, q.shape[-2], BLOCK):
            stop = min(start + BLOCK, q.shape[-2])
            scores = (scale * q[..., start:stop, :]) @ k[..., :stop, :].swapaxes(-1, -2) + _future(start, stop)
            weights = exp(scores - mx.max(scores, axis=-1, keepdims=True))
            total = mx.sum(weights, axis=-1, keepdims=True)
            outputs.append((weights @ v[..., :stop, :]) / total)
            kept += [weights, total]
        return [mx.concatenate(outputs, axis=-2), *kept]

    def backward(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array, mx.array]:
        q, k, v = primals
        d, out = cotangents[0], outputs[0]
        length, dq = q.shape[-2], []
        dk, dv = mx.zeros(k.shape), mx.zeros(v.shape)
        for number, start in enumerate(range(0, length, BLOCK)):
            stop = min(start + BLOCK, length)
            rows = slice(start, stop)
            weights, total = outputs[1 + 2 * number], outputs[2 + 2 * number]
            d_rows = d[..., rows, :] / total
            # d softmax: p * (dp - sum(d * out)); the division by the total is in d_rows already.
            drift = mx.sum(d_rows * out[..., rows, :], axis=-1, keepdims=True)
            d_scores = weights * (d_rows @ v[..., :stop, :].swapaxes(-1, -2) - drift)
            dq.append(scale * (d_scores @ k[..., :stop, :]))
            dk = dk.at[..., :stop, :].add(_over_group(d_scores, scale * q[..., rows, :]))
            dv = dv.at[..., :stop, :].add(_over_group(weights, d_rows))
        return mx.concatenate(dq, axis=-2), dk, dv

    attention = mx.custom_function(forward)
    attention.vjp(backward)
    return attention


def _over_group(left: mx.array, right: mx.array) -> mx.array:
    """left^T @ right, summed over the heads that share a key."""
    return mx.sum(left.swapaxes(-1, -2) @ right, axis=2, keepdims=True)


def _future(start: int, stop: int) -> mx.array:
    """(stop - start, stop): 0 where a query may look, a large negative number at the keys after it."""
    hidden = mx.arange(stop)[None] > mx.arange(start, stop)[:, None]
    return mx.where(hidden, -1e30, 0.0)


def _attention_over(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def attention(
        queries: mx.array, keys: mx.array, values: mx.array, cache: Any, scale: float, mask: Any, sinks: Any = None
    ) -> mx.array:
        plain = isinstance(mask, str) and mask == "causal" and sinks is None and queries.shape[-2] == keys.shape[-2]
        if plain and queries.dtype == mx.float32 and not hasattr(cache, "bits"):
            return causal_attention(queries, keys, values, scale)
        return original(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)

    return attention


def _swiglu_over(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    return lambda gate, x: swiglu(gate, x) if gate.dtype == x.dtype == mx.float32 else original(gate, x)


# Name in mlx-lm's model files -> what makes its stand-in; all that it was not made for goes to the original.
STAND_INS = {"scaled_dot_product_attention": _attention_over, "swiglu": _swiglu_over}


def install(model: nn.Module) -> None:
    """Puts the stand-ins into the files that the model's classes come from, once."""
    for name in {type(module).__module__ for module in model.modules()}:
        file = sys.modules[name]
        for function, stand_in in STAND_INS.items():
            original = getattr(file, function, None)
            if name.startswith(MODELS) and original is not None and original.__module__ != __name__:
                setattr(file, function, stand_in(original))
