"""mlxforge gate: exit codes, gate.json beside the report and in the runs, one clear line for each slip."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import msgspec
import pytest
from report_makes import report

from mlxforge.cli.main import run
from mlxforge.evals.report import MARKDOWN, PAGE, ModelInfo, load_report, save_report
from mlxforge.evals.write import write_report
from mlxforge.runs.gate import gate

PASSES = ["--require", "sft.exact_match>=0.4", "--no-regression", "retention.bpb:0.05"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a report and its two runs; the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        record = {"status": "finished", "objective": "sft", "ended": "2026-11-21T09:00:00+00:00"}
        (tmp_path / "runs" / name / "run.json").write_text(json.dumps(record))
    (tmp_path / "report").mkdir()
    save_report(report(), tmp_path / "report")
    return tmp_path


def test_passed_is_0_and_failed_is_1(place, capsys):
    assert run(["gate", "report", *PASSES], debug=True) == 0
    assert "passed: 2 of 2 requirements met" in capsys.readouterr().out
    assert run(["gate", "report/report.json", *PASSES, "--require", "sft.bleu>=90"], debug=True) == 1
    out = capsys.readouterr().out
    assert "FAILED: 2 of 3 requirements met" in out
    assert "FAILED  sft.bleu>=90  41.50  [33.25 to 52.75]  sft, handbook  beyond noise" in out


def test_the_verdict_lies_beside_the_report_and_in_the_runs_it_names(place):
    assert run(["gate", "report", *PASSES], debug=True) == 0
    beside = json.loads((place / "report" / "gate.json").read_text())
    assert beside == json.loads((place / "runs" / "b" / "gate.json").read_text())
    assert not (place / "runs" / "a" / "gate.json").exists()
    assert beside["passed"] is True
    assert beside["report"] == str(place / "report" / "report.json")
    assert [one["text"] for one in beside["requirements"]] == PASSES[1::2]
    assert all({"text", "value", "low", "high", "passed", "why"} <= set(one) for one in beside["requirements"])
    assert beside["requirements"][0]["value"] == 0.6


def test_a_failed_verdict_takes_the_place_of_a_passed_one(place):
    run(["gate", "report", *PASSES], debug=True)
    assert run(["gate", "report", "--require", "sft.exact_match>=0.9"], debug=True) == 1
    assert json.loads((place / "runs" / "b" / "gate.json").read_text())["passed"] is False
    assert not [one for one in place.rglob(".*") if one.name.endswith(".unfinished")]


def test_without_require_it_is_about_the_last_model(place):
    found = gate(place / "report", (), ["retention.bpb:0.05", "handbook.bleu:1"], runs_dir=place / "runs")
    assert [one["model"] for one in found["requirements"]] == ["sft", "sft"]
    assert (place / "runs" / "b" / "gate.json").exists()


def test_a_file_made_of_a_run_speaks_for_the_last_run_where_nothing_is_named(place):
    made = report()
    made.models.append(ModelInfo(label="q4", name="b.gguf", kind="gguf", stage="gguf"))
    made.results["q4"] = made.results["sft"]
    save_report(made, place / "report")
    found = gate(place / "report", (), ["retention.bpb:0.05"], runs_dir=place / "runs")
    assert [one["model"] for one in found["requirements"]] == ["q4"]
    assert (place / "runs" / "b" / "gate.json").exists()
    (place / "runs" / "b" / "gate.json").unlink()
    gate(place / "report", ["q4.bleu>=0"], runs_dir=place / "runs")
    assert not list((place / "runs").rglob("gate.json"))


def test_regressions_are_looked_for_in_the_models_that_are_named(place):
    found = gate(place / "report", ["cpt.bleu>=0", "base.bleu>=0"], ["exact_match:0"])
    assert [one["model"] for one in found["requirements"]] == ["cpt", "base", "cpt"]
    assert [found["requirements"][2][key] for key in ("bound", "against")] == ["at least 0.000", "base"]


def test_the_pages_show_the_verdict(place):
    write_report(report(), [], place / "report")
    assert run(["gate", "report", *PASSES, "--require", "sft.bleu>=90"], debug=True) == 1
    page, markdown = ((place / "report" / name).read_text("utf-8") for name in (PAGE, MARKDOWN))
    assert "gate failed: 2 of 3 requirements met" in page
    assert "**failed: 2 of 3 requirements met**" in markdown
    assert "| FAILED | sft.bleu&gt;=90 | sft, handbook | 41.50 | 33.25 to 52.75 | beyond noise |" in markdown
    run(["gate", "report", *PASSES], debug=True)
    assert "gate passed: 2 of 2 requirements met" in (place / "report" / PAGE).read_text("utf-8")


def test_json_is_one_line_on_stdout(place, capsys):
    assert run(["gate", "report", "--require", "sft.exact_match>=0.9", "--json"], debug=True) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert out.count("\n") == 1
    assert found["passed"] is False
    assert found["notes"] == []
    assert err == ""


def test_a_run_that_is_gone_is_a_note(place, capsys):
    (place / "runs" / "b" / "run.json").unlink()
    assert run(["gate", "report", *PASSES], debug=True) == 0
    assert "sft: the run 'b' is gone: its run got no gate.json" in capsys.readouterr().err
    assert not (place / "runs" / "b" / "gate.json").exists()


def test_the_verdict_of_a_copied_project_stays_in_the_copy(place, monkeypatch):
    (place / "runs" / "b" / "adapters.safetensors").write_bytes(b"weights")
    made = load_report(place / "report")
    made.models = [msgspec.structs.replace(one, path=str(place / "runs" / one.run)) if one.run else one for one in made.models]
    save_report(made, place / "report")
    copy = Path(shutil.copytree(place, place.with_name(f"{place.name}-copy")))
    monkeypatch.chdir(copy)
    assert run(["gate", "report", *PASSES], debug=True) == 0
    assert (copy / "runs" / "b" / "gate.json").exists()
    assert not (place / "runs" / "b" / "gate.json").exists()


def test_a_run_trained_on_since_is_left_alone(place, capsys):
    (place / "runs" / "b" / "run.json").write_text(json.dumps({"ended": "2026-11-21T11:00:00+00:00"}))
    assert run(["gate", "report", *PASSES], debug=True) == 0
    assert "was trained on since the report" in capsys.readouterr().err
    assert not (place / "runs" / "b" / "gate.json").exists()


def test_a_checkpoint_is_not_its_run(place, capsys):
    made = report()
    (place / "runs" / "b" / "checkpoints" / "step-000200").mkdir(parents=True)
    made.models[2] = ModelInfo(
        label="sft", name="run:b@200", kind="run", stage="sft", run="b", path="runs/b/checkpoints/step-000200"
    )
    save_report(made, place / "report")
    assert run(["gate", "report", *PASSES], debug=True) == 0
    assert "a checkpoint, not what run:b opens" in capsys.readouterr().err
    assert not (place / "runs" / "b" / "gate.json").exists()


SLIPS = [
    (["gate", "report"], "nothing is required"),
    (["gate", "nowhere", "--require", "sft.bleu>=1"], "no report"),
    (["gate", "report", "--require", "stf.bleu>=1"], "did you mean 'sft'?"),
    (["gate", "report", "--require", "sft.blue>=1"], "did you mean 'bleu'?"),
    (["gate", "report", "--require", "sft.bleu=1"], "character 9"),
    (["gate", "report", "--no-regression", "bpb:0", "--against", "sft"], "held against itself"),
    (["gate", "report", "--require", "sft.bleu>=1", "--against", "nobody"], "no model 'nobody'"),
    (["gate", "report", "--require", "sft.bleu>=1", "--confidence", "2"], "--confidence"),
]


@pytest.mark.parametrize(("words", "said"), SLIPS)
def test_bad_input_is_one_line_and_2_and_writes_nothing(place, capsys, words, said):
    assert run(words, debug=False) == 2
    assert said in capsys.readouterr().err
    assert not list(place.rglob("gate.json"))


def test_a_folder_that_cannot_be_written_is_told(place, capsys):
    if os.geteuid() == 0:
        (place / "report" / "gate.json").mkdir()
    else:
        (place / "report").chmod(0o500)
    assert run(["gate", "report", *PASSES], debug=False) == 2
    assert "cannot write" in capsys.readouterr().err
