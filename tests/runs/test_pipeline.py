"""The pipeline: what did not change is skipped, what is missing is told before anything runs, a kill changes nothing."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import msgspec
import pytest

from mlxforge.core.errors import ConfigError, Interrupted, RunError
from mlxforge.core.eventlog import replay
from mlxforge.core.events import Control, RunEnded, StageEnded, StageStarted, StepDone
from mlxforge.runs.kb import list_documents
from mlxforge.runs.pipeline import open_pipeline, run
from mlxforge.runs.pipeline_report import summarise
from mlxforge.runs.record import list_runs

TRAINING = "{max_length: 64, batch_tokens: 256, sample_tokens: 0, steps: 3, eval_every: 1, lora: {rank: 2, alpha: 4}"
FORGE = f"""
name: p
ingest:
cpt: {TRAINING}}}
synth: {{kind: commands, schema: desk.yaml, rows: 24, share: [context=0, typo=0, incomplete=0]}}
sft: {TRAINING}, data: [data/commands/train.jsonl], overlong: left}}
"""
DESK = """
cli_name: desk
commands:
  fee:
    help: Say the fee.
    phrases: ["what does {house} cost", "the fee of {house}"]
    args: {house: {required: true, enum: [inn, mill, farm, forge, dairy, school, garden, quarry]}}
"""


def write_project(folder, documents, text=FORGE):
    folder.mkdir(exist_ok=True)
    shutil.copytree(documents, folder / "documents")
    (folder / "forge.yaml").write_text(text)
    (folder / "desk.yaml").write_text(DESK)
    return folder


@contextmanager
def silent(step, states):
    yield (lambda event: None), Control()


def done(folder, *choice):
    """Does what is to be done; the labels of the steps that were."""
    ran = []

    @contextmanager
    def shown(step, states):
        ran.append(step.label)
        yield (lambda event: None), Control()

    run(open_pipeline(folder, *choice), shown)
    return ran


def actions(folder, *choice):
    return {one.step.label: (one.action, one.why) for one in open_pipeline(folder, *choice).planned}


def change(folder, before, after):
    file = folder / "forge.yaml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def adapters(folder):
    return {run.name: dict(mx.load(f"{run.path}/adapters.safetensors")) for run in list_runs(folder / "runs")}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert all(mx.array_equal(first[name][key], second[name][key]).item() for key in first[name] | second[name]), name


@pytest.fixture(scope="module")
def whole(documents, tmp_path_factory):
    """A project that was done in one go."""
    folder = write_project(tmp_path_factory.mktemp("whole") / "p", documents)
    assert done(folder) == ["ingest", "cpt", "synth", "sft"]
    return folder


@pytest.fixture
def project(whole, tmp_path):
    """A copy of it, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "p", symlinks=True))


def test_a_second_time_nothing_is_done_wherever_it_is_called_from(whole, monkeypatch):
    assert {action for action, _ in actions(whole).values()} == {"skip"}
    monkeypatch.chdir(whole)
    assert {action for action, _ in actions(None).values()} == {"skip"}
    assert done(None) == []


@pytest.mark.parametrize("named", [True, False])
def test_a_project_that_is_moved_and_renamed_stays_done(whole, tmp_path, named):
    copy = Path(shutil.copytree(whole, tmp_path / "Mein Ordner ü", symlinks=True))
    if not named:  # its name is then its folder's
        change(copy, "name: p\n", "")
    assert {action for action, _ in actions(copy).values()} == {"skip"}


def test_the_runs_lie_over_each_other_by_name(whole):
    runs = {one.name: one for one in list_runs(whole / "runs")}
    assert runs["p-cpt"].model == "tiny"
    assert runs["p-sft"].model.endswith("runs/p-cpt")


def test_a_changed_setting_does_its_stage_and_those_after_it_again(project):
    change(
        project,
        "steps: 3, eval_every: 1, lora: {rank: 2, alpha: 4}, data",
        "steps: 4, eval_every: 1, lora: {rank: 2, alpha: 4}, data",
    )
    assert actions(project)["sft"] == ("run", "steps changed")
    assert actions(project)["cpt"] == ("skip", "nothing changed")
    assert done(project) == ["sft"]
    assert sorted(one.name for one in list_runs(project / "runs")) == ["p-cpt", "p-sft", "p-sft-2"]


def test_a_changed_document_does_what_read_it_again_and_rows_of_a_grammar_stay(project):
    (project / "documents" / "new.txt").write_text("The heron stands in the mill pond at dusk and waits.\n")
    assert actions(project) == {
        "ingest": ("run", "documents changed"),
        "cpt": ("run", "after ingest"),
        "synth": ("skip", "nothing changed"),
        "sft": ("run", "after cpt"),
    }


