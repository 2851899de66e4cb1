"""The stages of a pipeline that make training data: questions and answers or commands, and preference pairs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlxforge.core.errors import DataError, MissingExtraError, RunFailed
from mlxforge.core.events import Control, Emit
from mlxforge.runs.pipeline_checks import check_model, missing, not_ours, place, told
from mlxforge.runs.pipeline_order import Made, Road, Stage, Step
from mlxforge.runs.pipeline_state import Record
from mlxforge.runs.pipeline_train import job_of
from mlxforge.runs.text import expand

KEY = "OPENAI_API_KEY"
LOCAL = ("localhost", "127.0.0.1", "::1", "")
PARTS = ("train", "valid", "test")
# Of which kind of synth a setting is; the others are of both.
QA = ("kb", "styles", "per_chunk", "limit", "audience", "temperature", "near", "judge")
COMMANDS = ("schema", "from_click", "rows", "share")


def _synth_output(road: Road, step: Step) -> Path:
    default = "data/synth.jsonl" if step.get("kind") == "qa" else "data/commands"
    return Path(road.project.place(str(step.get("output") or default)))


def _synth_makes(road: Road, step: Step) -> list[Path]:
    """The rows to train on, then those held out."""
    output = _synth_output(road, step)
    if step.get("kind") == "commands":
        return [output / f"{part}.jsonl" for part in PARTS]
    return [output, *(output.with_suffix(f".{part}{output.suffix}") for part in PARTS[1:])]


def store_of(road: Road, step: Step) -> Path | None:
    """The knowledge base that questions are made from."""
    if named := step.get("kb"):
        return Path(road.project.place(named))
    ingest = next((one for one in road.steps if one.stage == "ingest"), None)
    return place(road, ingest, "output") if ingest else None


def _synth_reads(road: Road, step: Step) -> list[str]:
    """The knowledge base, or the schema of commands."""
    if step.get("kind") == "commands":
        return [expand(road.project.place(step.get("schema")))] if step.get("schema") else []
    store = store_of(road, step)
    return [str(store)] if store else []


def _synth_check(road: Road, step: Step) -> Iterator[str]:
    """Settings that agree, files that are there, a provider that can be reached."""
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
    yield from not_ours(road, step)
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
    """What decides the questions of a step; None where it makes commands."""
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


def _run_synth(road: Road, step: Step, _: Record, emit: Emit, __: Control) -> Made:
    """Makes the rows; what was answered before is not asked again."""
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
    """The pairs, a file for each variant."""
    output = place(road, step, "output")
    return [output.with_name(step.suffixed(output.stem) + output.suffix)]


def _pairs_reads(road: Road, step: Step) -> list[str]:
    """The conversations that the model answers."""
    if own := step.get("data"):
        return [road.project.place(spec) for spec in own]
    taken = road.taken(step)
    return job_of(road, taken).data if taken else []


def _pairs_check(road: Road, step: Step) -> Iterator[str]:
    """Conversations are there, and there is one judge at most."""
    specs = _pairs_reads(road, step)
    if not specs:
        yield "no conversations to answer (write pairs.data: [FILE])"
    if step.get("judge") and step.get("judge_url"):
        yield "judge and judge_url are two judges (leave one of them out)"
    yield from missing(road, specs)
    yield from not_ours(road, step)


def _run_pairs(road: Road, step: Step, _: Record, emit: Emit, __: Control) -> Made:
    """Draws answers and makes pairs of them."""
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


SYNTH = Stage("make training data", _synth_reads, _synth_makes, _synth_check, _run_synth)
PAIRS = Stage("make preference pairs", _pairs_reads, _pairs_makes, _pairs_check, _run_pairs, works_on=True)
