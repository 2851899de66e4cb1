"""llama.cpp in a process of its own: what it answers, and how it fails."""

from __future__ import annotations

import http.client
import os
import signal

import numpy as np
import pytest

from mlxforge.core.errors import MissingExtraError
from mlxforge.core.rows import Message
from mlxforge.export import llama as llama_module
from mlxforge.export.llama import LlamaCpp, LlamaFailed
from mlxforge.models.tiny import make_tiny
from mlxforge.runs.export_gguf import export_gguf
from mlxforge.runs.opening import Base
from mlxforge.runs.verify import material

pytest.importorskip("xllamacpp")
TALK = [{"role": "user", "content": "Hm? 12345"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return Base(str(make_tiny("llama3", tmp_path_factory.mktemp("base") / "tiny")))


@pytest.fixture(scope="module")
def file(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("llama") / "with space.gguf"
    export_gguf(base, path, ["f16"], verify=False)
    return path


@pytest.fixture(scope="module")
def llama(file):
    with LlamaCpp(file) as opened:
        yield opened


def test_special_tokens_and_bos_are_asked_for(llama, base):
    codec = material(base).template.codec
    end = codec.added["<|eot_id|>"]
    assert llama.tokenize("Hm? 12345<|eot_id|>", special=True) == codec.encode("Hm? 12345<|eot_id|>")[0]
    assert llama.tokenize("<|eot_id|>", special=True) == [end]
    assert end not in llama.tokenize("<|eot_id|>")
    assert llama.info["n_vocab"] == 512


def test_chats_are_those_of_the_files_own_template(llama, base):
    template = material(base).template
    messages = (Message("user", "Hm? 12345"),)
    assert llama.chat_prompt(TALK) == template.render(messages, generation=True)
    assert llama.chat_ids(TALK) == template.prompt(messages)


def test_log_probabilities_are_of_the_whole_vocabulary(llama):
    ids, values = llama.logprobs([40, 41, 42], 512)
    assert sorted(ids) == list(range(512))
    assert np.all(np.diff(values) <= 0)
    assert np.exp(values.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)
    few, _ = llama.logprobs([40, 41, 42], 3)
    assert few.tolist() == ids[:3].tolist()


def test_greedy_takes_the_most_likely_each_time(llama):
    ids = [40, 41, 42]
    for token in llama.greedy([40, 41, 42], 6):
        assert token == llama.logprobs(ids, 1)[0][0]
        ids.append(token)
    assert len(ids) == 9


def test_generation_stops_at_the_ends_alone(llama, base):
    template = material(base).template
    assert {token for token in range(16) if llama.stops_at([40, 41], token)} == set(template.stop)


def test_nobody_else_is_answered(llama):
    connection = http.client.HTTPConnection(llama._connection.host, llama._connection.port, timeout=10)
    connection.request("POST", "/tokenize", '{"content": "a"}', {"Content-Type": "application/json"})
    assert connection.getresponse().status == 401
    assert llama._connection.host == "127.0.0.1"


def test_a_refused_request_says_why(llama):
    with pytest.raises(LlamaFailed, match="refuses /completion"):
        llama.ask("/completion", {"prompt": [10**6]})
    assert llama.tokenize("a")


def test_a_file_that_does_not_load_fails_with_the_reason(file, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(LlamaFailed, match=r"cannot open the file: tensor '.*' data is not within the file bounds") as failed:
        LlamaCpp(cut).__enter__()
    assert "\n" not in str(failed.value)


def test_a_process_that_dies_fails_and_none_is_left(file):
    with LlamaCpp(file) as opened:
        process = opened._process
        os.kill(process.pid, signal.SIGABRT)
        process.wait(20)
        with pytest.raises(LlamaFailed, match="killed by signal 6"):
            opened.tokenize("a")
    assert process.poll() is not None
    with LlamaCpp(file) as opened:
        process = opened._process
    assert process.poll() is not None


def test_an_answer_that_takes_too_long_fails(file):
    with LlamaCpp(file) as opened:
        os.kill(opened._process.pid, signal.SIGSTOP)
        os.waitpid(opened._process.pid, os.WUNTRACED)  # until it has stopped
        opened._connection.timeout = opened.timeout = 0.2
        with pytest.raises(LlamaFailed, match=r"did not answer /tokenize in 0\.2 s"):
            opened.tokenize("a")


def test_without_the_extra_the_fix_is_named(file, monkeypatch):
    monkeypatch.setattr(llama_module, "available", lambda: False)
    with pytest.raises(MissingExtraError, match=r"pip install 'mlxforge\[gguf\]'"):
        LlamaCpp(file)
    assert llama_module.version() == ""
