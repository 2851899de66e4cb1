"""A GGUF file as a subject: what llama.cpp gives is what MLX gives of the same model."""

from __future__ import annotations

import pytest

from mlxforge.core.errors import ConfigError
from mlxforge.core.rows import Chat, Message
from mlxforge.export.llama import LlamaFailed
from mlxforge.export.llama_scores import LlamaScores
from mlxforge.models.tiny import make_tiny
from mlxforge.runs.eval_job import EvalSettings
from mlxforge.runs.eval_sets import Spec, read_set
from mlxforge.runs.evaluate import evaluate
from mlxforge.runs.export_gguf import export_gguf
from mlxforge.runs.opening import Base
from mlxforge.runs.passages import passages
from mlxforge.runs.subject import Asked
from mlxforge.runs.subjects import info_of, name_models, open_subject

pytest.importorskip("xllamacpp")
TEXT = "The mill stands by the river. " * 60 + "\n\nÜber 12 Größen — 你好 😀.\n"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    export_gguf(Base("tiny"), path, ["f16"], verify=False)
    return path


@pytest.fixture(scope="module")
def both(file):
    """The same model in MLX and in llama.cpp."""
    mlx, gguf = name_models(["mlx=tiny", str(file)], None)
    with open_subject(mlx, info_of(mlx), window=64) as one, open_subject(gguf, info_of(gguf), window=64) as other:
        yield one, other


def test_texts_have_the_same_tokens_windows_and_likelihood(both):
    (_, one), (_, other) = (next(iter(subject.likelihoods([passages(TEXT)]))) for subject in both)
    assert [(part.tokens, part.bytes) for part in other] == [(part.tokens, part.bytes) for part in one]
    assert [part.nats for part in other] == pytest.approx([part.nats for part in one], rel=2e-3)


def test_continuations_are_the_same_to_the_end_of_the_turn(both):
    answers = tuple((Message("assistant", text),) for text in ("By the river.", "On the hill.\nFar away."))
    asked = [Asked((Message("system", "Be brief."), Message("user", "Where?")), answers)]
    (_, one), (_, other) = (next(iter(subject.continuations(asked))) for subject in both)
    assert [(part.tokens, part.bytes) for part in other] == [(part.tokens, part.bytes) for part in one]
    assert [part.nats for part in other] == pytest.approx([part.nats for part in one], rel=2e-3)


def test_answers_are_the_same(both):
    asked = [row.prompt for row in read_set(Spec("q", "sample:handbook/questions.test.jsonl"), limit=8).rows]
    one, other = (dict(subject.answers(asked, 24)) for subject in both)
    assert one == other


def test_its_log_probabilities_are_those_of_its_server(both):
    _, gguf = both
    assert gguf.no_likelihood == ""
    ids = [1, *gguf.llama.tokenize("The mill stands by the river, and its wheel turns.")]
    found = gguf.scores.log_probs(ids)
    for place in (1, 5, len(ids) - 1):
        tokens, values = gguf.llama.logprobs(ids[:place], 2048)
        assert found[place - 1] == pytest.approx(dict(zip(tokens.tolist(), values.tolist(), strict=True))[ids[place]], abs=0.02)


def test_more_than_a_batch_is_read_as_one_sequence(file, both):
    _, gguf = both
    ids = [1, *gguf.llama.tokenize(TEXT)]
    assert len(ids) > 300
    whole = gguf.scores.log_probs(ids)
    assert len(whole) == len(ids) - 1
    assert gguf.scores.log_probs(ids[:200]) == pytest.approx(whole[:199], abs=0.05)
    with LlamaScores(file, 64) as small, pytest.raises(LlamaFailed, match="the window has 64"):
        small.log_probs(ids)


def test_it_is_timed_and_a_long_prompt_has_an_empty_answer(both):
    _, gguf = both
    timing = gguf.timed(Chat((Message("user", "Where?"),)), 8)
    assert 0 < timing.first_s <= timing.total_s
    ((_, empty),) = gguf.answers([Chat((Message("user", "word " * 5000),))], 8)
    assert (empty.text, empty.finish) == ("", "length")


def test_it_stands_beside_other_models_and_is_compared_in_perplexity_where_tokens_are_the_same(file, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    given = {"data": [str(tmp_path / "a.txt")], "retention": "", "metrics": ["perplexity", "peak_memory"]}
    report = evaluate(EvalSettings(models=[f"gguf={file}", "tiny"], output=tmp_path / "r", **given))
    one, other = (report.results[label]["a"]["perplexity"].value for label in ("gguf", "tiny"))
    assert one == pytest.approx(other, rel=2e-3)
    assert report.models[0].kind == report.models[0].stage == "gguf"
    assert "llama.cpp" in report.results["gguf"]["a"]["peak_memory"].why
    stranger = make_tiny("llama3", tmp_path / "stranger")
    with pytest.raises(ConfigError, match="different tokenizers"):
        evaluate(EvalSettings(models=[str(file), str(stranger)], output=tmp_path / "r2", **given))


def test_what_is_no_gguf_file_is_told(tmp_path):
    from mlxforge.core.errors import MlxforgeError

    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(40))
    (tmp_path / "a.txt").write_text(TEXT)
    models = ["tiny", str(tmp_path / "broken.gguf")]
    heard = []
    with pytest.raises(MlxforgeError, match=r"broken\.gguf") as refused:
        evaluate(
            EvalSettings(models=models, data=[str(tmp_path / "a.txt")], metrics=["bpb"], output=tmp_path / "r"), heard.append
        )
    assert refused.value.exit_code == 2
    assert not heard  # before the first model is asked
    assert not (tmp_path / "r").exists()
