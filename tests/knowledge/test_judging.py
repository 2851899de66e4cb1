"""A judge over the answers of an evaluation: both orders, ties, points, what it costs, and what becomes of it when it fails."""

from __future__ import annotations

import json
import re
import socket
from contextlib import nullcontext

import numpy as np
import pytest
from writer_server import writer

from mlxforge.cli.main import run
from mlxforge.core.errors import ConfigError, Interrupted, MlxforgeError, RunFailed
from mlxforge.core.events import Progress
from mlxforge.evals.graded import Graded
from mlxforge.evals.judged import cell, kappa
from mlxforge.evals.metrics import METRICS, column, value
from mlxforge.evals.report import load_report
from mlxforge.knowledge.asked import CostReached, ProviderSettings
from mlxforge.models.tiny import make_tiny
from mlxforge.runs.eval_job import EvalSettings, JudgeSettings, prepare
from mlxforge.runs.judging import Judge, _by_chance, judge_answers

QUESTIONS = [("Where is the mill?", "By the river."), ("Who keeps it?", "Cora Vane."), ("What is green?", "The gate.")]


def inside(prompt, tag):
    return re.search(rf"<{tag}>\n(.*?)\n</{tag}>", prompt, re.DOTALL)[1]


def longer(messages):
    """Prefers the longer answer, wherever it stands; points by length."""
    prompt = messages[-1]["content"]
    if "<answer>" in prompt:
        return json.dumps({"reason": "By length.", "score": min(5, 1 + len(inside(prompt, "answer")) // 5)})
    one, other = len(inside(prompt, "answer-a")), len(inside(prompt, "answer-b"))
    return json.dumps({"reason": "By length.", "better": "tie" if one == other else "A" if one > other else "B"})


def first_one(messages):
    """Prefers what stands first."""
    scored = "<answer>" in messages[-1]["content"]
    return json.dumps({"reason": "As I like.", **({"score": 3} if scored else {"better": "A"})})


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXFORGE_CACHE", str(tmp_path / "cache"))


def questions(tmp_path):
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in QUESTIONS]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "q.jsonl")


def judged(tmp_path, write, answers, *, server=None, max_cost=0.0, prices=(0.0, 0.0), **options):
    """(job, what stopped the judge, messages it was asked) where models answered so: label -> an answer to each question."""
    with nullcontext(server) if server else writer(write) as asked:
        reached = ProviderSettings(url=asked.url, concurrency=1, price_in=prices[0], price_out=prices[1])
        given = JudgeSettings(provider="openai", reached=reached, max_cost=max_cost)
        models = [f"{label}=tiny" for label in answers]
        job = prepare(EvalSettings(models=models, data=[questions(tmp_path)], retention="", judge=given, **options))
        for label, said in answers.items():
            rows = [Graded(answer=text, references=(right,)) for text, (_, right) in zip(said, QUESTIONS, strict=True)]
            job.graded[label] = {"q": rows}
        asked.judge = Judge(given, job.settings.prompts, job.settings.runs_dir)
        return job, judge_answers(job, asked.judge), asked.asked


def of(job, label, name):
    return [getattr(row, name) for row in job.graded[label]["q"]]


def test_the_better_answer_wins_in_both_orders(tmp_path):
    answers = {"one": ["river", "A miller, I think.", "same"], "two": ["By the river.", "Cora", "same"]}
    job, stopped, asked = judged(tmp_path, longer, answers)
    assert stopped is None
    assert of(job, "one", "win") == [None, None, None]
    assert of(job, "two", "win") == [1.0, 0.0, 0.5]
    assert of(job, "one", "rubric") == [2.0, 4.0, 1.0]
    assert of(job, "two", "rubric") == [3.0, 1.0, 1.0]
    # Equal answers are compared by nobody, and equal questions are asked once: 5 of points, 4 of order.
    assert len(asked) == 9
    assert any(
        "two against one: 1 won, 1 lost, 1 tied, p=1.000 (1 equal answers, 0 verdicts that changed" in n for n in job.notes
    )
    # The models the other way round: what was won is lost.
    turned, *_ = judged(tmp_path, longer, dict(reversed(answers.items())))
    assert [1 - win for win in of(turned, "one", "win")] == of(job, "two", "win")


def test_a_verdict_that_changes_with_the_order_is_a_tie(tmp_path):
    job, _, asked = judged(tmp_path, first_one, {"one": ["a", "b", "c"], "two": ["aa", "bb", "cc"]})
    assert of(job, "two", "win") == [0.5, 0.5, 0.5]
    assert of(job, "two", "rubric") == [3.0, 3.0, 3.0]
    assert len(asked) == 12
    assert any("3 verdicts that changed with the order" in note for note in job.notes)
    said = job.judged["two", "q", 0]
    assert said["as answer A"]["better"] == said["as answer B"]["better"] == "A"


def test_one_tie_of_two_is_a_tie(tmp_path):
    def half(messages):
        prompt = messages[-1]["content"]
        sure = "<answer>" not in prompt and inside(prompt, "answer-a") == "first"
        return json.dumps(
            {"reason": "So.", "score": 2} if "<answer>" in prompt else {"reason": "So.", "better": "A" if sure else "tie"}
        )

    job, *_ = judged(tmp_path, half, {"one": ["first"] * 3, "two": ["other"] * 3})
    assert of(job, "two", "win") == [0.5] * 3


def test_the_judge_sees_question_reference_and_answers_and_a_prompt_of_ones_own_replaces_the_shipped_one(tmp_path):
    _, _, asked = judged(tmp_path, longer, {"one": ["", "x", "y"], "two": ["Far away.", "x", "y"]})
    (forth,) = [m[-1]["content"] for m in asked if "<answer-b>\nFar away." in m[-1]["content"]]
    assert inside(forth, "conversation") == "[user]\nWhere is the mill?"
    assert inside(forth, "right-answer") == "By the river."
    assert inside(forth, "answer-a") == "(none)"
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "rubric.md").write_text("Points for <answer>\n{answer}\n</answer> to {conversation}")
    _, _, asked = judged(tmp_path, longer, {"one": ["a", "b", "c"]}, prompts=folder)
    assert next(m[-1]["content"] for m in asked) == "Points for <answer>\na\n</answer> to [user]\nWhere is the mill?"


