"""Which models are evaluated: what they are called, what their files tell, and how each is opened."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from mlxforge.core.blas import load_blas
from mlxforge.core.errors import ConfigError, MissingExtraError
from mlxforge.core.files import bytes_hash
from mlxforge.evals.report import ModelInfo
from mlxforge.models.hub import local, resolve_model
from mlxforge.runs.opening import Base, resolve_base
from mlxforge.runs.record import RECORD, read_record
from mlxforge.runs.subject import WINDOW, Subject

GGUF = ".gguf"
FUSED = "Made by mlxforge: "  # in the README.md of a folder that `mlxforge fuse` wrote


@dataclass(frozen=True)
class Named:
    """A model that is to be evaluated: its label, what it is called, and its files; ``file`` is that of a GGUF."""

    label: str
    name: str
    base: Base | None = None
    file: Path | None = None


def name_models(names: Sequence[str], runs_dir: Path) -> list[Named]:
    """What ``MODEL`` and ``LABEL=MODEL`` name; no weights are read. Labels that were not given are made unique.

    Raises:
        ConfigError: no model, a label twice or empty, a GGUF file that is not there.
        ModelError, RunError: see :func:`mlxforge.runs.opening.resolve_base`.
    """
    if not names:
        raise ConfigError("no model", where="MODEL", fix="name one or more: mlxforge eval tiny run:NAME --data FILE")
    given = [_split(name) for name in names]
    found: list[Named] = []
    taken = [label for label, _ in given if label]
    if twice := next((label for label in taken if taken.count(label) > 1), None):
        raise ConfigError(
            f"the label '{twice}' is given twice", where="MODEL", fix="give each model a label of its own: A=MODEL"
        )
    for label, name in given:
        one = _named(name, runs_dir)
        chosen = label or _unique(one.label, {*taken, *(other.label for other in found)})
        found.append(Named(chosen, one.name, one.base, one.file))
    return found


def _split(name: str) -> tuple[str, str]:
    """(label, model); a path that has a '=' and is there is a model."""
    label, equals, model = name.partition("=")
    if not equals or local(name).exists():
        return "", name
    if not label.strip() or not model.strip():
        raise ConfigError("a label or a model is empty", where=name, fix="write LABEL=MODEL")
    if "." in label or "/" in label or ":" in label:
        raise ConfigError("a label has no '.', '/' or ':'", where=name, fix="they part the names of figures: LABEL.METRIC")
    return label.strip(), model


def _unique(label: str, taken: set[str]) -> str:
    return next(
        name for number in range(1, len(taken) + 2) if (name := label if number == 1 else f"{label}-{number}") not in taken
    )


def _named(name: str, runs_dir: Path) -> Named:
    path = local(name)
    if path.suffix.lower() == GGUF and not path.is_dir():
        if not path.is_file():
            raise ConfigError("no such file", where=name, fix="name a .gguf file that is there")
        from mlxforge.export.llama import available

        if not available():
            raise MissingExtraError("xllamacpp", "gguf", "evaluating a GGUF file")
        return Named(_plain(path.name.removesuffix(path.suffix)), name, file=path)
    base = resolve_base(name, runs_dir)
    label = base.label if base.run or base.adapter else local(name).resolve().name if local(name).exists() else name
    return Named(_plain(label.rpartition("/")[2]), name, base)


def _plain(label: str) -> str:
    """A label in which nothing parts a figure's path."""
    return label.replace(".", "_").replace(":", "_").replace("=", "_")


def info_of(named: Named) -> ModelInfo:
    """What a model is, from its files; weights are hashed, not loaded.

    Raises:
        ModelError: its files are not there or damaged.
    """
    if named.file is not None:
        from mlxforge.core.files import file_hash
        from mlxforge.runs.subject_gguf import header

        header(named.file)  # refused here, before anything is asked
        size = named.file.stat().st_size
        return ModelInfo(
            label=named.label,
            name=named.name,
            kind="gguf",
            stage="gguf",
            path=str(named.file),
            hash=file_hash(named.file),
            size=size,
        )
    assert named.base is not None
    from mlxforge.models.adapters import adapter_file
    from mlxforge.models.check import model_hash
    from mlxforge.models.detect import detect_folder
    from mlxforge.runs.reference import numbers_of

    base, path = named.base, resolve_model(named.base.model)
    adapters = base.adapters
    record = read_record(base.run) if base.run and (base.run / RECORD).is_file() else {}
    fused = not adapters and _is_fused(path)
    files = [*path.glob("model*.safetensors"), *(adapter_file(adapter) for adapter in adapters)]
    return ModelInfo(
        label=named.label,
        name=named.name,
        kind="run" if base.run else "adapter" if adapters else "fused" if fused else "base",
        stage=str(record.get("objective") or ("fused" if fused else "" if adapters else "base")),
        path=str(adapters[-1] if adapters else path),
        hash=bytes_hash(*numbers_of(path, adapters, "")) if adapters else model_hash(path),
        size=sum(file.stat().st_size for file in files),
        family=detect_folder(path).family.name,
        run=base.run.name if base.run else "",
    )


def _is_fused(path: Path) -> bool:
    card = path / "README.md"
    return card.is_file() and FUSED in card.read_text(encoding="utf-8", errors="replace")


def open_subject(
    named: Named, info: ModelInfo, *, window: int = WINDOW, thinking: bool | None = None
) -> AbstractContextManager[Subject]:
    """Opens one model; its memory is given back at the end.

    Args:
        window: tokens that a text is read in at a time, or fewer where the model has fewer positions.
        thinking: whether it should think before it answers; None leaves it to the model.

    Raises:
        MissingExtraError: a GGUF file without the extra ``gguf``.
        ModelError, LlamaFailed: it cannot be opened.
    """
    load_blas()  # before anything imports MLX
    if named.file is not None:
        from mlxforge.runs.subject_gguf import GgufSubject

        return GgufSubject(named.file, info, window=window, thinking=thinking)
    from mlxforge.runs.subject_mlx import MlxSubject

    assert named.base is not None
    return MlxSubject(named.base, info, window=window, thinking=thinking)


def vocabulary(named: Named) -> dict[str, int]:
    """Tokens and their ids, without any weights.

    Raises:
        ModelError: no tokenizer.
    """
    load_blas()
    if named.file is not None:
        from mlxforge.runs.subject_gguf import vocabulary_of

        return vocabulary_of(named.file)
    assert named.base is not None
    from mlxforge.models.load import load_tokenizer

    found: dict[str, int] = load_tokenizer(resolve_model(named.base.model)).get_vocab()
    return found