def test_what_comes_out_as_before_leaves_the_stages_after_it_alone(project):
    (project / "documents" / "00.txt").touch()
    assert {action for action, _ in actions(project).values()} == {"skip"}
    assert done(project, None, "ingest") == ["ingest"]  # in another folder than before, with the same texts
    assert {action for action, _ in actions(project).values()} == {"skip"}


def test_a_model_that_changed_is_evaluated_again(project):
    row = {"messages": [{"role": "user", "content": "Say 1."}, {"role": "assistant", "content": "It is 1."}]}
    (project / "chats.jsonl").write_text(json.dumps(row) + "\n")
    with (project / "forge.yaml").open("a") as file:
        file.write("eval: {data: [chats.jsonl], models: [sft], metrics: [exact_match], max_tokens: 2}\n")
    assert done(project) == ["eval"]
    assert done(project) == []
    change(project, "overlong: left", "overlong: left, learning_rate: 0.01")
    assert done(project) == ["sft", "eval"]
    report = json.loads((project / "exports" / "report" / "report.json").read_text())
    assert report["models"][0]["run"].endswith("p-sft-2")


def test_documents_that_the_project_names_no_more_leave_the_knowledge_base(project):
    change(project, "ingest:", "ingest: {documents: [documents, notes]}")
    (project / "notes").mkdir()
    (project / "notes" / "one.md").write_text("# One\n\nThe miller keeps a heron.\n")
    done(project, None, "ingest")
    change(project, "ingest: {documents: [documents, notes]}", "ingest:")
    done(project, None, "ingest")
    assert summarise(open_pipeline(project)).stages[0].made.startswith("24 documents")
    assert len([one for one in list_documents(project / "data" / "kb.sqlite") if not one["removed"]]) == 24


@pytest.mark.parametrize("gone", ["data/kb.sqlite", "runs/p-cpt/adapters.safetensors", "data/commands/train.jsonl"])
def test_an_output_that_is_gone_is_made_again(project, gone):
    (project / gone).unlink()
    stage = {"data": "ingest", "runs": "cpt", "commands": "synth"}[Path(gone).parent.name.replace("p-cpt", "runs")]
    assert actions(project)[stage] == ("run", f"{gone} is gone")
    assert actions(project)["sft"][0] == "run"


def test_only_does_one_stage_and_from_does_those_after_it(project):
    assert [action for action, _ in actions(project, None, "synth").values()] == ["leave", "leave", "run", "leave"]
    assert [action for action, _ in actions(project, "synth").values()] == ["leave", "leave", "run", "run"]
    with pytest.raises(ConfigError, match=r"--only: 'fsynth' is no stage \(did you mean 'synth'\?\)"):
        open_pipeline(project, None, "fsynth")
    with pytest.raises(ConfigError, match="--from: 'dpo' is not in the project"):
        open_pipeline(project, "dpo")


def test_a_stage_whose_base_is_not_done_names_the_command_that_makes_it(documents, tmp_path):
    folder = write_project(tmp_path / "my project", documents)
    with pytest.raises(ConfigError) as caught:
        open_pipeline(folder, None, "sft")
    assert str(caught.value).splitlines() == [
        f"sft needs cpt, which is not done (mlxforge pipeline '{folder}/forge.yaml' --only cpt)",
        f"sft needs synth, which is not done (mlxforge pipeline '{folder}/forge.yaml' --only synth)",
    ]


BAD = """
ingest: {documents: [nowhere]}
cpt: {replay: general.txt}
synth: {provider: openai, url: https://example.org/v1, rows: 3}
sft: {data: [chats.jsonl], model: no/where/at/all}
pairs: {data: [], takes: base}
dpo: {}
eval: {data: [questions.jsonl], metrics: [exact_mach]}
export: {quants: [q4_k]}
gate: {require: [sftt.exact_match>=1, f1, dpo.exact_mach>=1, dpo.f1=1], no_regression: [question.f1:1, questions.f1:x]}
"""