def test_agreement_with_exact_match(tmp_path):
    """Two of three right by word; the judge finds two of three right, one of them the same."""
    answers = {"one": ["by the river", "Cora Vane", "A very long answer, all wrong."]}
    job, *_ = judged(tmp_path, longer, answers)
    rows = job.graded["one"]["q"]
    assert of(job, "one", "rubric") == [3.0, 2.0, 5.0]
    assert value(column(METRICS["judge_agreement"], rows)).value == 0.0
    assert value(column(METRICS["judge_kappa"], rows)).value == pytest.approx(-0.8)  # (0 - 4/9) / (1 - 4/9)
    pairs, *_ = judged(tmp_path, longer, {"one": ["nowhere", "Cora Vane", "x"], "two": ["By the river.", "C", "y"]})
    told = "; of 2 that exact match tells apart it prefers the right one in 2; kappa over all 1.00"
    assert any(note.endswith(told) for note in pairs.notes)


def test_the_sign_test_done_by_hand():
    """Of five, none or all: 2 ways of 32. Of four, one or fewer or three or more: 10 of 16. Nothing won or lost is no news."""
    assert (_by_chance(5, 0), _by_chance(1, 3), _by_chance(0, 0), _by_chance(2, 2)) == (2 / 32, 10 / 16, 1, 1)


def test_kappa_of_a_table_done_by_hand():
    """20 both yes, 5 only one, 10 only the other, 15 both no: observed .7, expected .5, so kappa is .4."""
    terms = np.array([cell(1, 1, 2)] * 20 + [cell(1, 0, 2)] * 5 + [cell(0, 1, 2)] * 10 + [cell(0, 0, 2)] * 15)
    assert kappa(terms, np.ones((1, 50)))[0] == pytest.approx(0.4)
    assert np.isnan(kappa(np.array([cell(1, 1, 2)] * 3), np.ones((1, 3)))[0])


