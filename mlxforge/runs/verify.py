"""Verify: a GGUF file held against the run or model that it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxforge.core.blas import load_blas
from mlxforge.core.errors import ConfigError, MissingExtraError, RunFailed
from mlxforge.core.events import Emit, Warned, ignore
from mlxforge.models.hub import display_name, resolve_model
from mlxforge.runs.opening import TEMPLATE, Base, changed_base
from mlxforge.runs.record import RECORD, read_record

if TYPE_CHECKING:
    from mlxforge.export.source import Source
    from mlxforge.export.tensors import Placed
    from mlxforge.export.verify import Subject
    from mlxforge.export.vocabulary import Vocabulary
    from mlxforge.models.template import ChatTemplate


class NotVerified(RunFailed):
    """A check failed. ``result`` is what the job would have returned."""

    def __init__(self, what: str, result: dict[str, Any], *, where: str = "", fix: str = "") -> None:
        self.result = result
        super().__init__(what, where=where, fix=fix)


@dataclass(frozen=True)
class Material:
    """A run or a model on its way into a GGUF file.

    Attributes:
        base: what the user named.
        path: folder of the base model.
        source: its tensors, adapters merged.
        placed: where each stands in the file.
        template: what training saw of chats; None where the model has none.
        vocabulary: what the file says of the tokenizer.
    """

    base: Base
    path: Path
    source: Source
    placed: Sequence[Placed]
    template: ChatTemplate | None
    vocabulary: Vocabulary

    @property
    def name(self) -> str:
        """What to call it: the run's name, the adapter's folder, or the model."""
        base = self.base
        return base.label if base.adapter else display_name(self.path)

    @property
    def against(self) -> str:
        """What the user can name to mean this."""
        return self.base.named if self.base.run else str(self.base.adapter or self.base.model)


def material(base: Base) -> Material:
    """Opens what is to be exported; no tensor is read yet.

    Raises:
        ModelError: a model that is no GGUF architecture, whose tokenizer llama.cpp lacks, or an adapter of another base.
    """
    load_blas()
    from mlxforge.export.fuse import open_source
    from mlxforge.export.layout import layout
    from mlxforge.export.vocabulary import read_vocabulary

    path = resolve_model(base.model)
    source = open_source(path, *base.adapters)
    placed = layout(source)
    rows = next(tensor.shape[0] for tensor in placed if tensor.name == "token_embd.weight")
    template = template_of(base, path)
    return Material(base, path, source, placed, template, read_vocabulary(path, rows, template))


def template_of(base: Base, path: Path) -> ChatTemplate | None:
    """The chat template that training saw, else the model's own; None where there is none."""
    from mlxforge.models.detect import detect_folder
    from mlxforge.models.template import load_template

    homes = (home for home in (base.run, *reversed(base.adapters)) if home and (home / TEMPLATE).is_file())
    saved = next(homes, None)
    detected = detect_folder(path)
    return load_template(path, detected, saved=saved) if saved or detected.template is not None else None


def verify_file(file: Path, base: Base, *, fuzz: int | None = None, emit: Emit = ignore) -> dict[str, Any]:
    """Holds ``file`` against ``base`` and writes the report beside it.

    Args:
        fuzz: texts for the tokenizers.

    Returns:
        The report; see :func:`mlxforge.export.report.report`.

    Raises:
        ConfigError: no such file.
        MissingExtraError: no xllamacpp.
        ModelError: the base cannot be read.
    """
    from mlxforge.export.llama import available
    from mlxforge.export.report import report_path, write_report

    if not file.is_file():
        raise ConfigError("no such file", where=str(file), fix="name a .gguf file")
    if not available():
        raise MissingExtraError("xllamacpp", "gguf", "verification")
    made = material(base)
    if warning := changed_base(base, made.path):
        emit(Warned(message=warning))
    found = checked(file, made, fuzz=fuzz, emit=emit)
    write_report(report_path(file), found)
    return found


def check_passed(file: Path, found: dict[str, Any]) -> None:
    """Raises NotVerified where a report tells of a failed check: which, its value and its limit."""
    from mlxforge.export.report import failure

    if not found["passed"]:
        raise NotVerified(f"not as it was trained: {failure(found)}", found, where=str(file))


def checked(
    file: Path, made: Material, written: Mapping[str, Any] | None = None, *, fuzz: int | None = None, emit: Emit = ignore
) -> dict[str, Any]:
    """The report of one file; ``written`` is what the writer said of it, where it was written just now."""
    from mlxforge.export.report import report
    from mlxforge.export.verify import FUZZ, verify

    checks, compared = verify(file, subject_of(made), fuzz=FUZZ if fuzz is None else fuzz, emit=emit)
    said = written or {}
    return report(
        file,
        checks,
        quant=str(said.get("quant") or quant_of(file)),
        against=made.against,
        types=compared.counts(),
        fallbacks=said.get("fallbacks") or {},
        lineage=lineage(made),
        notes=made.vocabulary.limits,
    )


def quant_of(file: Path) -> str:
    """What a file says that it is, as ``--quant`` names it; empty where it says nothing known."""
    from gguf import GGUFReader

    from mlxforge.export.quantize import QUANTS

    try:
        number = GGUFReader(file).get_field("general.file_type")
    except Exception:  # a damaged file fails in many ways; the checks say so
        return ""
    return next((name for name, row in QUANTS.items() if number is not None and row.number == number.contents()), "")


def subject_of(made: Material) -> Subject:
    """What the checks need."""
    from mlxforge.export.verify import Subject
    from mlxforge.models.load import load_tokenizer

    tokenizer = load_tokenizer(made.path)
    template = made.template
    core = tokenizer._tokenizer.backend_tokenizer
    stop = template.stop if template else frozenset(tokenizer.eos_token_ids)
    model = None if made.base.below else lambda: trained(made.base)
    start = before_text(made)
    return Subject(
        made.source,
        made.placed,
        made.vocabulary,
        lambda text: list(core.encode(text, add_special_tokens=False).ids),
        start,
        stop,
        template,
        model,
    )


def before_text(made: Material) -> tuple[int, ...]:
    """Ids that the tokenizer puts before a text that is no chat; none where chats begin without them.

    llama.cpp has one rule for both, and what a chat saw in training goes first.
    """
    from mlxforge.models.load import load_tokenizer

    if made.template is not None and made.template.bos is None:
        return ()
    tokenizer = load_tokenizer(made.path)._tokenizer
    alone, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    place = next((at for at in range(len(whole)) if whole[at : at + len(alone)] == alone), 0)
    return tuple(whole[:place])


def trained(base: Base) -> Any:
    """The model as it was trained, in float32: the base with its adapter over it, nothing merged."""
    from mlxforge.models.load import load
    from mlxforge.models.lora import apply_adapter

    model = load(base.model, "float32").model
    for adapter in base.adapters:
        apply_adapter(model, adapter)
    return model


def lineage(made: Material) -> dict[str, Any]:
    """Where a file comes from: the base, its adapters by content, and what the run recorded."""
    from mlxforge.core.files import file_hash
    from mlxforge.models.adapters import adapter_file
    from mlxforge.models.load import model_hash

    base = made.base
    adapters = [{"path": str(adapter), "sha256": file_hash(adapter_file(adapter))} for adapter in base.adapters]
    found: dict[str, Any] = {"model": {"name": display_name(made.path), "hash": model_hash(made.path)}, "adapters": adapters}
    if base.run and (base.run / RECORD).is_file():
        record = read_record(base.run)
        said = {"objective": record.get("objective"), "lineage": record.get("lineage")}
        found["run"] = {"name": base.run.name, "step": base.step, **said}
    return found
