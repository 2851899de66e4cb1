"""``mlxforge pipeline`` as a user calls it: never started by accident, its result for people and for programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlxforge.cli.main import run

FORGE = """
name: p
ingest:
cpt: {max_length: 64, batch_tokens: 256, sample_tokens: 0, steps: 2, lora: {rank: 2, alpha: 4}}
"""


@pytest.fixture
def project(documents, tmp_path, monkeypatch):
    (tmp_path / "documents").symlink_to(documents)
    (tmp_path / "forge.yaml").write_text(FORGE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys, *words):
    code = run(list(words), debug=False)
    found = capsys.readouterr()
    return code, found.out, found.err


def test_without_a_terminal_it_goes_on_only_with_yes(project, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mlxforge", "pipeline"])
    code, out, error = call(capsys, "pipeline")
    assert code == 2
    assert "not done yet" in out
    assert error == "error: 2 stages are to be done, and nobody is there to ask (to do them: mlxforge pipeline --yes)\n"
    assert not (project / ".forge").exists()


def test_the_plan_as_json_has_forecasts_and_writes_nothing(project, capsys):
    code, out, _ = call(capsys, "pipeline", "--dry-run", "--json")
    ingest, cpt = json.loads(out)["stages"]
    assert (code, ingest["stage"], ingest["action"], ingest["why"]) == (0, "ingest", "run", "not done yet")
    assert ingest["forecast"]["tokens"] > 0
    assert (cpt["forecast"]["why"], cpt["forecast"]["rough"]) == ("", False)
    assert min(cpt["forecast"]["tokens"], cpt["forecast"]["memory"], cpt["forecast"]["disk"]) > 0
    assert sorted(path.name for path in project.iterdir()) == ["documents", "forge.yaml"]


SYNTH = "synth: {provider: openai, url: 'http://127.0.0.1:9/v1', model: m, price_in: 1, price_out: 2}\n"
TRAINED = "{max_length: 64, batch_tokens: 256, sample_tokens: 0, epochs: 2, lora: {rank: 2, alpha: 4}}"


def test_what_a_former_stage_makes_is_estimated_and_marked(project, capsys):
    (project / "forge.yaml").write_text(f"{FORGE}{SYNTH}sft: {TRAINED}\npairs: {{limit: 8}}\norpo: {TRAINED}\n")
    code, out, error = call(capsys, "pipeline", "--dry-run", "--json")
    assert code == 0, error
    found = {one["stage"]: one["forecast"] for one in json.loads(out)["stages"]}
    assert found["synth"]["cost"] > 0 < found["synth"]["tokens"]
    for stage, data in (("sft", "synth"), ("orpo", "pairs")):
        assert (found[stage]["rough"], found[stage]["why"]) == (True, f"more known after {data}")
        assert min(found[stage][key] for key in ("tokens", "steps", "seconds", "memory", "disk")) > 0
    assert found["orpo"]["tokens"] < found["sft"]["tokens"]  # eight pairs
    assert sorted(path.name for path in project.iterdir()) == ["documents", "forge.yaml"]
    assert "~" in call(capsys, "pipeline", "--dry-run")[1]


def test_tokens_of_a_plan_count_replay_as_the_run_does(project, capsys):
    file = project / "forge.yaml"
    file.write_text(FORGE.replace("steps: 2", "epochs: 1, replay: ['sample:general/replay.jsonl'], replay_ratio: 0.3"))
    _, out, _ = call(capsys, "pipeline", "--dry-run", "--json")
    said = json.loads(out)["stages"][1]["forecast"]["tokens"]
    _, out, _ = call(capsys, "pipeline", "--yes", "--json")
    assert said == pytest.approx(json.loads(out)["stages"][1]["tokens"], rel=0.03)


def test_a_pipeline_from_its_plan_to_its_end(project, capsys):
    code, out, error = call(capsys, "pipeline", "--yes", "--json")
    found = json.loads(out)
    assert (code, [one["stage"] for one in found["stages"]], found["ships"]) == (0, ["ingest", "cpt"], None)
    assert "✓ ingest  ▸ cpt" in error
    code, out, _ = call(capsys, "pipeline", "--only", "cpt", "--dry-run", "--json")
    forecast = json.loads(out)["stages"][1]["forecast"]
    assert code == 0
    assert forecast["steps"] == 2
    assert forecast["why"] == ""
    code, out, _ = call(capsys, "pipeline")  # nothing to be done: no question, no --yes
    assert code == 0
    assert "✓ cpt" in out
    code, out, _ = call(capsys, "runs", "watch", str(project), "--plain")
    assert code == 0
    assert "p-cpt finished" in out


def test_a_full_disk_is_told_before_anything_runs(project, capsys, monkeypatch):
    monkeypatch.setattr("mlxforge.runs.pipeline_forecast.free_space", lambda _: 1000)
    code, _, error = call(capsys, "pipeline", "--yes")
    assert code == 2
    assert "MB will be written, 0 MB are free (free space, or set runs_dir and exports to another disk)" in error
    assert not (project / ".forge").exists()


def test_documents_without_text_are_one_line(project, capsys):
    (project / "empty.txt").touch()
    (project / "forge.yaml").write_text(FORGE.replace("ingest:", "ingest: {documents: [empty.txt]}"))
    assert call(capsys, "pipeline", "--dry-run")[0] == 0
    code, _, error = call(capsys, "pipeline", "--yes")
    assert code == 2
    assert "no document could be read" in error.splitlines()[-1]


def test_both_from_and_only_are_refused(project, capsys):
    assert call(capsys, "pipeline", "--from", "cpt", "--only", "cpt")[0] == 2


@pytest.mark.slow
def test_the_whole_road_on_the_shipped_handbook(tmp_path):
    """What ``make pipeline`` does: each stage gains what it is for, and the result ships."""
    forge = [str(Path(sys.executable).parent / "mlxforge")]
    environment = os.environ | {"MLXFORGE_CACHE": str(tmp_path / "cache")}
    subprocess.run([*forge, "init", "hb", "--example", "handbook"], cwd=tmp_path, check=True)
    command = [*forge, "pipeline", "hb", "--yes", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    gains = {one["stage"]: {gain["name"]: gain for gain in one["gains"]} for one in found["stages"]}
    assert gains["cpt"]["valid bpb"]["after"] < 0.8 * gains["cpt"]["valid bpb"]["before"]
    assert gains["sft"]["exact_match"]["after"] > 0.6 > 0.1 > gains["sft"]["exact_match"]["before"]
    assert gains["dpo"]["preference_accuracy"]["after"] > 0.8
    assert all(gains[stage]["retention bpb"]["after"] < 0.6 for stage in ("cpt", "sft", "dpo"))
    report = json.loads((tmp_path / "hb" / "exports" / "report" / "report.json").read_text())
    for label in ("cpt", "sft", "dpo"):  # read as training read it: one figure, not two
        forgotten = gains[label]["retention bpb"]["after"]
        assert report["results"][label]["retention"]["bpb"]["value"] == pytest.approx(forgotten, rel=1e-3)
    raw = {label: report["results"][label]["pairs"]["preference_accuracy"]["value"] for label in ("sft", "dpo")}
    assert raw["dpo"] > raw["sft"]
    assert found["ships"] is True
    assert (tmp_path / found["report"]).stat().st_size > 10_000
    verified = json.loads((tmp_path / "hb" / "exports" / "hb.q8_0.report.json").read_text())
    assert verified["passed"] is True