def test_all_that_is_missing_is_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "forge.yaml").write_text(BAD)
    with pytest.raises(ConfigError) as caught:
        open_pipeline(tmp_path)
    told = str(caught.value).replace(str(tmp_path), "P").splitlines()
    for line in (
        "P/forge.yaml:2: ingest: no such file or folder: nowhere (mend the path, or put it there)",
        "P/forge.yaml:3: cpt: replay: replay and replay_ratio go together (give both, such as replay_ratio=0.25)",
        "P/forge.yaml:4: synth: rows has no effect with kind qa (leave it out)",
        "P/forge.yaml:4: synth: no key for example.org (export OPENAI_API_KEY=...)",
        "P/forge.yaml:5: sft: no such file or folder: chats.jsonl (mend the path, or put it there)",
        "P/forge.yaml:6: pairs: no conversations to answer (write pairs.data: [FILE])",
        "P/forge.yaml:8: eval: unknown metric 'exact_mach' (did you mean 'exact_match'?)",
        "P/forge.yaml:9: export: unknown quantization 'q4_k' (did you mean 'q4_k_s'?)",
        "P/forge.yaml:10: gate: require: 'sftt.exact_match>=1': the report will have no 'sftt' (did you mean 'sft'?)",
        "P/forge.yaml:10: gate: require: 'f1' names no figure (write LABEL.METRIC>=0.6)",
        "P/forge.yaml:10: gate: require: 'dpo.exact_mach>=1': unknown metric 'exact_mach' (did you mean 'exact_match'?)",
        "P/forge.yaml:10: gate: require: 'dpo.f1=1': character 7: '=' is no comparison (did you mean '=='?)",
        "P/forge.yaml:10: gate: no_regression: 'questions.f1:x': character 14: no number: 'x' (a plain number such as 0.6)",
        "P/forge.yaml:10: gate: no_regression: 'question.f1:1': the report will have no 'question' (did you mean 'questions'?)",
    ):
        assert line in told, "\n".join(told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forge.yaml"]


def test_a_file_that_no_pipeline_made_is_not_written_over(documents, tmp_path):
    folder = write_project(tmp_path / "p", documents)
    rows = folder / "data" / "commands" / "train.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text("mine\n")
    with pytest.raises(ConfigError, match=r"synth: data/commands/train.jsonl is there already, and no pipeline made it"):
        open_pipeline(folder)


def test_how_fast_a_provider_is_asked_and_at_what_price_does_nothing_again(project):
    change(project, "rows: 24", "rows: 24, concurrency: 2, price_in: 1, price_out: 2, max_cost: 3")
    change(project, "ingest:", "ingest:  # documents")
    (project / "forge.yaml").write_text("# a comment\n\n" + (project / "forge.yaml").read_text())
    assert {action for action, _ in actions(project).values()} == {"skip"}


def test_the_log_holds_the_events_of_all_stages(whole):
    events = list(replay(whole / ".forge" / "events.jsonl", ends=None))
    assert [one.stage for one in events if isinstance(one, StageStarted)] == ["ingest", "cpt", "synth", "sft"]
    ended = [one for one in events if isinstance(one, StageEnded)]
    assert [(one.stage, one.status) for one in ended][1] == ("cpt", "done")
    assert sum(isinstance(one, RunEnded) for one in events) == 2
    assert ended[1].gained.startswith("valid bpb ")


def test_the_summary_tells_what_each_stage_gained_and_cost(whole):
    found = summarise(open_pipeline(whole))
    stages = {one.stage: one for one in found.stages}
    assert stages["ingest"].made.startswith("24 documents, ")
    assert sum(int(word) for word in stages["synth"].made.split()[:1]) == 24
    (gain,) = [one for one in stages["cpt"].gains if one.name == "valid bpb"]
    assert gain.after < gain.before
    assert found.tokens == sum(one.tokens for one in found.stages) > 0
    assert all(one.disk > 0 and one.seconds > 0 for one in found.stages)
    assert found.ships is None


def test_two_pipelines_never_work_on_one_project(project):
    change(project, "rows: 24", "rows: 25")
    seen = []

    @contextmanager
    def second(step, states):
        with pytest.raises(RunError, match="another pipeline works on this project"):
            run(open_pipeline(project), silent)
        yield (lambda _: seen.append(actions(project)["synth"])), Control()

    run(open_pipeline(project), second)
    assert ("resume", "is being done now") in seen


def test_q_in_a_stage_stops_the_pipeline_and_the_same_command_goes_on(whole, documents, tmp_path):
    folder = write_project(tmp_path / "p", documents)
    ran = []

    @contextmanager
    def stopping(step, states):
        control = Control()

        def emit(event):
            control.finish |= isinstance(event, StepDone) and event.step == 2

        ran.append(step.label)
        yield emit, control

    with pytest.raises(Interrupted, match="cpt stopped after step 2; the state is saved"):
        run(open_pipeline(folder), stopping)
    assert ran == ["ingest", "cpt"]
    assert actions(folder)["cpt"] == ("resume", "was stopped")
    assert done(folder) == ["cpt", "synth", "sft"]
    assert_same(adapters(whole), adapters(folder))


# Runs the pipeline until the n-th file operation of a kind, and dies there as kill -9 would have it.
KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from mlxforge.core.blas import load_blas
load_blas()
from mlxforge.core.events import Control
from mlxforge.runs.kb import list_documents
from mlxforge.runs.pipeline import open_pipeline, run
folder, operation, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
pipeline = open_pipeline(Path(folder))
plain, seen = getattr(os, operation), 0
def deadly(*args, **kwargs):
    global seen
    seen += 1
    if seen == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*args, **kwargs)
