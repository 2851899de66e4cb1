"""The stages of the road from documents to a verified file: what each reads, makes, needs and does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlxforge.core.errors import DataError, MissingExtraError
from mlxforge.core.events import Control, Emit, Noted
from mlxforge.core.files import sweep
from mlxforge.runs import pipeline_train
from mlxforge.runs.pipeline_checks import check_model, missing, not_ours, place, told
from mlxforge.runs.pipeline_eval import check_eval, eval_makes, eval_reads, run_eval
from mlxforge.runs.pipeline_order import Made, Road, Stage, Step
from mlxforge.runs.pipeline_state import Record
from mlxforge.runs.pipeline_synth import PAIRS, SYNTH
from mlxforge.runs.stage_settings import TRAINING
from mlxforge.runs.text import expand

if TYPE_CHECKING:
    from mlxforge.runs.ingest import IngestSettings


def _nothing(_: Road, __: Step) -> list[str]:
    return []


# ingest


def _ingest_reads(road: Road, step: Step) -> list[str]:
    return [road.project.place(spec) for spec in step.get("documents")]


def _ingest_makes(road: Road, step: Step) -> list[Path]:
    return [place(road, step, "output")]


def _ingest_check(road: Road, step: Step) -> Iterator[str]:
    from mlxforge.data.readers import Reading
    from mlxforge.data.sources import walk as files_below
    from mlxforge.knowledge.readers import READERS
    from mlxforge.knowledge.readers.table import check_extras

    specs = _ingest_reads(road, step)
    yield from missing(road, specs)
    found: set[str] = set()
    for spec in specs:
        path = Path(expand(spec)).expanduser()
        files = list(files_below(path, Reading(skip_bad=True), Counter(), READERS)) if path.is_dir() else [path]
        if path.is_dir() and not files:
            yield f"no document in {road.shown(spec)} (put some there: PDF, Office, HTML, EPUB, Markdown, text, code)"
        found |= {file.suffix.lower() for file in files if file.suffix.lower() in READERS}
    yield from told(lambda: check_extras(found))
    yield from check_model(road, step)


def ingest_settings(road: Road, step: Step) -> IngestSettings:
    """How documents are cut."""
    from mlxforge.runs.ingest import IngestSettings
    from mlxforge.runs.opening import resolve_base

    base = resolve_base(road.model(step), road.project.runs_dir).model
    return IngestSettings(base, step.get("size"), step.get("overlap"), tuple(step.get("keep")))


def _ingest(road: Road, step: Step, record: Record, emit: Emit, __: Control) -> Made:
    from mlxforge.runs.ingest import ingest

    settings = ingest_settings(road, step)
    store = place(road, step, "output")
    store.parent.mkdir(parents=True, exist_ok=True)
    roots = [Path(expand(spec)).expanduser().resolve().as_posix() for spec in _ingest_reads(road, step)]
    if store.exists():
        _leave_out(store, [root for root in record.result.get("roots", []) if root not in roots])
    result = ingest([expand(spec) for spec in _ingest_reads(road, step)], store, settings, emit=emit)
    if not result["total"]["documents"]:
        where = road.project.line("ingest.documents", "ingest")
        raise DataError("no document could be read", where=where, fix="the lines above say why")
    return Made(result | {"roots": roots}, (store,))


def _leave_out(store: Path, roots: Sequence[str]) -> None:
    """Marks documents removed that lie below what the project named before and names no more; edits stay with them."""
    from mlxforge.knowledge.store import now, open_store

    with open_store(store) as opened, opened.writing() as connection:
        for root in roots:
            connection.execute("UPDATE documents SET removed = ? WHERE root = ? AND removed IS NULL", (now(), root))


# fuse, export, verify


def _fuse_makes(road: Road, step: Step) -> list[Path]:
    return [road.project.exports / step.suffixed("model")]


def _fuse_check(road: Road, step: Step) -> Iterator[str]:
    yield from _trained(road, step)
    yield from not_ours(road, step)


def _trained(road: Road, step: Step) -> Iterator[str]:
    if road.taken(step) is None:
        yield from check_model(road, step)
        if step.stage == "fuse" and not road.model(step).startswith("run:"):
            yield "there is no adapter to merge (add a stage that trains, such as sft)"


def _fuse(road: Road, step: Step, _: Record, emit: Emit, __: Control) -> Made:
    from mlxforge.runs.fuse import fuse
    from mlxforge.runs.opening import resolve_base

    (output,) = _fuse_makes(road, step)
    sweep(output.parent)
    limit = max(1, int(step.get("max_shard_size") * 1e9))
    base = resolve_base(road.model(step), road.project.runs_dir)
    result = fuse(base, output, dequantize=step.get("dequantize"), max_shard_size=limit, force=True, emit=emit)
    return Made(result, (output,))


def _export_makes(road: Road, step: Step) -> list[Path]:
    from mlxforge.runs.export_gguf import names

    output = road.project.exports / f"{step.suffixed(road.project.name)}.gguf"
    quants = list(dict.fromkeys(step.get("quants")))
    if len(quants) == 1:
        return [output]
    return list(names(output, quants, "").values())


def _export_check(road: Road, step: Step) -> Iterator[str]:
    from mlxforge.export.quantize import quant_of

    quants = step.get("quants")
    if not quants:
        yield "no kind of numbers (write export.quants: [q4_k_m])"
    for quant in quants:
        yield from told(lambda one=quant: quant_of(one))  # type: ignore[misc]
    yield from _trained(road, step)
    yield from not_ours(road, step)


def _export(road: Road, step: Step, _: Record, emit: Emit, __: Control) -> Made:
    from mlxforge.runs.export_gguf import NOT_WANTED, export_gguf
    from mlxforge.runs.opening import resolve_base

    output = road.project.exports / f"{step.suffixed(road.project.name)}.gguf"
    output.parent.mkdir(parents=True, exist_ok=True)
    sweep(output.parent)
    verify = False if "verify" in road.project.stages else None
    base = resolve_base(road.model(step), road.project.runs_dir)
    told_of = _but(NOT_WANTED, emit)  # the stage after it does
    result = export_gguf(base, output, step.get("quants"), verify=verify, force=True, emit=told_of)
    return Made(result, tuple(Path(file["file"]) for file in result["files"]))


def _but(note: str, emit: Emit) -> Emit:
    """All but one note."""
    return lambda event: None if isinstance(event, Noted) and event.message == note else emit(event)


def _exported(road: Road, step: Step) -> Step | None:
    return next((one for one in road.steps if one.stage == "export" and one.variant == step.variant), None)


def _verify_reads(road: Road, step: Step) -> list[str]:
    exported = _exported(road, step)
    return [str(path) for path in _export_makes(road, exported)] if exported else []


def _verify_check(road: Road, step: Step) -> Iterator[str]:
    from mlxforge.export.llama import available

    if _exported(road, step) is None:
        yield "nothing to verify (add the stage export)"
    if not available():
        yield str(MissingExtraError("xllamacpp", "gguf", "verification"))


def _verify(road: Road, step: Step, _: Record, emit: Emit, __: Control) -> Made:
    from mlxforge.export.report import report_path
    from mlxforge.runs.opening import resolve_base
    from mlxforge.runs.verify import check_passed, verify_file

    base = resolve_base(road.model(step), road.project.runs_dir)
    files = [Path(spec) for spec in _verify_reads(road, step)]
    reports = []
    for file in files:
        found = verify_file(file, base, fuzz=step.get("texts"), emit=emit)
        check_passed(file, found)
        reports.append({"file": file.name, "checks": len(found["checks"]), "passed": found["passed"]})
    return Made({"files": reports}, tuple(report_path(file) for file in files))


def _training(about: str) -> Stage:
    return Stage(about, pipeline_train.reads, pipeline_train.makes, pipeline_train.check, pipeline_train.run, works_on=True)


# Every stage by name, in the order in which they run where nothing says otherwise.
STAGES: dict[str, Stage] = {
    "ingest": Stage("read documents", _ingest_reads, _ingest_makes, _ingest_check, _ingest),
    "cpt": _training("learn the documents"),
    "synth": SYNTH,
    "sft": _training("learn to answer"),
    "pairs": PAIRS,
    **{name: _training("learn which answer is better") for name in TRAINING if name not in ("cpt", "sft")},
    "eval": Stage("compare the models", eval_reads, eval_makes, check_eval, run_eval),
    "fuse": Stage("merge into the base", _nothing, _fuse_makes, _fuse_check, _fuse, works_on=True),
    "export": Stage("write GGUF", _nothing, _export_makes, _export_check, _export, works_on=True),
    "verify": Stage("hold GGUF against the model", _verify_reads, lambda _, __: [], _verify_check, _verify, works_on=True),
}
