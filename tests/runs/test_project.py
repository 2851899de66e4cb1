"""forge.yaml: settings by stage in the house's layers, and every mistake by its line."""

from __future__ import annotations

import pytest

from mlxforge.core.errors import ConfigError
from mlxforge.core.settings import CptConfig, SftConfig
from mlxforge.runs.pipeline_order import Road
from mlxforge.runs.project import find_project, read_project
from mlxforge.runs.stages import STAGES


def project(tmp_path, text):
    file = tmp_path / "forge.yaml"
    file.write_text(text)
    return read_project(file)


def lines(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        Road(project(tmp_path, text), STAGES)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def order(tmp_path, text):
    return [step.label for step in Road(project(tmp_path, text), STAGES).steps]


def test_a_stage_overlays_its_preset_which_overlays_the_project(tmp_path):
    text = "seed: 7\nretention: notes.txt\ncpt:\n  preset: handbook-cpt\n  epochs: 3\n  lora: {rank: 4}\nsft: {seed: 1}\n"
    read = project(tmp_path, text)
    cpt, sft = read.job("cpt"), read.job("sft")
    assert isinstance(cpt, CptConfig)
    assert isinstance(sft, SftConfig)
    assert (cpt.seed, cpt.epochs, cpt.learning_rate, cpt.lora.rank) == (7, 3.0, 0.004, 4)
    assert cpt.retention == "sample:general/retention.txt"  # the preset's
    assert (sft.seed, sft.retention) == (1, str(tmp_path / "notes.txt"))


def test_paths_are_meant_from_the_project_and_samples_stay(tmp_path):
    read = project(tmp_path, "cpt: {data: [notes, /abs/x.txt, 'sample:handbook/documents', hub:a/b], valid: held.txt}\n")
    job = read.job("cpt")
    assert job.data == [str(tmp_path / "notes"), "/abs/x.txt", "sample:handbook/documents", "hub:a/b"]
    assert job.valid == str(tmp_path / "held.txt")
    assert job.runs_dir == str(tmp_path / "runs")


def test_variants_overlay_their_stage(tmp_path):
    varied = "variants:\n    - {name: formal, lora: {rank: 2}}\n    - {name: casual, epochs: 5}\n"
    found = project(tmp_path, f"sft:\n  data: [a.jsonl]\n  epochs: 2\n  {varied}").variants
    assert [(name, one.epochs, one.lora.rank) for name, one in found.items()] == [("formal", 2, 2), ("casual", 5, 32)]


MISTAKES = {
    "modle: tiny\ncpt:\n": "forge.yaml:1: unknown stage or setting 'modle' (did you mean 'model'?)",
    "stf:\n  epochs: 2\ncpt:\n": "forge.yaml:1: unknown stage or setting 'stf' (did you mean 'sft'?)",
    "cpt:\n  epoch: 2\n": "forge.yaml:2: unknown setting 'epoch' (did you mean 'epochs'?)",
    "sft:\n  variants:\n    - name: a\n      lora:\n        rnak: 2\n": (
        "forge.yaml:5: unknown setting 'lora.rnak' (did you mean 'lora.rank'?)"
    ),
    "sft:\n  variants:\n    - epochs: 2\n": ("forge.yaml:3: variant 1 of sft needs a name of letters, digits, '-' and '_'"),
    "sft:\n  variants: [formal]\n": ("forge.yaml:2: variants: a list of mappings with names: - {name: formal, epochs: 2}"),
    "dpo: {beta: -1}\n": "forge.yaml:1: beta: -1: expected float > 0.0",
    "cpt: 3\n": "forge.yaml:1: cpt: a stage is a mapping of settings",
    "cpt:\n  name: x\n": "forge.yaml:2: name is the project's: write it at the top of the file",
    "dpo: {}\norpo: {}\n": "forge.yaml:2: dpo and orpo: a project has one of dpo, orpo, simpo, cpo, kto",
    "cpt:\ngate:\n  require: [a.b>=1]\n": (
        "forge.yaml:2: gate holds the report of eval to something, but there is no stage eval"
    ),
    "cpt:\n  preset: handbook-spt\n": (
        "forge.yaml:2: preset: handbook-spt: cannot read the config: No such file or directory (did you mean 'handbook-sft'?)"
    ),
    "name: ../x\ncpt:\n": "forge.yaml:1: name: '../x' is no name for a project (letters, digits, '-' and '_')",
    "cpt:\n  after: [cpt]\n": "forge.yaml:2: cpt waits for itself (leave it out)",
    "cpt:\n  takes: cpt\n": "forge.yaml:2: cpt takes its own model (leave it out)",
    "sft:\n  takes: cptt\ncpt:\n": "forge.yaml:2: sft takes 'cptt', which trains nothing here (did you mean 'cpt'?)",
    "sft:\n  after: [ingst]\ningest:\n": (
        "forge.yaml:2: sft waits for 'ingst', which is no stage here (did you mean 'ingest'?)"
    ),
    "sft:\ndpo:\n  variants: [formal]\n": "forge.yaml:3: 'formal' is no variant of sft (sft has no variants)",
    "cpt:\n  takes: sft\nsft:\n  takes: cpt\n": (
        "forge.yaml:2: stages wait for each other in a circle: cpt -> sft -> cpt (change takes, after or data of one)"
    ),
    "synth: {kind: commands, after: [sft]}\nsft: {data: [data/commands/train.jsonl]}\n": (
        "forge.yaml:1: stages wait for each other in a circle: synth -> sft -> synth (change takes, after or data of one)"
    ),
}


@pytest.mark.parametrize("text", MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_told_by_its_line_with_the_fix(tmp_path, text):
    assert lines(tmp_path, text) == [MISTAKES[text]]


def test_all_mistakes_are_told_at_once(tmp_path):
    assert len(lines(tmp_path, "modle: x\ncpt:\n  epoch: 2\n  seed: -1\nsft: 4\n")) == 4


def test_no_project_file_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"forge.yaml: no such project file \(make a project: mlxforge init NAME\)"):
        find_project(None)


ALL = "export:\nverify:\nfuse:\neval: {data: [x]}\ndpo:\npairs:\nsft:\nsynth:\ncpt:\ningest:\n"


def test_stages_run_in_their_own_order_however_the_file_has_them(tmp_path):
    assert order(tmp_path, ALL) == ["ingest", "cpt", "synth", "sft", "pairs", "dpo", "eval", "fuse", "export", "verify"]


def test_takes_after_and_data_change_the_order(tmp_path):
    before = "cpt: {takes: sft, data: [x]}\nsft: {data: [y]}\n"  # instructions before documents, arXiv 2402.12847
    assert order(tmp_path, before) == ["sft", "cpt"]
    assert order(tmp_path, "cpt: {data: [x], after: [synth]}\nsynth: {kb: k.sqlite}\n") == ["synth", "cpt"]
    assert order(tmp_path, "cpt: {data: [data/synth.jsonl]}\nsynth: {kb: k.sqlite}\n") == ["synth", "cpt"]
    compared = "cpt: {data: [x]}\neval: {data: [x], models: [base, cpt, export]}\nexport: {}\n"
    assert order(tmp_path, compared) == ["cpt", "export", "eval"]


def test_stages_after_variants_run_for_each_or_for_those_named(tmp_path):
    varied = "cpt: {data: [x]}\nsft:\n  data: [y]\n  variants: [{name: a}, {name: b}]\n"
    text = varied + "pairs:\ndpo: {variants: [b]}\nexport:\nverify:\neval: {data: [y]}\n"
    steps = order(tmp_path, text)
    assert steps == ["cpt", "sft:a", "sft:b", "pairs:a", "pairs:b", "dpo:b", "eval", "export:b", "verify:b"]


def test_each_step_takes_the_model_of_its_own_variant(tmp_path):
    varied = "cpt: {data: [x]}\nsft:\n  data: [y]\n  variants: [{name: a}, {name: b}]\n"
    road = Road(project(tmp_path, f"name: p\n{varied}dpo: {{data: [z]}}\nfuse: {{takes: cpt}}\n"), STAGES)
    models = {step.label: road.model(step).rpartition("/")[2] for step in road.steps}
    assert models == {
        "cpt": "tiny",
        "sft:a": "p-cpt",
        "sft:b": "p-cpt",
        "dpo:a": "p-sft-a",
        "dpo:b": "p-sft-b",
        "fuse": "p-cpt",
    }
