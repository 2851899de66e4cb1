"""``mlxforge init``: a project that the pipeline takes as it is."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest

from mlxforge import CptConfig, SftConfig, train
from mlxforge.cli.main import run
from mlxforge.core.settings import LoraSettings
from mlxforge.runs.pipeline_order import Road
from mlxforge.runs.project import read_project
from mlxforge.runs.stage_settings import STAGE_SETTINGS
from mlxforge.runs.stages import STAGES

FOLDERS = ["configs", "data", "documents", "exports", "runs"]
QUICK = {"max_length": 64, "batch_tokens": 256, "sample_tokens": 0, "eval_every": 1, "lora": LoraSettings(rank=2, alpha=4.0)}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(capsys, *words):
    code = run(list(words), debug=False)
    found = capsys.readouterr()
    return code, found.out, found.err


def test_a_new_project_has_all_folders_and_says_what_is_missing(capsys, tmp_path):
    code, out, _ = call(capsys, "init", "mine", "--model", "tiny")
    assert code == 0
    assert out.startswith(
        "made mine/forge.yaml: ingest, cpt, eval, export, verify\nnext: put your documents into mine/documents"
    )
    assert sorted(one.name for one in (tmp_path / "mine").iterdir() if one.is_dir()) == FOLDERS
    assert "# mine:" in (tmp_path / "mine" / "forge.yaml").read_text()
    code, _, error = call(capsys, "pipeline", "mine", "--dry-run")
    assert code == 2
    assert "ingest: no document in documents (put some there" in error


def test_a_folder_as_base_is_found_from_the_project_and_its_name_survives_a_move(capsys, tmp_path, monkeypatch):
    base = tmp_path / "MODELS of PROJECT: mine"
    base.mkdir()
    code, _, _ = call(capsys, "init", "2024", "--model", base.name)
    assert code == 0
    (tmp_path / "2024").rename(tmp_path / "Mein Projekt")
    monkeypatch.chdir(tmp_path / "Mein Projekt")
    found = read_project(tmp_path / "Mein Projekt" / "forge.yaml")
    assert (found.name, found.model(found.settings.model)) == ("2024", str(base))


def test_every_stage_of_the_template_can_be_turned_on(tmp_path, capsys):
    call(capsys, "init", "mine")
    file = tmp_path / "mine" / "forge.yaml"
    lines = [
        line[1:] if line.startswith("#") and not line.startswith(("# ", "#   ")) else line
        for line in file.read_text().splitlines()
    ]
    inner = [line[1:] if line.startswith("#  ") and "mlxforge pipeline" not in line else line for line in lines]
    file.write_text("\n".join(inner))
    found = read_project(file)
    assert list(found.stages) == [name for name in STAGE_SETTINGS if name not in ("orpo", "simpo", "cpo", "kto")]
    assert list(found.variants) == ["formal", "casual"]


def test_the_example_has_all_stages_and_needs_nothing_more(capsys, tmp_path):
    code, _, _ = call(capsys, "init", "hb", "--example", "handbook")
    assert code == 0
    road = Road(read_project(tmp_path / "hb" / "forge.yaml"), STAGES)
    stages = ["ingest", "cpt", "synth", "sft", "pairs", "dpo", "eval", "fuse", "export", "verify"]
    assert [step.label for step in road.steps] == stages
    assert [list(road.table[step.stage].check(road, step)) for step in road.steps] == [[]] * len(stages)
    assert len(list((tmp_path / "hb" / "documents").glob("*.md"))) == 72


def test_a_project_of_a_run_ends_with_the_same_bits(capsys, tmp_path, documents):
    rows = [
        {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"{n}"}]} for n in range(12)
    ]
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(CptConfig(data=[str(documents)], name="a", steps=2, seed=3, **QUICK))
    train(SftConfig(data=[str(chats)], model="run:a", name="b", steps=2, seed=3, **QUICK))
    code, out, _ = call(capsys, "init", "again", "--from-run", "b", "--copy", "--json")
    assert (code, json.loads(out)["stages"]) == (0, ["cpt", "sft"])
    assert read_project(tmp_path / "again" / "forge.yaml").settings.name == "again"
    chats.unlink()  # the project has its own
    code, _, error = call(capsys, "pipeline", "again", "--yes", "--json")
    assert code == 0, error
    first, second = (
        dict(mx.load(str(tmp_path / path / "adapters.safetensors"))) for path in ("runs/b", "again/runs/again-sft")
    )
    assert first.keys() == second.keys()
    assert all(mx.array_equal(first[key], second[key]).item() for key in first)


BAD = {
    ("init", "a b"): "error: a b: 'a b' is no name for a project (use letters, digits, '-' and '_')",
    ("init", "x", "--example", "handbok"): "error: --example: no example 'handbok' (did you mean 'handbook'?)",
    ("init", "x", "--from-run", "none"): "error: runs: there are no runs here (choose the folder with --runs-dir)",
    ("init", "x", "--example", "handbook", "--from-run", "y"): (
        "error: command line: --example and --from-run are two choices (give one of them)"
    ),
    ("init", "x", "--copy"): "error: --copy: --copy is of a run's data (leave it out, or name the run: --from-run RUN)",
    ("init", "there"): "error: there: is there already (name a new folder)",
}


@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_what_cannot_be_made_is_one_line_and_leaves_nothing(capsys, tmp_path, words):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    code, out, error = call(capsys, *words)
    assert (code, out, error.strip()) == (2, "", BAD[words])
    assert [one.name for one in tmp_path.iterdir()] == ["there"]
