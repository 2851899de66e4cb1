"""``mlxforge fuse`` as a user runs it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from mlxforge import CptConfig, train
from mlxforge.cli.fuse import fuse
from mlxforge.core.config import from_dict
from mlxforge.core.errors import ConfigError, ModelError, RunError
from mlxforge.runs.opening import Base, open_model, subject


@pytest.fixture(scope="module")
def run(documents, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    settings = {"data": [str(documents)], "runs_dir": str(runs), "name": "mill", "steps": 2, "sample_tokens": 0}
    settings |= {"max_length": 64, "batch_tokens": 256, "warmup": 0, "lora": {"rank": 4}}
    return train(from_dict(CptConfig, settings)).path


def call(*words):
    return CliRunner().invoke(fuse, [str(word) for word in words], catch_exceptions=True)


def test_a_run_becomes_a_model_folder(run, tmp_path):
    done = call("mill", "--runs-dir", run.parent, "-o", tmp_path / "fused", "--json")
    result = json.loads(done.stdout)
    assert (result["kind"], result["shards"]) == ("lora", 1)
    names = {file.name for file in (tmp_path / "fused").iterdir()}
    assert {"config.json", "tokenizer.json", "generation_config.json", "model.safetensors", "README.md"} <= names
    card = (tmp_path / "fused" / "README.md").read_text()
    lineage = json.loads((run / "run.json").read_text())["lineage"]
    assert "# mill" in card
    assert str(lineage["seed"]) in card
    assert open_model(str(tmp_path / "fused"), tmp_path).loaded.path == tmp_path / "fused"


def test_the_result_says_what_where_and_what_next(run, tmp_path):
    done = call("--model", "tiny", "--adapter", run, "-o", tmp_path / "of it")
    assert "lora over tiny, 21 of 29 tensors changed; 1 file, 4.6 MB, weights as the base's" in done.stdout
    assert f"next: mlxforge chat --model '{tmp_path}/of it'" in done.stdout
    assert f"mlxforge export gguf '{tmp_path}/of it' -o 'of it.gguf'" in done.stdout
    assert "writing the model" in done.stderr
    # The adapter names its base.
    assert call("--adapter", run, "-o", tmp_path / "alone").exit_code == 0
    assert (tmp_path / "alone" / "model.safetensors").read_bytes() == (tmp_path / "of it" / "model.safetensors").read_bytes()


def test_what_is_wrong_is_said(run, tmp_path):
    runs = ("--runs-dir", run.parent)
    for words, kind, said in (
        ((), ConfigError, "nothing is named"),
        (("mill", "--model", "tiny"), ConfigError, "two things"),
        (("tiny",), ModelError, "no adapter to merge"),
        (("mil", *runs), RunError, "did you mean 'mill'"),
        (("./nothing",), ModelError, "not a folder here"),
        (("--model", "tiny", "--adapter", tmp_path), ModelError, "no adapter_config.json"),
        (("--model", "tiny", "--adapter", tmp_path / "no"), ModelError, "no such adapter folder"),
        (("--model", run, "--adapter", run), ModelError, "not a base"),
        (("mill", *runs, "--requantize"), ConfigError, "not packed"),
    ):
        done = call(*words, "-o", tmp_path / "x")
        assert isinstance(done.exception, kind), words
        assert said in str(done.exception)
    assert not (tmp_path / "x").exists()


def test_a_subject_is_a_run_a_model_or_an_adapter_over_one(run, tmp_path):
    runs = run.parent
    assert subject("mill", None, None, runs) == subject("last", None, (), runs) == subject("run:mill", None, None, runs)
    assert subject(str(run), None, None, tmp_path) == Base("tiny", run, run)
    assert subject("tiny", None, None, runs) == subject(None, "tiny", None, runs) == Base("tiny")
    assert subject("some/one", None, None, runs) == Base("some/one")
    assert subject(None, "tiny", run, runs) == subject(None, None, [run], runs) == Base("tiny", run, run)
    both = subject(None, "tiny", [run, run], runs)
    assert both.adapters == (run, run)
