"""A model in memory: its weights, tokenizer and what is known of it."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxforge.core.blas import load_blas
from mlxforge.core.errors import ModelError
from mlxforge.models.check import check_model_files, check_tokenizer_files, model_hash
from mlxforge.models.detect import Detected, detect_folder, template_text
from mlxforge.models.hub import is_folder, resolve_model

__all__ = ["Loaded", "check_model_files", "fast_tokenizer", "load", "load_tokenizer", "model_hash", "resolve_model"]

EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings", "embedding")


@dataclass
class Loaded:
    """A model ready to run.

    Attributes:
        model: the ``mlx.nn.Module``; ``model(tokens)`` maps (B, T) ids to (B, T, V) logits.
        tokenizer: mlx-lm's wrapper around the transformers tokenizer; its chat template is set, own or installed.
        config: config.json as mlx-lm read it.
        path: the model's folder.
        detected: its family and what follows.
        dtype: floating type of its (unpacked) weights, such as ``float32``.
    """

    model: Any
    tokenizer: Any
    config: dict[str, Any]
    path: Path
    detected: Detected
    dtype: str


def load(name: str, dtype: str = "auto") -> Loaded:
    """Loads a model: ``tiny``, a folder, or a hub id.

    ``dtype`` is ``float32``, ``bfloat16``, ``float16`` or ``auto``: float32 on a CPU, where half precision is slow, the
    model's own on Metal. Packed (quantized) weights stay packed.

    Raises:
        ModelError: the model is missing, damaged, of an unknown family, or does not fit its tokenizer.
    """
    path = resolve_model(name)
    check_model_files(path)
    detected = detect_folder(path, "" if is_folder(name) else name)
    load_blas()
    with quiet_import():
        import mlx.core as mx
        import mlx_lm.utils
    model, config = _build(path, mlx_lm.utils.load_model)
    tokenizer = load_tokenizer(path, detected, config.get("eos_token_id"))
    check_vocabulary(tokenizer.get_vocab(), embedding_rows(model), detected, path)
    cast(model, dtype)
    mx.eval(model.parameters())
    if not on_gpu():
        from mlxforge.models.cpu import install

        install(model)
    elif mx.metal.is_available():
        # As mlx-lm does: memory that the system may not page out under a model.
        mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    return Loaded(model, tokenizer, config, path, detected, floating_dtype(model))


@contextmanager
def quiet_import() -> Iterator[None]:
    """Imports mlx-lm and transformers without their side effects.

    ``mlx_lm.utils`` sets the limit of open files to (2048, 4096): that lowers a higher limit for good, and raises where the
    hard limit is lower. transformers writes to stderr that there is no PyTorch, and what it thinks of other people's configs;
    ``TRANSFORMERS_VERBOSITY`` in the environment brings that back.
    """
    chosen = os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    set_limit = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = set_limit
    if chosen == "error" and "transformers" in sys.modules:  # perhaps imported earlier, by others
        sys.modules["transformers"].logging.set_verbosity_error()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2048 if hard == resource.RLIM_INFINITY else min(2048, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        set_limit(resource.RLIMIT_NOFILE, (wanted, hard))


def _build(path: Path, load_model: Callable[..., tuple[Any, dict[str, Any]]]) -> tuple[Any, dict[str, Any]]:
    """mlx-lm's model with its weights (not yet read from disk), or one line on why not."""
    try:
        return load_model(path, lazy=True)
    except ModelError:
        raise
    except Exception as error:  # a foreign config fails in as many ways as there are model classes
        what, where = explain(error)
        raise ModelError(what, where=str(path / where), fix="take config and weights from one repository") from error


def explain(error: Exception) -> tuple[str, str]:
    """(what, file) of a failure inside mlx-lm's model classes; names are shortened to three and a count."""
    text = str(error)
    if found := re.match(r"(Missing|Received) (\d+) parameters( not in model)?: ?\n?(.*)", text, re.DOTALL):
        names = [name.strip(" .") for name in re.split(r"[,\n]", found[4]) if name.strip(" .")]
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        lacking = f"the weights lack {found[2]} tensors of the model: {shown}"
        return (lacking if found[1] == "Missing" else f"the model has no place for {found[2]} tensors: {shown}"), ""
    if found := re.search(r"Expected shape (\(.*?\)) but received shape (\(.*?\)) for parameter (\S+)", text):
        return f"tensor {found[3].rstrip('.')} has shape {found[2]}, the config asks for {found[1]}", ""
    if found := re.search(r"missing \d+ required (?:positional|keyword-only) arguments?: (.*)", text):
        return f"the config lacks {found[1]}", "config.json"
    if isinstance(error, KeyError):
        return f"mlx-lm cannot build this model: no {text}", "config.json"
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return f"mlx-lm cannot build this model: {first}", "config.json"


