"""Runs after each other, and what was made of them: the tree, comparing, removing, cleaning, and the models on the disk."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from mlxforge import Control, CptConfig, SftConfig, train
from mlxforge.cli.models import models
from mlxforge.cli.runs import runs as command
from mlxforge.core.config import from_dict
from mlxforge.core.errors import ConfigError, RunError
from mlxforge.core.files import file_hash, locked
from mlxforge.models.check import model_hash
from mlxforge.models.families import FAMILIES
from mlxforge.runs.clean import litter, removal, remove
from mlxforge.runs.comparison import compare_runs
from mlxforge.runs.export_gguf import export_gguf
from mlxforge.runs.fuse import fuse
from mlxforge.runs.inventory import gguf_keys, list_models
from mlxforge.runs.lineage import branch, lineage_tree
from mlxforge.runs.opening import resolve_base
from mlxforge.runs.origin import read_origin
from mlxforge.runs.record import read_record, write_record
from mlxforge.ui.comparison import tables

SMALL = {"max_length": 64, "batch_tokens": 256, "learning_rate": 3e-3, "sample_tokens": 0, "warmup": 0, "valid_split": 0.2,
         "lora": {"rank": 2}, "keep": 5, "save_every": 1, "eval_every": 1, "steps": 3}  # fmt: skip


@pytest.fixture(scope="module")
def made(documents, tmp_path_factory):
    """cpt -> two sft, one of them from step 1 -> fused -> gguf."""
    folder = tmp_path_factory.mktemp("project")
    chats = folder / "chats.jsonl"
    turns = [
        [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n * 7}."}] for n in range(12)
    ]
    chats.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))

    def settings(kind, data, **values):
        return from_dict(kind, SMALL | {"data": [str(data)], "runs_dir": str(folder / "runs")} | values)

    train(settings(CptConfig, documents, name="notes"))
    train(settings(SftConfig, chats, name="answers", model="run:notes"))
    train(settings(SftConfig, chats, name="formal", model="run:notes@1", learning_rate=1e-2))
    fuse(resolve_base("run:answers", folder / "runs"), folder / "exports" / "fused")
    export_gguf(resolve_base(str(folder / "exports/fused"), folder), folder / "exports/a.gguf", ["f16"], verify=False)
    export_gguf(resolve_base("run:formal@2", folder / "runs"), folder / "exports/b.gguf", ["f16"], verify=False)
    return folder


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """A copy of it, to be changed; runs that name each other by their place still do."""
    shutil.copytree(made, tmp_path / "p", symlinks=True)
    for config in (tmp_path / "p" / "runs").glob("*/config.yaml"):
        config.write_text(config.read_text().replace(str(made.resolve()), str((tmp_path / "p").resolve())))
    monkeypatch.chdir(tmp_path / "p")
    return tmp_path / "p"


def call(group, *words):
    return CliRunner().invoke(group, [str(word) for word in words])


def shape(node):
    return {
        Path(node.name).name: [
            node.kind,
            node.note,
            {key: value for one in node.children for key, value in shape(one).items()},
        ]
    }


def test_the_tree_leads_from_the_base_to_the_file(project):
    (root,) = lineage_tree(project / "runs", [project])
    gguf = {"a.gguf": ["gguf", "f16", {}]}
    answers = ["sft", "", {"fused": ["fused", "", gguf]}]
    formal = ["sft", "from step 1", {"b.gguf": ["gguf", "f16, step 2", {}]}]
    assert shape(root) == {"tiny": ["base", "", {"notes": ["cpt", "", {"answers": answers, "formal": formal}]}]}
    nodes = {Path(node.name).name: node for node in root.walk()}
    assert nodes["answers"].hash == file_hash(project / "runs/answers/adapters.safetensors")
    assert nodes["fused"].hash == model_hash(project / "exports/fused")
    assert nodes["a.gguf"].hash == file_hash(project / "exports/a.gguf")
    assert nodes["tiny"].hash == read_record(project / "runs/notes")["lineage"]["model"]["hash"]
    names = [Path(node.name).name for node in branch([root], project / "runs/answers").walk()]
    assert names == ["tiny", "notes", "answers", "fused", "a.gguf"]


def test_a_file_that_changed_since_it_was_verified_is_told(project):
    file, report = project / "exports/a.gguf", project / "exports/a.report.json"
    report.write_text(json.dumps({"passed": True, "quant": "f16", "sha256": file_hash(file), "lineage": read_origin(file)}))

    def node():
        return next(one for root in lineage_tree(project / "runs", [project]) for one in root.walk() if one.path == str(file))

    assert (node().hash, node().note) == (file_hash(file), "f16, verified")
    file.write_bytes(file.read_bytes() + b"more")
    os.utime(file, (time.time() + 5,) * 2)
    assert (node().hash, node().note) == (file_hash(file), "f16, verified, changed since")


@pytest.mark.parametrize(
    "said", [[], 3, {"kind": 7}, {"model": []}, {"run": "x"}, {"adapters": {"a": 1}}, {"model": None, "run": 0}]
)
def test_a_record_of_a_result_that_is_none_says_nothing(project, said):
    (project / "exports/fused/mlxforge.json").write_text(json.dumps(said))
    assert "fused" in {Path(node.name).name for root in lineage_tree(project / "runs", [project]) for node in root.walk()}
    assert call(models, "list", "--no-hub").exit_code == 0


def test_a_parent_that_changed_or_is_gone_is_told(project):
    shutil.copy(project / "runs/notes/checkpoints/step-000001/adapters.safetensors", project / "runs/notes")
    notes = {Path(node.name).name: node.note for root in lineage_tree(project / "runs", [project]) for node in root.walk()}
    assert (notes["answers"], notes["formal"]) == ("notes has changed since", "from step 1")
    shutil.rmtree(project / "runs/notes")
    (root,) = lineage_tree(project / "runs")
    assert {node.name: node.note for node in root.walk()}["answers"] == "over notes, which is not here"
    shutil.rmtree(project / "runs/answers")
    notes = {Path(node.name).name: node.note for root in lineage_tree(project / "runs", [project]) for node in root.walk()}
    assert notes["fused"] == "of answers, which is not here"


def test_records_that_contradict_each_other_end_no_loop(project):
    text = (project / "runs/notes/config.yaml").read_text()
    (project / "runs/notes/config.yaml").write_text(text.replace("model: tiny", f"model: run:{project.resolve()}/runs/answers"))
    record = read_record(project / "runs/notes")
    record["lineage"]["parent"] = {"path": str(project / "runs/answers"), "hash": ""}
    write_record(project / "runs/notes", record)
    assert {node.name for root in lineage_tree(project / "runs") for node in root.walk()} >= {"notes", "answers", "formal"}


def test_the_tree_is_shown(project):
    text = call(command, "list", "--tree").stdout
    lines = [line.strip("│├└─ ").split() for line in text.splitlines()]
    assert [line[0] for line in lines] == [
        "tiny",
        "notes",
        "answers",
        "exports/fused",
        "exports/a.gguf",
        "formal",
        "exports/b.gguf",
    ]
    (root,) = json.loads(call(command, "list", "--tree", "--json").stdout)
    assert root["children"][0]["name"] == "notes"
    shown = json.loads(call(command, "show", "answers", "--json").stdout)
    assert [child["name"] for child in shown["tree"]["children"][0]["children"]] == ["answers"]
    assert shown["checkpoints"]["3"] == ["best", "last"]
    assert "as run:answers@STEP" in call(command, "show", "answers").stdout


def test_runs_side_by_side(project):
    found = compare_runs(["answers", "formal"], project / "runs")
    assert set(found["settings"]) == {"model", "learning_rate"}
    assert found["settings"]["learning_rate"] == [3e-3, 1e-2]
    assert found["data"] == {}
    assert found["notes"] == []
    result = [read_record(project / "runs" / name)["result"] for name in ("answers", "formal")]
    assert found["figures"]["valid.bpb"] == {"values": [one["valid"]["bpb"] for one in result], "better": "lower"}
    assert [step for step, _ in found["curves"][1]["train"]] == [1, 2, 3]
    other = compare_runs(["notes", "answers"], project / "runs")
    assert "train_on" not in other["settings"]
    assert {"train", "valid"} <= set(other["data"])
    assert any("objectives differ (cpt, sft)" in note for note in other["notes"])
    for names in (["answers"], ["answers", "run:answers"]):
        with pytest.raises(ConfigError, match="two runs at least"):
            compare_runs(names, project / "runs")


def test_compare_on_the_command_line(project):
    pytest.importorskip("matplotlib")
    done = call(command, "compare", "answers", "formal", "--plot", "both.svg")
    assert "learning_rate" in done.stdout
    assert "<svg" in (project / "both.svg").read_text()
    assert json.loads(call(command, "compare", "answers", "formal", "--json").stdout)["runs"][1]["name"] == "formal"


def test_figures_of_many_runs_are_not_broken_over_lines():
    names, losses = [f"sweep-t{number:02}" for number in range(12)], [1000.5 + number for number in range(12)]
    found = {"runs": [{"name": name} for name in names], "figures": {"valid.loss": {"values": losses, "better": "lower"}}}
    for width in (20, 80, 200):
        out = Console(width=width, file=io.StringIO())
        for part in tables(found | {"settings": {}, "data": {}, "notes": []}, width):
            out.print(part)
        text = out.file.getvalue()
        assert all(name in text for name in names)
        assert all(f"{loss:,.0f}" in text for loss in losses)


def test_a_run_that_others_need_is_not_removed(project):
    with pytest.raises(RunError, match="other runs descend from it: answers, formal"):
        removal(["notes"], project / "runs")
    with locked(project / "runs/formal"), pytest.raises(RunError, match="being trained now"):
        removal(["formal"], project / "runs")
    with pytest.raises(RunError, match="lies outside of"):
        removal([str(project / "runs/formal")], project / "other")
    assert [one.run for one in removal(["notes", "answers", "formal"], project / "runs")] == ["notes", "answers", "formal"]
    assert removal(["notes"], project / "runs", force=True)[0].what == "run"


def test_removing_on_the_command_line(project):
    size = sum(
        path.lstat().st_size for path in (project / "runs/formal").rglob("*") if path.is_file() and not path.is_symlink()
    )
    assert call(command, "rm", "formal").exit_code == 2
    assert json.loads(call(command, "rm", "formal", "--dry-run", "--json").stdout)["freed"] == 0
    assert (project / "runs/formal").is_dir()
    assert json.loads(call(command, "rm", "formal", "--yes", "--json").stdout)["freed"] == size
    assert sorted(path.name for path in (project / "runs").iterdir()) == ["answers", "notes"]
    assert (project / "exports/b.gguf").is_file()


def steps(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_clean_keeps_what_is_needed(project):
    left = project / "runs/.old.x.unfinished"
    left.mkdir()
    (left / "weights").write_bytes(b"1234")
    os.utime(left, (1, 1))
    young = project / "runs/.new.x.unfinished"
    young.mkdir()
    (project / "runs/answers/checkpoints/.step.y.unfinished").mkdir()
    with locked(project / "runs/formal"):
        found, notes = litter(project / "runs")
    assert {one.what for one in found} == {"checkpoint", "unfinished"}
    assert any("formal is being trained" in note for note in notes)
    assert any("notes: step 1 stays" in note for note in notes)
    freed = remove(found)
    assert freed == sum(one.bytes for one in found) > 4
    assert steps(project / "runs/notes") == ["step-000001", "step-000003"]
    assert steps(project / "runs/answers") == ["step-000003"]
    assert "step-000001" in steps(project / "runs/formal")
    assert (left.exists(), young.exists()) == (False, True)
    for name in ("run:notes@1", "run:answers@last", "run:formal@2"):
        assert resolve_base(name, project / "runs").adapter


def test_clean_of_old_failed_and_last(project):
    record = read_record(project / "runs/formal")
    write_record(project / "runs/formal", record | {"status": "failed"})
    answers = read_record(project / "runs/answers")
    write_record(project / "runs/answers", answers | {"ended": time.time() - 10 * 86_400})
    (project / "runs/answers/best").unlink()
    (project / "runs/answers/best").symlink_to("checkpoints/step-000002")
    old, _ = litter(project / "runs", keep_best=True, older_than=5 * 86_400)
    assert {one.run for one in old} == {"answers"}
    assert {Path(one.path).name for one in old} == {"step-000000", "step-000001", "step-000003"}
    failed, _ = litter(project / "runs", failed=True)
    assert [one.run for one in failed if one.what == "run"] == ["formal"]
    assert call(command, "clean", "--older-than", "soon").exit_code == 2
    done = call(command, "clean", "--keep-best", "--older-than", "1w", "--yes")
    assert "freed" in done.stdout
    assert steps(project / "runs/answers") == ["step-000002"]
    assert call(command, "clean", "--older-than", "5w").stdout == "nothing to remove\n"


def test_a_run_that_was_stopped_goes_on_after_clean(documents, tmp_path):
    from mlxforge import resume

    control, done = Control(), []

    def stop(event):
        done.extend([event] if type(event).__name__ == "StepDone" else [])
        control.finish = len(done) == 3

    values = SMALL | {"data": [str(documents)], "runs_dir": str(tmp_path), "name": "part", "steps": 4}
    train(from_dict(CptConfig, values), [stop], control)
    remove(litter(tmp_path)[0])
    assert resume("part", runs_dir=str(tmp_path)).status == "finished"


def test_the_models_on_this_disk(project, monkeypatch, tmp_path):
    hub = tmp_path / "hub"
    for name, whole in (("models--org--whole", True), ("models--org--words", False)):
        place = hub / name / "snapshots" / "abc"
        place.mkdir(parents=True)
        shutil.copy(project / "exports/fused/config.json", place)
        (hub / name / "blobs").mkdir()
        (hub / name / "blobs" / "x").write_bytes(b"123")
        if whole:
            (place / "model.safetensors").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    found = {one.name: one for one in list_models([project])}
    assert set(found) == {"tiny", "exports/fused", "exports/a.gguf", "exports/b.gguf", "org/whole", "org/words"}
    assert [found[name].kind for name in ("tiny", "exports/fused", "exports/a.gguf", "org/whole")] == [
        "shipped",
        "fused",
        "gguf",
        "hub",
    ]
    assert found["exports/a.gguf"].family == found["exports/fused"].family == found["org/words"].family == "llama"
    assert found["exports/a.gguf"].size == (project / "exports/a.gguf").stat().st_size
    assert (found["org/whole"].note, found["org/words"].note, found["org/words"].size) == ("", "no weights yet", 3)
    assert "org/whole" not in {one.name for one in list_models([project], hub=False)}
    text = call(models, "list", "--no-hub").stdout
    assert "run:answers" in text
    assert "run:formal@2" in text
    listed = json.loads(call(models, "list", "--json").stdout)
    assert {one["name"] for one in listed if one["kind"] != "family"} == set(found)
    assert [one["family"] for one in listed if one["kind"] == "family"] == list(FAMILIES)
    assert all(name in text for name in FAMILIES)
    assert "llama" in call(models, "families").stdout


def test_the_keys_of_a_gguf_file(project, tmp_path):
    from gguf import GGUFReader

    file = project / "exports/a.gguf"
    found = gguf_keys(file)
    reader = GGUFReader(file)
    for key in ("general.architecture", "general.file_type", "llama.block_count", "llama.embedding_length"):
        assert found[key] == reader.get_field(key).contents(), key
    assert found["tokenizer.ggml.eos_token_id"] == reader.get_field("tokenizer.ggml.eos_token_id").contents()
    for end in (0, 3, 20, 30, 200, 1000):
        (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:end])
        assert set(gguf_keys(tmp_path / "cut.gguf")) <= set(found)


def test_a_model_record_names_no_folder_of_this_disk(project):
    text = (project / "exports/fused/mlxforge.json").read_text() + (project / "exports/b.origin.json").read_text()
    assert "/" not in text.replace("\\/", "")
    assert json.loads((project / "exports/b.origin.json").read_text())["run"] == {
        "name": "formal",
        "step": 2,
        "objective": "sft",
    }


@pytest.mark.parametrize(("group", "words"), [(command, ("list", "--tree")), (models, ("list", "--no-hub"))])
def test_a_folder_to_look_in_that_is_not_there_is_told(project, group, words):
    error = call(group, *words, "--in", "no-such-folder").exception
    assert isinstance(error, ConfigError)
    assert "--in no-such-folder: no such folder" in str(error)