def test_what_was_said_before_a_stop_counts_and_is_not_asked_again(tmp_path):
    answers = {"one": ["a", "b", "c"], "two": ["aa", "bb", "cc"]}
    with writer(longer) as server:
        server.most = 5
        job, stopped, _ = judged(tmp_path, longer, answers, server=server)
        assert isinstance(stopped, RunFailed)
        assert "no more" in str(stopped)
        assert of(job, "two", "win") == [1.0, None, None]
        assert of(job, "one", "rubric") == [1.0, 1.0, None]
        assert any("judge: stopped with 7 of 12 questions to go" in note for note in job.notes)
        server.most = 99
        job, stopped, asked = judged(tmp_path, longer, answers, server=server)
        assert (stopped, len(asked)) == (None, 12)
    assert of(job, "two", "win") == [1.0, 1.0, 1.0]


def test_a_ceiling_holds_over_all_runs(tmp_path):
    """A reply is 100 and 10 tokens, $0.0013 at these prices, and could come to more than a cent."""
    answers, prices = {"one": ["a", "b", "c"]}, (10.0, 30.0)
    with writer(longer) as server:
        job, stopped, asked = judged(tmp_path, longer, answers, server=server, max_cost=0.01, prices=prices)
        assert isinstance(stopped, CostReached)
        assert (asked, of(job, "one", "rubric")) == ([], [None] * 3)
        for _ in range(2):
            job, stopped, asked = judged(tmp_path, longer, answers, server=server, max_cost=1.0, prices=prices)
            assert (stopped, len(asked), of(job, "one", "rubric")) == (None, 3, [1.0] * 3)
            assert server.judge.purse.spent == pytest.approx(3 * 0.0013)


def test_replies_that_are_no_verdict_are_counted(tmp_path):
    job, stopped, _ = judged(tmp_path, lambda messages: "I would rather not.", {"one": ["a", "b", "c"]})
    assert stopped is None
    assert of(job, "one", "rubric") == [None] * 3
    assert any("no verdict in 3 of 3 replies, such as: I would rather not." in note for note in job.notes)


def test_ctrl_c_keeps_what_was_said(tmp_path):
    with writer(longer) as server:
        given = JudgeSettings(provider="openai", reached=ProviderSettings(url=server.url, concurrency=1))

        def stop(event):
            if isinstance(event, Progress) and event.task.startswith("judge") and event.done == 2:
                raise KeyboardInterrupt

        settings = EvalSettings(models=["one=tiny"], data=[questions(tmp_path)], retention="", judge=given)
        job = prepare(settings, stop)
        job.graded["one"] = {"q": [Graded(answer=text) for text in "abc"]}
        with pytest.raises(Interrupted, match="the same command goes on"):
            judge_answers(job, Judge(given, None, settings.runs_dir))
        job.emit = lambda event: None
        assert judge_answers(job, Judge(given, None, settings.runs_dir)) is None
        assert len(server.asked) == 3


# The command


def command(tmp_path, *words, models=("one=tiny",)):
    line = ["eval", *models, "-d", questions(tmp_path), "--no-retention", "-o", str(tmp_path / "report"), "--max-tokens", "6"]
    return run([*line, "--metrics", "exact_match", *words], debug=False)


def test_the_report_has_wins_points_and_reasons(tmp_path, capsys):
    other = make_tiny("llama3", tmp_path / "other", chat_template=True)
    with writer(longer) as server:
        assert command(tmp_path, "--judge", "openai", "--judge-url", server.url, models=("one=tiny", f"two={other}")) == 0
    report = load_report(tmp_path / "report")
    one, two = report.results["one"]["q"], report.results["two"]["q"]
    assert (one["win_rate"].value, one["win_rate"].n) == (None, 0)
    assert "held against it" in one["win_rate"].why
    assert 0 <= two["win_rate"].value <= 1
    assert (two["win_rate"].n, one["rubric"].n, two["rubric"].n) == (3, 3, 3)
    assert {"judge_agreement", "judge_kappa", "exact_match"} <= set(one)
    lines = [json.loads(line) for line in (tmp_path / "report" / "rows.jsonl").read_text().splitlines()]
    assert {line["judge"]["rubric"]["reason"] for line in lines} == {"By length."}
    assert "By length." in (tmp_path / "report" / "report.html").read_text()
    assert report.settings["judge"] == "openai"
    assert "rubric" in capsys.readouterr().out


