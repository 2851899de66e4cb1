"""``mlxforge generate``: one answer for scripts."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

from mlxforge import CptConfig, train
from mlxforge.cli.generate import generate
from mlxforge.core.config import from_dict
from mlxforge.core.errors import ConfigError, DataError, MlxforgeError
from mlxforge.core.rows import Message
from mlxforge.models.streaming import Sampling
from mlxforge.runs.opening import open_model
from mlxforge.runs.talk import reply_to_chat

KEYS = {"model", "prompt", "text", "tokens", "prompt_tokens", "finish_reason", "tokens_per_second"}


@pytest.fixture(scope="module")
def run(documents, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    settings = {"data": [str(documents)], "runs_dir": str(runs), "name": "mill", "steps": 8, "sample_tokens": 0}
    settings |= {"learning_rate": 1e-2, "max_length": 64, "batch_tokens": 512, "warmup": 0, "lora": {"rank": 4}}
    return train(from_dict(CptConfig, settings)).path


def call(*words, stdin=None):
    return CliRunner().invoke(generate, [str(word) for word in words], input=stdin, catch_exceptions=True)


def test_one_answer_on_stdout_and_nothing_else(tmp_path):
    done = call("Hello there", "--model", "tiny", "--runs-dir", tmp_path)
    tiny = open_model("tiny", tmp_path)
    reply = reply_to_chat(tiny, [Message("user", "Hello there")], Sampling())
    assert done.stdout == "".join(text for _, text in reply) + "\n"
    assert done.stderr == ""
    piped = call("-", "--model", "tiny", stdin="Hello there\n")
    assert piped.stdout == done.stdout


def test_json_is_the_contract(tmp_path):
    done = call("Hello there", "--model", "tiny", "--json", "--max-tokens", 5)
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert set(result) == KEYS
    assert (result["model"], result["prompt"], result["tokens"], result["finish_reason"]) == (
        "tiny",
        "Hello there",
        5,
        "length",
    )
    assert done.stderr == ""
    assert json.loads(call("Hello there", "--model", "tiny", "--json").stdout)["finish_reason"] == "stop"


def test_a_cut_off_answer_is_told():
    assert "cut off after 2 tokens" in call("Hello there", "--model", "tiny", "--max-tokens", 2).stderr


def test_the_last_run_answers_by_default_and_has_learnt(run):
    learnt = call("The mill stands", "--raw", "--runs-dir", run.parent, "--max-tokens", 6)
    assert learnt.stderr.splitlines()[0] == "model: run:mill"
    assert learnt.stdout.startswith(" ")
    base = call("The mill stands", "--raw", "--model", "tiny", "--max-tokens", 6)
    assert learnt.stdout != base.stdout
    named = json.loads(call("The mill stands", "--model", "run:last", "--runs-dir", run.parent, "--json", "--raw").stdout)
    assert named["model"] == "run:mill"


def test_without_runs_tiny_answers(tmp_path):
    assert call("Hello there", "--runs-dir", tmp_path).stderr.splitlines()[0] == "model: tiny"


def test_system_prompt_stop_and_seed_reach_the_model():
    def answer(*words):
        return json.loads(call("Hello there", "--model", "tiny", "--json", *words).stdout)

    plain = answer()
    assert answer("--system", "Be brief.")["prompt_tokens"] > plain["prompt_tokens"]
    assert answer("--stop", plain["text"][6:9])["text"] == plain["text"][:6]
    hot = ("--temperature", 2, "--max-tokens", 12, "--seed", 3)
    assert answer(*hot)["text"] == answer(*hot)["text"] != plain["text"]
    assert answer(*hot, "--top-p", 0.0001)["text"] == answer("--max-tokens", 12)["text"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("",), "the prompt is empty"),
        (("hi", "--raw", "--system", "x"), "--raw takes no system prompt"),
        (("hi", "--stop", ""), "an empty text"),
        (("mill " * 3000,), "2,048 positions"),
        (("hi", "-m", "./none"), "no such model"),
        (("hi", "-m", "run:none"), "no runs here"),
    ],
)
def test_mistakes_are_one_line(words, told, tmp_path):
    done = call(*words, "--runs-dir", tmp_path, *(() if "-m" in words else ("--model", "tiny")))
    assert isinstance(done.exception, MlxforgeError)
    assert told in str(done.exception)
    assert "\n" not in str(done.exception)
    assert done.stdout == ""


def test_stdin_that_is_not_utf8():
    error = call("-", "--model", "tiny", stdin=b"gr\xfc\xdfe").exception
    assert isinstance(error, DataError)
    assert str(error).startswith("stdin: not UTF-8 at byte 2")


def test_a_run_with_its_base_gone_is_told(run, tmp_path):
    copy = tmp_path / "runs" / "gone"
    shutil.copytree(run, copy, symlinks=True)
    record = json.loads((copy / "run.json").read_text()) | {"model": "/nowhere/model"}
    record["lineage"]["model"]["name"] = "/nowhere/model"
    (copy / "run.json").write_text(json.dumps(record))
    error = call("hi", "--model", "run:gone", "--runs-dir", tmp_path / "runs").exception
    assert isinstance(error, MlxforgeError)
    assert "/nowhere/model" in str(error)
    assert not isinstance(error, ConfigError)
