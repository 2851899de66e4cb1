"""The stages of the road from documents to a verified file: what each reads, makes, needs and does."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlxforge.core.errors import DataError, MissingExtraError, RunFailed
from mlxforge.core.events import Control, Emit, Noted
from mlxforge.core.files import sweep
from mlxforge.runs import pipeline_train
from mlxforge.runs.pipeline_eval import check_eval, eval_makes, eval_reads, run_eval
from mlxforge.runs.pipeline_order import Made, Road, Stage, Step
from mlxforge.runs.pipeline_state import Record
from mlxforge.runs.pipeline_train import check_model, missing, told
from mlxforge.runs.project import TRAINING
from mlxforge.runs.text import expand

KEY = "OPENAI_API_KEY"
LOCAL = ("localhost", "127.0.0.1", "::1", "")
PARTS = ("train", "valid", "test")
# Of which kind of synth a setting is; the others are of both.
QA = ("kb", "styles", "per_chunk", "limit", "audience", "temperature", "near", "judge")
COMMANDS = ("schema", "from_click", "rows", "share")


def _place(road: Road, step: Step, key: str) -> Path:
    return Path(road.project.place(str(step.get(key))))


def _nothing(_: Road, __: Step) -> list[str]:
    return []


def _not_ours(road: Road, step: Step) -> Iterator[str]:
    """A line for each file that would be written over and that no stage made."""
    if road.ledger.read(step.name) is None:
        for path in road.table[step.stage].makes(road, step):
            if os.path.lexists(path):
                shown = road.ledger.shown(path)
                yield f"{shown} is there already, and no pipeline made it (move it away, or name another output)"


# ingest


def _ingest_reads(road: Road, step: Step) -> list[str]:
    return [road.project.place(spec) for spec in step.get("documents")]


def _ingest_makes(road: Road, step: Step) -> list[Path]:
    return [_place(road, step, "output")]


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


def _ingest(road: Road, step: Step, record: Record, emit: Emit, __: Control) -> Made:
    from mlxforge.runs.ingest import IngestSettings, ingest
    from mlxforge.runs.opening import resolve_base

    settings = IngestSettings(
        resolve_base(road.model(step), road.project.runs_dir).model,
        step.get("size"),
        step.get("overlap"),
        tuple(step.get("keep")),
    )
    store = _place(road, step, "output")
    store.parent.mkdir(parents=True, exist_ok=True)
    roots = [Path(expand(spec)).expanduser().resolve().as_posix() for spec in _ingest_reads(road, step)]
    if store.exists():
        _leave_out(store, [root for root in record.result.get("roots", []) if root not in roots])
    result = ingest([expand(spec) for spec in _ingest_reads(road, step)], store, settings, emit=emit)
    if not result["total"]["documents"]:
        raise RunFailed("no document could be read", where=road.project.line("ingest.documents", "ingest"))
    return Made(result | {"roots": roots}, (store,))


def _leave_out(store: Path, roots: Sequence[str]) -> None:
    """Marks documents removed that lie below what the project named before and names no more; edits stay with them."""
    from mlxforge.knowledge.store import now, open_store

    with open_store(store) as opened, opened.writing() as connection:
        for root in roots:
            connection.execute("UPDATE documents SET removed = ? WHERE root = ? AND removed IS NULL", (now(), root))


# synth


def _synth_output(road: Road, step: Step) -> Path:
    default = "data/synth.jsonl" if step.get("kind") == "qa" else "data/commands"
    return Path(road.project.place(str(step.get("output") or default)))


def _synth_makes(road: Road, step: Step) -> list[Path]:
    output = _synth_output(road, step)
    if step.get("kind") == "commands":
        return [output / f"{part}.jsonl" for part in PARTS]
    return [output, *(output.with_suffix(f".{part}{output.suffix}") for part in PARTS[1:])]


def store_of(road: Road, step: Step) -> Path | None:
    """The knowledge base that questions are made from."""
    if named := step.get("kb"):
        return Path(road.project.place(named))
    ingest = next((one for one in road.steps if one.stage == "ingest"), None)
    return _place(road, ingest, "output") if ingest else None


def _synth_reads(road: Road, step: Step) -> list[str]:
    if step.get("kind") == "commands":
        return [expand(road.project.place(step.get("schema")))] if step.get("schema") else []
    store = store_of(road, step)
    return [str(store)] if store else []


def _synth_check(road: Road, step: Step) -> Iterator[str]:
    kind = step.get("kind")
    idle = COMMANDS if kind == "qa" else QA
    yield from (f"{key} has no effect with kind {kind} (leave it out)" for key in idle if f"synth.{key}" in road.project.where)
    if kind == "qa" and store_of(road, step) is None:
        yield "no knowledge base (write synth.kb: FILE, or add the stage ingest)"
    if kind == "commands" and not (step.get("schema") or step.get("from_click")):
        yield "no schema (write synth.schema: FILE, or synth.from_click: module:command)"
    if step.get("max_cost") and not (step.get("price_in") and step.get("price_out")):
        yield "max_cost needs price_in and price_out (give both, in US dollars for a million tokens)"
    yield from missing(road, _synth_reads(road, step))
    yield from told(lambda: qa_settings(step))
    yield from _not_ours(road, step)
    yield from check_provider(road, step)


def check_provider(road: Road, step: Step) -> Iterator[str]:
    """What a provider needs: its package and model, or a key where its server is not on this machine."""
    provider = step.get("provider") or ("mlx" if step.get("kind") == "qa" else None)
    if provider == "mlx":
        if importlib.util.find_spec("llguidance") is None:
            yield str(MissingExtraError("llguidance", "synth", "the provider mlx"))
        yield from check_model(road, step)
    if provider == "openai":
        url = step.get("url") or os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")
        if not os.environ.get(KEY) and (urlsplit(url).hostname or "") not in LOCAL:
            yield f"no key for {urlsplit(url).hostname} (export {KEY}=...)"


def qa_settings(step: Step) -> Any:
    from mlxforge.runs.synth_rows import QaSettings

    if step.get("kind") == "commands":
        return None
    known: dict[str, Any] = {
        key: step.get(key) for key in ("per_chunk", "limit", "seed", "temperature", "valid", "test", "near")
    }
    known |= {key: value for key in ("audience", "provider", "judge") if (value := step.get(key))}
    known |= {"styles": tuple(styles)} if (styles := step.get("styles")) else {}
    return QaSettings(**known)


def reached(road: Road, step: Step) -> Any:
    """How the provider of a step is reached."""
    from mlxforge.knowledge.asked import ProviderSettings
    from mlxforge.runs.synth import opener

    own = step.get("model")
    mlx = (step.get("provider") or "mlx") == "mlx"
    return ProviderSettings(
        model=own if own and not mlx else road.project.model(own or road.project.settings.model) if mlx else "",
        url=step.get("url") or "",
        concurrency=step.get("concurrency"),
        price_in=step.get("price_in"),
        price_out=step.get("price_out"),
        opener=opener(road.project.runs_dir),
    )


def _synth(road: Road, step: Step, _: Record, emit: Emit, __: Control) -> Made:
    output = _synth_output(road, step)
    output.parent.mkdir(parents=True, exist_ok=True)
    result = _qa(road, step, output, emit) if step.get("kind") == "qa" else _commands(road, step, output, emit)
    return Made(result, tuple(path for path in _synth_makes(road, step) if path.is_file()))


def _qa(road: Road, step: Step, output: Path, emit: Emit) -> dict[str, Any]:
    from mlxforge.runs.synth import synth_qa

    store = store_of(road, step)
    assert store is not None
    max_cost = step.get("max_cost")
    try:
        return synth_qa(store, output, qa_settings(step), reached(road, step), max_cost=max_cost, force=True, emit=emit)
    except DataError as error:
        if "--rejects" in error.fix:  # an option of its own command
            error.fix = f"mlxforge synth review {store} --list 4 shows some; another model may do better"
        raise


def _commands(road: Road, step: Step, output: Path, emit: Emit) -> dict[str, Any]:
    from mlxforge.knowledge.providers import provider
    from mlxforge.runs.synth_commands import schema_of, shares_of, synth_commands

    schema = step.get("schema")
    found = schema_of(Path(expand(road.project.place(schema))) if schema else None, step.get("from_click"), emit)
    name = step.get("provider")
    given = {key: step.get(key) for key in ("rows", "seed", "valid", "test")}
    asked = provider(name, reached(road, step)) if name else None
    return synth_commands(found, output, **given, shares=shares_of(step.get("share")), asked=asked, force=True, emit=emit)


# pairs


def _pairs_makes(road: Road, step: Step) -> list[Path]:
    output = _place(road, step, "output")
    return [output.with_name(step.suffixed(output.stem) + output.suffix)]


def _pairs_reads(road: Road, step: Step) -> list[str]:
    if own := step.get("data"):
        return [road.project.place(spec) for spec in own]
    taken = road.taken(step)
    return pipeline_train.job_of(road, taken).data if taken else []


def _pairs_check(road: Road, step: Step) -> Iterator[str]:
    specs = _pairs_reads(road, step)
    if not specs:
        yield "no conversations to answer (write pairs.data: [FILE])"
    if step.get("judge") and step.get("judge_url"):
        yield "judge and judge_url are two judges (leave one of them out)"
    yield from missing(road, specs)
    yield from _not_ours(road, step)


def _pairs(road: Road, step: Step, _: Record, emit: Emit, __: Control) -> Made:
    from mlxforge.runs.make_pairs import PairSettings, make_pairs

    names = ("samples", "temperature", "max_tokens", "per_row", "seed")
    settings = PairSettings(**{name: step.get(name) for name in names})
    (output,) = _pairs_makes(road, step)
    result = make_pairs(
        [expand(spec) for spec in _pairs_reads(road, step)],
        output,
        road.model(step),
        runs_dir=road.project.runs_dir,
        settings=settings,
        judge=_judge(step),
        limit=step.get("limit"),
        force=True,
        emit=emit,
    )
    if result["output"] is None:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in result["dropped"].items())
        where = road.project.line("pairs.samples", "pairs.temperature", "pairs")
        raise RunFailed(f"no pair came out ({reasons})", where=where, fix="more samples, a higher temperature or other data")
    return Made(result, (output,))


def _judge(step: Step) -> Any:
    if command := step.get("judge"):
        from mlxforge.runs.judges import CommandJudge

        return CommandJudge(command, False, 120.0)
    if url := step.get("judge_url"):
        from mlxforge.runs.judge_server import UrlJudge

        return UrlJudge(url, step.get("judge_model") or "", 120.0, 512)
    return None


# fuse, export, verify


def _fuse_makes(road: Road, step: Step) -> list[Path]:
    return [road.project.exports / step.suffixed("model")]


def _fuse_check(road: Road, step: Step) -> Iterator[str]:
    yield from _trained(road, step)
    yield from _not_ours(road, step)


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
    yield from _not_ours(road, step)


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
    "synth": Stage("make training data", _synth_reads, _synth_makes, _synth_check, _synth),
    "sft": _training("learn to answer"),
    "pairs": Stage("make preference pairs", _pairs_reads, _pairs_makes, _pairs_check, _pairs, works_on=True),
    **{name: _training("learn which answer is better") for name in TRAINING if name not in ("cpt", "sft")},
    "eval": Stage("compare the models", eval_reads, eval_makes, check_eval, run_eval),
    "fuse": Stage("merge into the base", _nothing, _fuse_makes, _fuse_check, _fuse, works_on=True),
    "export": Stage("write GGUF", _nothing, _export_makes, _export_check, _export, works_on=True),
    "verify": Stage("hold GGUF against the model", _verify_reads, lambda _, __: [], _verify_check, _verify, works_on=True),
}