def test_a_judge_that_cannot_be_reached_is_told_before_anything_is_asked(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert command(tmp_path, "--judge", "openai", "--judge-url", f"http://127.0.0.1:{port}/v1") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no answer" in line
    assert not (tmp_path / "report").exists()


def test_a_judge_that_breaks_off_leaves_the_report(tmp_path, capsys):
    with writer(longer) as server:
        server.most = 2
        words = ["--judge", "openai", "--judge-url", server.url, "--judge-concurrency", "1"]
        assert command(tmp_path, *words) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert "no more" in last
        assert "the same command asks for the rest" in last
        report = load_report(tmp_path / "report")
        assert report.results["one"]["q"]["exact_match"].n == 3
        assert report.results["one"]["q"]["rubric"].n == 2
        server.most = 99
        assert command(tmp_path, *words) == 0
        assert len(server.asked) == 3
    assert load_report(tmp_path / "report").results["one"]["q"]["rubric"].n == 3


def test_a_dry_run_asks_nobody_and_tells_the_most_it_can_cost(tmp_path, capsys):
    words = ["--judge", "openai", "--judge-url", "http://127.0.0.1:9/v1", "--price-in", "1", "--price-out", "2", "--dry-run"]
    assert command(tmp_path, *words, "--json", models=("one=tiny", "two=tiny")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["judge"]["tasks"] == 3 * (2 + 2)
    assert found["judge"]["completion_tokens"]["most"] == 12 * 400
    most = (found["judge"]["prompt_tokens"] + 2 * 12 * 400) / 1e6
    assert found["judge"]["cost"]["most"] == pytest.approx(most, abs=1e-4)
    assert [prompt["style"] for prompt in found["judge"]["prompts"]] == ["rubric", "compare"]
    assert found["sets"][0]["metrics"] == ["exact_match", "win_rate", "rubric", "judge_agreement", "judge_kappa"]
    assert command(tmp_path, *words) == 0
    assert "calls: 3, for 3 rows" in capsys.readouterr().out
    assert not (tmp_path / "report").exists()


def test_a_model_in_this_process_judges(tmp_path):
    assert command(tmp_path, "--judge", "mlx", "--judge-model", "tiny", "--limit", "2") == 0
    found = load_report(tmp_path / "report").results["one"]["q"]["rubric"]
    assert found.n == 2
    assert 1 <= found.value <= 5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--judge", "opneai"], "did you mean 'openai'?"),
        (["--judge", "mlx"], "--judge-model: no judge named"),
        (["--judge", "mlx", "--judge-model", "./nowhere"], "no such model"),
        (["--judge", "mlx", "--judge-model", "tiny", "--judge-url", "http://x"], "--judge-url is for --judge openai"),
        (["--judge", "openai"], "--judge-url: no server"),
        (["--judge-model", "tiny"], "--judge-model needs --judge"),
        (["--judge-rpm", "3"], "--judge-rpm needs --judge"),
        (["--judge", "openai", "--max-cost", "1"], "--max-cost needs --price-in and --price-out"),
        (["--judge", "openai", "--judge-url", "nonsense"], "not a URL"),
    ],
)
def test_what_cannot_judge_is_refused_in_one_line(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert command(tmp_path, *words) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "report").exists()


def test_a_text_has_no_answers_to_judge(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("The mill.")
    line = ["eval", "tiny", "-d", str(tmp_path / "a.txt"), "--judge", "openai", "-o", str(tmp_path / "report")]
    assert run(line, debug=False) == 2
    assert "no set has answers to judge" in capsys.readouterr().err


def test_several_models_of_a_server_are_named_by_this_commands_own_flag(tmp_path, monkeypatch):
    from mlxforge.knowledge import endpoint

    monkeypatch.setattr(endpoint.Endpoint, "ask", lambda *_, **__: {"data": [{"id": "a"}, {"id": "b"}]})
    given = JudgeSettings(provider="openai", reached=ProviderSettings(url="http://127.0.0.1:9/v1"))
    with pytest.raises(ConfigError, match=r"2 models: a, b \(name one: --judge-model NAME\)") as refused:
        Judge(given, None, tmp_path)
    assert isinstance(refused.value, MlxforgeError)