setattr(os, operation, deadly)
@contextmanager
def silent(step, states):
    yield (lambda event: None), Control()
run(pipeline, silent)
"""


def check_kill(whole, documents, tmp_path, operation, count):
    folder = write_project(tmp_path / "p", documents)
    command = [sys.executable, "-c", KILLED, str(folder), operation, str(count)]
    died = subprocess.run(command, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    finished = {one.name: one.path for one in list_runs(folder / "runs") if one.status == "finished"}
    stamps = {name: Path(path, "adapters.safetensors").stat().st_mtime_ns for name, path in finished.items()}
    (folder / "runs" / ".p-sft.killed.unfinished").mkdir(parents=True)  # in the moment before
    done(folder)
    assert not list((folder / "runs").glob(".*.unfinished"))
    assert_same(adapters(whole), adapters(folder))
    assert {name: Path(path, "adapters.safetensors").stat().st_mtime_ns for name, path in finished.items()} == stamps
    assert {action for action, _ in actions(folder).values()} == {"skip"}
    first, second = (place / "data" / "commands" / "train.jsonl" for place in (whole, folder))
    assert first.read_bytes() == second.read_bytes()


def test_killed_in_the_middle_of_a_stage_it_goes_on_there(whole, documents, tmp_path):
    check_kill(whole, documents, tmp_path, "replace", 12)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4, 6, 8, 10, 14, 18, 22, 26, 30, 34])
def test_killed_anywhere_it_ends_with_the_same_bits(whole, documents, tmp_path, count):
    check_kill(whole, documents, tmp_path, "replace", count)


ROAD = f"""
name: p
ingest:
cpt: {TRAINING}}}
sft: {TRAINING}, data: [chats.jsonl]}}
pairs: {{samples: 2, max_tokens: 48, limit: 12}}
dpo: {TRAINING}}}
eval: {{data: [chats.jsonl], metrics: [exact_match], limit: 6, max_tokens: 8}}
fuse:
export: {{quants: [f16, q8_0]}}
verify: {{texts: 20}}
"""
# Dies at the n-th event of a stage.
KILLED_IN = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from mlxforge.core.blas import load_blas
load_blas()
from mlxforge.core.events import Control
from mlxforge.runs.pipeline import open_pipeline, run
folder, stage, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
@contextmanager
def shown(step, states):
    heard = []
    def emit(event):
        heard.append(event)
        if step.stage == stage and len(heard) == count:
            os.kill(os.getpid(), signal.SIGKILL)
    yield emit, Control()
run(open_pipeline(Path(folder)), shown)
"""


def write_road(folder, documents):
    write_project(folder, documents, ROAD)
    rows = [
        {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"It is {n}."}]}
        for n in range(30)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def made(folder):
    """What the road made, by content; of the report its figures."""
    files = [
        folder / "data" / "pairs.jsonl",
        *sorted((folder / "exports").glob("*.gguf")),
        folder / "exports/model/model.safetensors",
    ]
    report = json.loads((folder / "exports" / "report" / "report.json").read_text())
    return {file.name: file.read_bytes().replace(str(folder).encode(), b"") for file in files} | {"results": report["results"]}


@pytest.fixture(scope="module")
def whole_road(documents, tmp_path_factory):
    folder = write_road(tmp_path_factory.mktemp("road") / "p", documents)
    assert len(done(folder)) == 9
    return made(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "count"),
    [("ingest", 2), ("pairs", 5), ("dpo", 8), ("eval", 9), ("export", 2), ("verify", 2)],
)
def test_killed_in_any_stage_the_road_ends_as_if_it_had_not_been(whole_road, documents, tmp_path, stage, count):
    folder = write_road(tmp_path / "p", documents)
    command = [sys.executable, "-c", KILLED_IN, str(folder), stage, str(count)]
    died = subprocess.run(command, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert done(folder)[0] == stage
    assert made(folder) == whole_road
    assert {action for action, _ in actions(folder).values()} == {"skip"}
    assert not list((folder / "exports").glob(".*.unfinished"))


def test_a_new_setting_of_a_later_version_changes_nothing(project):
    from mlxforge.runs.pipeline_order import Road
    from mlxforge.runs.project import read_project
    from mlxforge.runs.stages import STAGES

    road = Road(read_project(project / "forge.yaml"), STAGES)
    kept = road.settings(road.steps[1])
    assert kept == {
        "max_length": 64, "batch_tokens": 256, "sample_tokens": 0, "steps": 3, "eval_every": 1,
        "lora.rank": 2, "lora.alpha": 4.0,
    }  # fmt: skip
    assert msgspec.json.decode((project / ".forge" / "cpt.json").read_bytes())["settings"] == kept