def load_tokenizer(path: Path, detected: Detected | None = None, eos_token_ids: list[int] | int | None = None) -> Any:
    """mlx-lm's tokenizer wrapper, without any weights; the family's chat template is set where the folder has none.

    Raises:
        ModelError: no tokenizer, or one that cannot be built without running foreign code.
    """
    check_tokenizer_files(path)
    detected = detected or detect_folder(path)
    load_blas()
    with quiet_import():
        import mlx_lm.utils
    extra: dict[str, Any] = {"trust_remote_code": False}
    if detected.template not in (None, "own"):
        extra["chat_template"] = template_text(str(detected.template))
    try:
        return mlx_lm.utils.load_tokenizer(path, extra, eos_token_ids=eos_token_ids)
    except Exception as error:  # transformers raises OSError, ValueError, ImportError, KeyError and its own for bad files
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        fix = "copy tokenizer.json and tokenizer_config.json from the model's repository"
        raise ModelError(f"cannot load the tokenizer: {first}", where=str(path), fix=fix) from error


def fast_tokenizer(path: Path) -> Any | None:
    """The ``tokenizers.Tokenizer`` of tokenizer.json, padding and truncation off; None where the folder has none.

    It needs neither transformers nor MLX, so worker processes start at once.
    """
    file = path / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises plain Exception
        raise ModelError(f"not a tokenizer: {error}", where=str(file), fix="download the file again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def embedding_rows(model: Any) -> int:
    """Rows V of the (quantized or plain) token embedding: valid ids are below it."""
    import mlx.nn as nn

    tables = {
        name: int(module.weight.shape[0])
        for name, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.QuantizedEmbedding))
    }
    named = [rows for name, rows in tables.items() if name.rsplit(".", 1)[-1] in EMBEDDINGS]
    return max(named or tables.values(), default=0)


def check_vocabulary(vocabulary: dict[str, int], rows: int, detected: Detected, path: Path) -> None:
    """Every id of the tokenizer, added tokens too, has an embedding row; a larger embedding is fine.

    Raises:
        ModelError: ids lie beyond the last row.
    """
    beyond = [token for token, index in vocabulary.items() if index >= rows and token not in detected.family.unembedded]
    if rows and beyond:
        raise ModelError(
            f"the tokenizer knows {max(vocabulary.values()) + 1:,} tokens, the embedding has {rows:,} rows: "
            f"{len(beyond):,} without one, such as {beyond[0]!r}",
            where=str(path),
            fix="use the model's own tokenizer",
        )


def cast(model: Any, dtype: str) -> None:
    """Casts floating parameters in place: weights, and the scales and biases of packed ones, but never packed integers."""
    import mlx.core as mx

    if dtype == "auto":
        if on_gpu():
            return
        dtype = "float32"
    # Some routers and state-space parameters must not lose precision; float32 loses none.
    keep = (lambda _: True) if dtype == "float32" else getattr(model, "cast_predicate", lambda _: True)
    target = getattr(mx, dtype)
    from mlx.utils import tree_map_with_path

    def to_target(name: str, value: Any) -> Any:
        return value.astype(target) if mx.issubdtype(value.dtype, mx.floating) and keep(name) else value

    model.update(tree_map_with_path(to_target, model.parameters()))


def on_gpu() -> bool:
    """Whether MLX computes on a GPU now."""
    import mlx.core as mx

    return bool(mx.default_device() == mx.gpu)


def floating_dtype(model: Any) -> str:
    """The floating type that most of the model's numbers have, as ``float32``."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    sizes: dict[str, int] = {}
    for _, value in tree_flatten(model.parameters()):
        if mx.issubdtype(value.dtype, mx.floating):
            key = str(value.dtype).removeprefix("mlx.core.")
            sizes[key] = sizes.get(key, 0) + int(value.size)
    return max(sizes, key=lambda key: sizes[key]) if sizes else "float32"
