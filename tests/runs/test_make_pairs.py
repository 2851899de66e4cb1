"""Preference data: what is drawn, what judges decide, what is dropped, and that a stopped run ends as one that never was."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlx.core as mx
import pytest

from mlxforge.core.errors import ConfigError, DataError, Interrupted, RunError, RunFailed
from mlxforge.core.events import Noted, Warned
from mlxforge.core.rows import Message
from mlxforge.data.formats import read_rows
from mlxforge.data.sources import locate, parse_spec
from mlxforge.knowledge import endpoint as endpoints
from mlxforge.models.generate import answer_greedily, sample_answers
from mlxforge.models.load import load
from mlxforge.models.tiny import make_tiny
from mlxforge.runs import make_pairs
from mlxforge.runs.judge_server import UrlJudge, comparison, verdict
from mlxforge.runs.judges import CommandJudge, Question, Verdict, paired_off, ranked
from mlxforge.runs.make_pairs import PairSettings, pairs_from_scores
from mlxforge.runs.opening import open_model
from mlxforge.runs.partial import Partial, partial
from mlxforge.runs.serve import Serving, serving

ASKED = [
    "What is the opening hour of Thaxgrove Garden?",
    "Who looks after Treckstead Bookshop?",
    "What do I pay to visit Raxlea Bakery?",
    "Which goods come from Diskcliff Library?",
    "Which year was Raxlea Bakery founded in?",
]
COLD = 1e-4  # so cold that the likeliest token is drawn


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return open_model("tiny", tmp_path_factory.mktemp("runs"))


@pytest.fixture
def make(tiny, tmp_path, monkeypatch):
    """``make(rows, **options)`` -> (result, rows written), in an empty folder, with the model loaded once for all."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make_pairs, "open_model", lambda *_: tiny)

    def call(rows, output="out.jsonl", judge=None, limit=None, force=False, emit=lambda _: None, **settings):
        write(tmp_path / "in.jsonl", rows)
        result = make_pairs.make_pairs(
            ["in.jsonl"],
            tmp_path / output,
            "tiny",
            settings=PairSettings(**{"max_tokens": 40, **settings}),
            judge=judge,
            limit=limit,
            force=force,
            emit=emit,
        )
        return result, read(tmp_path / output) if result["output"] else []

    return call


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def chat(asked, answer="Answer: nobody knows."):
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


ROWS = [chat(asked) for asked in ASKED]


def script(folder, text, name="judge.py"):
    """A judge that is a program of its own; ``asked`` is what it was given."""
    head = "import json, os, signal, sys\nasked = json.load(sys.stdin)\n"
    (folder / name).write_text(head + text)
    return f"{sys.executable} -IS {folder / name}"


LENGTH = "print(len(asked['answer']))\n"


def test_cold_samples_are_the_greedy_answer_and_the_seed_alone_decides_the_others(tiny):
    model, stop = tiny.loaded.model, tiny.template.stop
    prompt = tiny.template.prompt((Message("user", ASKED[0]),))
    greedy = answer_greedily(model, [prompt], 40, stop)[0]
    cold = sample_answers(model, prompt, 3, 40, stop, temperature=COLD, seed=5)
    assert cold == [(greedy, True)] * 3
    assert sample_answers(model, prompt, 1, 4, stop, temperature=COLD, seed=5) == [(greedy[:4], False)]
    first = sample_answers(model, prompt, 3, 40, stop, temperature=1, seed=5)
    mx.random.normal((3,))
    assert sample_answers(model, prompt, 3, 40, stop, temperature=1, seed=5) == first
    assert sample_answers(model, prompt, 3, 40, stop, temperature=1, seed=6) != first


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_5"])  # all positions, windows, recurrent states
def test_the_prompt_is_read_once_for_all_samples(tmp_path, family):
    model = load(str(make_tiny(family, tmp_path / family))).model
    prompt = list(range(5, 45))
    greedy = answer_greedily(model, [prompt], 6, ())[0]
    cold = sample_answers(model, prompt, 3, 6, (), temperature=COLD, seed=0)
    assert [one.tokens for one in cold] == [greedy] * 3


def test_tokens_are_drawn_as_often_as_the_model_says(tiny):
    prompt = tiny.template.prompt((Message("user", ASKED[0]),))
    logits = tiny.loaded.model(mx.array([prompt]))[0, -1].astype(mx.float32)
    temperature = 0.6
    likely = mx.softmax(logits / temperature)
    best = int(mx.argmax(likely))
    share, count = float(likely[best]), 400
    drawn = sample_answers(tiny.loaded.model, prompt, count, 1, (), temperature=temperature, seed=1)
    found = sum(one.tokens == [best] for one in drawn) / count
    assert abs(found - share) < 4 * (share * (1 - share) / count) ** 0.5


def test_the_right_answer_is_chosen_and_a_sample_rejected(make):
    result, rows = make(ROWS, samples=3, seed=3)
    assert [row["prompt"] for row in rows] == [one["messages"][:1] for one in ROWS]
    assert all(row["chosen"] == ROWS[0]["messages"][1:] for row in rows)
    assert [row["source"] for row in rows] == [f"in.jsonl:{number}" for number in range(1, 6)]
    made_by = {"way": "samples", "model": "tiny", "temperature": 1.0, "max_tokens": 40, "seed": 3}
    assert all(row["made_by"] == made_by for row in rows)
    assert (result["pairs"], result["rows"], result["samples"]) == (5, 5, 15)


def test_every_sample_is_in_a_pair_or_counted(make):
    result, rows = make(ROWS, samples=6, per_row=6, max_tokens=9)
    dropped = sum(count for reason, count in result["dropped"].items() if reason.startswith("samples "))
    assert result["dropped"]["samples cut off at 9 tokens"] > 0
    assert dropped + len(rows) == result["samples"] == 30
    rejected = [(row["prompt"][0]["content"], row["rejected"][0]["content"]) for row in rows]
    assert len(set(rejected)) == len(rows)


def test_samples_that_are_the_right_answer_or_repeat_another_are_dropped(make, tiny):
    prompt = tiny.template.prompt((Message("user", ASKED[0]),))
    likely = tiny.loaded.tokenizer.decode(answer_greedily(tiny.loaded.model, [prompt], 40, tiny.template.stop)[0])
    result, rows = make([chat(ASKED[0], likely.replace(" ", "\n  ")), chat(ASKED[0])], temperature=COLD)
    assert result["dropped"] == {
        "samples equal to the right answer": 4,
        "samples that repeat another": 3,
        "rows without a pair": 1,
    }
    assert rows[0]["rejected"][0]["content"] == likely.strip()


def test_rows_without_a_right_answer_repeated_rows_and_prompts_too_long_are_counted(make):
    call = {"name": "f", "arguments": "{}"}
    rows = [
        ROWS[0],
        ROWS[0],
        {"messages": [ROWS[0]["messages"][0], {"role": "assistant", "content": "", "tool_calls": [{"function": call}]}]},
        {"messages": [*ROWS[0]["messages"], ROWS[1]["messages"][0], {**ROWS[1]["messages"][1], "weight": 0}]},
        chat("mill " * 3000),
    ]
    result, written = make(rows)
    assert len(written) == 1
    assert result["dropped"] == {
        "rows without a pair": 3,
        "rows that repeat another": 1,
        "rows whose answer calls a tool": 1,
        "rows whose answer has weight 0": 1,
        "prompts that fill the model's context": 1,
    }


def test_the_last_prompt_keeps_its_history_system_and_tools(make):
    turns = [
        {"role": "system", "content": "Be brief."},
        *ROWS[0]["messages"],
        *ROWS[1]["messages"][:1],
        {"role": "assistant", "content": "Nobody.", "reasoning_content": "Hm."},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    _, [row] = make([{"messages": turns, "tools": tools}])
    assert (row["prompt"], row["chosen"], row["tools"]) == (turns[:-1], turns[-1:], tools)


def test_other_rows_change_nothing_and_the_seed_does(make):
    _, whole = make(ROWS)
    _, some = make([ROWS[3], ROWS[1]], "some.jsonl")
    content = [(row["prompt"], row["rejected"]) for row in whole]
    assert [(row["prompt"], row["rejected"]) for row in some] == [content[3], content[1]]
    _, other = make(ROWS, "other.jsonl", seed=1)
    assert all(row["rejected"] != twin["rejected"] for row, twin in zip(whole, other, strict=True))
    _, twins = make([ROWS[0], chat(ASKED[0], "Answer: soon.")], "twins.jsonl")
    assert twins[0]["rejected"] != twins[1]["rejected"]


def test_a_command_scores_each_answer_and_the_best_is_paired_with_the_worst(make, tmp_path):
    log = tmp_path / "log"
    command = script(tmp_path, f"open({str(log)!r}, 'a').write(json.dumps(asked) + '\\n')\n" + LENGTH)
    result, rows = make(ROWS[:2], judge=CommandJudge(command))
    asked = read(log)
    assert (result["way"], result["judge"]) == ("command", command)
    assert all(one["gold"] == "Answer: nobody knows." for one in asked)
    for row in rows:
        sizes = [len(one["answer"]) for one in asked if one["prompt"] == row["prompt"]]
        assert row["made_by"]["scores"] == {"chosen": max(sizes), "rejected": min(sizes)}
        assert len(row["chosen"][0]["content"]) == max(sizes)
        assert row["made_by"]["judge"] == command
    assert len(rows) == 2


def test_a_command_compares_in_both_orders(make, tmp_path):
    sizes = "one, other = map(len, asked['answers'])\n"
    longer = script(tmp_path, sizes + "print(1 if one > other else 2 if other > one else 0)\n", "longer.py")
    _, rows = make(ROWS[:2], judge=CommandJudge(longer, pairwise=True))
    assert all(len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"]) for row in rows)
    assert "scores" not in rows[0]["made_by"]
    result, rows = make(ROWS[:1], "b.jsonl", judge=CommandJudge(script(tmp_path, "print(1)\n", "first.py"), pairwise=True))
    assert (rows, result["dropped"]) == ([], {"verdicts that changed with the order": 2, "rows without a pair": 1})


def test_ties_and_what_is_no_number_are_counted_and_told(make, tmp_path):
    result, rows = make(ROWS[:2], judge=CommandJudge(script(tmp_path, "print(0.5)\n")))
    assert (rows, result["dropped"]) == ([], {"ties": 2, "rows without a pair": 2})
    heard = []
    result, _ = make(ROWS[:2], samples=2, judge=CommandJudge(script(tmp_path, "print('nan, I think')\n")), emit=heard.append)
    assert result["dropped"] == {"unclear verdicts": 4, "rows without a pair": 2}
    [warned] = [event.message for event in heard if isinstance(event, Warned)]
    assert warned == "in.jsonl:1: the judge gave no verdict but said: nan, I think"
    assert not (tmp_path / "out.jsonl").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_a_command_that_fails_is_one_line_and_finished_rows_are_kept(make, tmp_path):
    count = f"path = {str(tmp_path / 'n')!r}\nn = int(open(path).read()) if os.path.exists(path) else 0\n"
    count += "open(path, 'w').write(str(n + 1))\n"
    judge = CommandJudge(script(tmp_path, count + "n == 4 and sys.exit('out of ink')\n" + LENGTH))
    with pytest.raises(RunFailed, match=r"ended with exit code 1: out of ink .*2 of 5 rows are done: the same command goes on"):
        make(ROWS, judge=judge, samples=2)
    patient = CommandJudge(judge.command, timeout=300)  # more time is no other judge
    result, rows = make(ROWS, judge=patient, samples=2)
    assert (result["resumed"], len(rows)) == (2, 5)
    with pytest.raises(RunFailed, match=r"no answer within 0\.2 seconds"):
        make(ROWS, "slow.jsonl", judge=CommandJudge("sleep 9", timeout=0.2))
    for command in ("no-such-program x", "'open", ""):
        with pytest.raises(ConfigError):
            CommandJudge(command)


def test_an_interrupted_run_ends_as_one_that_never_was(make, tmp_path):
    judge = CommandJudge(script(tmp_path, LENGTH))
    _, expected = make(ROWS, "whole.jsonl", judge=judge, samples=2)
    once = f"once = {str(tmp_path / 'once')!r}\n"
    once += "if asked['prompt'][0]['content'] == " + repr(ASKED[2]) + " and not os.path.exists(once):\n"
    once += "    open(once, 'w').close(); os.kill(os.getppid(), signal.SIGINT); signal.pause()\n"
    (tmp_path / "judge.py").write_text((tmp_path / "judge.py").read_text().replace(LENGTH, once + LENGTH))
    with pytest.raises(Interrupted, match=r"out.jsonl.partial: stopped after 2 of 5 rows \(the same command goes on\)"):
        make(ROWS, judge=judge, samples=2)
    kept = tmp_path / "out.jsonl.partial"
    with open(kept, "ab") as file:  # a machine that died while it wrote
        file.write(kept.read_bytes().splitlines()[-1][:50])
    heard = []
    result, rows = make(ROWS, judge=judge, samples=2, emit=heard.append)
    assert result["resumed"] == 2
    assert rows == expected
    assert any(isinstance(event, Noted) and event.message.startswith("2 of 5 rows were done before") for event in heard)
    assert not kept.exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_command(tmp_path):
    write(tmp_path / "in.jsonl", ROWS)
    kill = f"if asked['prompt'][0]['content'] == {ASKED[3]!r} and os.path.exists('deadly'):\n    os.kill(os.getppid(), 9)\n"
    command = [sys.executable, "-m", "mlxforge", "data", "pairs", "in.jsonl", "-m", "tiny", "--samples", "2", "--json"]
    command += ["--judge", script(tmp_path, kill + LENGTH)]

    def run(output):
        return subprocess.run([*command, "-o", output], cwd=tmp_path, capture_output=True, text=True)

    (tmp_path / "deadly").touch()
    assert run("out.jsonl").returncode == -9
    assert not (tmp_path / "out.jsonl").exists()
    (tmp_path / "deadly").unlink()
    again = run("out.jsonl")
    assert json.loads(again.stdout)["resumed"] == 3, again.stderr
    run("whole.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_partial_file_of_other_settings_or_data_is_refused_or_forced(make, tmp_path):
    bad = CommandJudge(script(tmp_path, "asked['prompt'][0]['content'] == " + repr(ASKED[2]) + " and sys.exit(1)\n" + LENGTH))
    with pytest.raises(RunFailed):
        make(ROWS, judge=bad, samples=2)
    path = tmp_path / "out.jsonl.partial"
    before = path.read_bytes()
    for rows, options, told in (
        (ROWS, {"temperature": 0.5}, r"begun with temperature 1.0, now 0.5 \(.*--force starts anew\)"),
        (ROWS[:4], {}, "begun with other data"),
    ):
        with pytest.raises(DataError, match=told):
            make(rows, judge=bad, samples=2, **options)
        assert path.read_bytes() == before
    with pytest.raises(RunFailed, match="2 of 5"):  # the same command goes on, with --force too
        make(ROWS, judge=bad, samples=2, force=True)
    judge = CommandJudge(script(tmp_path, LENGTH, "other.py"))
    with pytest.raises(DataError, match="begun with other judge"):
        make(ROWS, judge=judge, samples=2)
    result, rows = make(ROWS, judge=judge, samples=2, force=True)
    assert (result["resumed"], len(rows)) == (0, 5)
    (tmp_path / "out.jsonl").unlink()
    path.write_text("something else\n")
    with pytest.raises(DataError, match="not the beginning of such a file"):
        make(ROWS, judge=judge, samples=2, output="out.jsonl")
    assert path.read_text() == "something else\n"


def test_one_process_writes_a_file(make, tmp_path):
    with partial(tmp_path / "out.jsonl", {"a": 1}), pytest.raises(RunError, match="another process is writing this file"):
        make(ROWS)


def test_a_partial_file_gives_back_what_was_added(tmp_path):
    with open(tmp_path / "p", "a+b") as file:
        kept = Partial(file, tmp_path / "p")
        kept.begin({"a": 1}, anew=False)
        kept.add("x", {"n": "é" * 100})
        kept.add("y", {"n": 2})
        assert kept["x"] == {"key": "x", "n": "é" * 100}
        kept.add("z", {"n": 3})
    with open(tmp_path / "p", "a+b") as file:
        again = Partial(file, tmp_path / "p")
        again.begin({"a": 1}, anew=False)
        assert [again[key]["n"] for key in "yz"] == [2, 3]
        assert "w" not in again


@pytest.mark.parametrize("torn", [1, 5, 12])
def test_a_torn_line_is_cut_off_and_what_follows_is_whole(tmp_path, torn):
    def opened(*keys):
        with open(tmp_path / "p", "a+b") as file:
            kept = Partial(file, tmp_path / "p")
            kept.begin({"a": 1}, anew=False)
            known = [key for key in "xyz" if key in kept]
            for key in keys:
                kept.add(key, {"n": key})
        return known

    opened("x", "y")
    (tmp_path / "p").write_bytes((tmp_path / "p").read_bytes()[:-torn])
    assert opened("z") == ["x"]
    assert opened() == ["x", "z"]


@pytest.mark.parametrize(
    ("scores", "most", "expected"),
    [
        ([1, 3, 2], 1, [(1, 0, (3, 1))]),
        ([1, 3, 2], 5, [(1, 0, (3, 1))]),
        ([4, 1, 3, 2], 5, [(0, 1, (4, 1)), (2, 3, (3, 2))]),
        ([2, None, 2, 1], 5, [(0, 3, (2, 1))]),
        ([2, 2, 2], 1, []),
        ([None, 1], 1, []),
        ([2, 1, 1, 1], 2, [(0, 3, (2, 1))]),
    ],
)
def test_ranked(scores, most, expected):
    assert list(ranked(scores, most)) == expected


def test_only_what_wins_in_both_orders_counts():
    def longer(one, other):
        return ("tie" if len(one) == len(other) else "first" if len(one) > len(other) else "second"), ""

    assert paired_off(longer, ["aaa", "b", "c", "dd", "e"], 5).pairs == [Verdict(0, 1), Verdict(3, 2)]
    assert paired_off(longer, ["aaa", "b", "c", "dd"], 1).pairs == [Verdict(0, 1)]
    assert paired_off(longer, ["a", "b"], 1).dropped == {"ties": 1}
    assert paired_off(lambda *_: ("second", ""), ["a", "b"], 1).dropped == {"verdicts that changed with the order": 1}
    half = paired_off(lambda one, _: ("first" if one == "a" else "tie", ""), ["a", "b"], 1)
    assert half.dropped == {"verdicts that changed with the order": 1}
    unclear = paired_off(lambda one, _: (None, f"of {one}\n" + "x" * 500), ["a", "b"], 1)
    assert unclear.dropped == {"unclear verdicts": 1}
    assert (unclear.unclear[:7], len(unclear.unclear)) == ("of a xx", 160)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("VERDICT: A", "first"),
        ("I think so.\n**Verdict:** B.", "second"),
        ("Verdict - tie", "tie"),
        (" b. ", "second"),
        ("[[A]]", "first"),
        ("VERDICT: A\nNo, wait.\nVERDICT: B", "second"),
        ("VERDICT: A, VERDICT: B, or VERDICT: TIE", None),
        ("The verdict is hard", None),
        ("Verdict: a tie", None),
        ("VERDICT: Absolutely", None),
        ("A is better", None),
        ("", None),
        ("<think>VERDICT: A</think>VERDICT: B", "second"),
        ("<think>VERDICT: A would be", None),
    ],
)
def test_verdicts(said, expected):
    assert verdict(said) == expected


@pytest.fixture
def endpoint(monkeypatch):
    """A server that judges by length. ``plan`` holds what it does first: a status and a body, or nothing at all."""
    monkeypatch.setattr(endpoints, "PAUSE", 0.01)

    class Handler(BaseHTTPRequestHandler):
        plan, seen = [], []

        def do_GET(self):
            self.answer({"data": [{"id": "ruler"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.seen.append((body, self.headers.get("Authorization")))
            if self.plan:
                return self.plan.pop(0)(self)
            a, b = body["messages"][1]["content"].partition("# Answer A\n\n")[2].split("\n\n# ")[0:2]
            size = len(a), len(b.removeprefix("Answer B\n\n"))
            said = "VERDICT: " + ("TIE" if size[0] == size[1] else "A" if size[0] > size[1] else "B")
            return self.answer({"choices": [{"message": {"content": said}}]})

        def answer(self, values, status=200, **headers):
            content = json.dumps(values).encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(content), **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    server.url, server.plan, server.seen = f"http://127.0.0.1:{server.server_port}/v1", Handler.plan, Handler.seen
    yield server
    server.shutdown()
    server.server_close()


def test_a_judge_behind_a_url_sees_both_orders_and_the_key_goes_nowhere_else(make, endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    heard = []
    result, rows = make(ROWS, judge=UrlJudge(endpoint.url + "/"), samples=2, emit=heard.append)
    assert rows
    assert all(len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"]) for row in rows)
    assert rows[0]["made_by"]["judge"] == f"ruler at {endpoint.url}"
    texts = [body["messages"][1]["content"] for body, _ in endpoint.seen]
    one, other = rows[0]["chosen"][0]["content"], rows[0]["rejected"][0]["content"]
    question = Question((Message("user", ASKED[0]),), "")
    assert {comparison(question, *pair)[1]["content"] for pair in ((one, other), (other, one))} <= set(texts)
    assert {key for _, key in endpoint.seen} == {"Bearer sk-secret-1"}
    assert "sk-secret" not in (tmp_path / "out.jsonl").read_text() + str(heard) + str(result)
    assert len(rows) + result["dropped"].get("rows without a pair", 0) == 5


def test_what_may_pass_is_tried_again(endpoint):
    judge, question = UrlJudge(endpoint.url), Question((Message("user", "q"),), "")
    endpoint.plan += [
        lambda http: http.answer({"error": {"message": "busy"}}, 503),
        lambda http: http.answer({"error": "slow down"}, 429, Retry_After=0),
        lambda http: http.connection.close(),
    ]
    assert judge.choose(question, ["long", "no"], 1).pairs == [(0, 1, None)]
    endpoint.plan += [lambda http: http.answer({"error": {"message": "busy"}}, 503)] * 4
    with pytest.raises(RunFailed, match=r"/v1: the server refused with status 503: busy, tried 4 times"):
        judge.choose(question, ["long", "no"], 1)


def test_what_does_not_pass_is_one_line_without_the_key(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    judge, question = UrlJudge(endpoint.url), Question((Message("user", "q"),), "")
    for answer, told in (
        (lambda http: http.answer({"error": {"message": "wrong key sk-secret-1\nsorry"}}, 401), "401: wrong key … sorry"),
        (lambda http: http.answer({}, 302, Location="http://127.0.0.1:9/"), "status 302"),
        (lambda http: http.answer({"choices": []}), "not a reply of OpenAI's protocol"),
        (lambda http: http.answer([]), "not a reply of OpenAI's protocol"),
    ):
        endpoint.plan.append(answer)
        with pytest.raises(RunFailed, match=told) as caught:
            judge.choose(question, ["long", "no"], 1)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)
    endpoint.plan.append(lambda http: http.answer({"error": {"message": "Unsupported: 'temperature'"}}, 400))
    endpoint.seen.clear()
    assert judge.choose(question, ["long", "no"], 1).pairs
    assert ["temperature" in body for body, _ in endpoint.seen] == [True, False, False]


def test_a_judge_that_is_not_there(endpoint, monkeypatch):
    for url in ("", "ruler", "ftp://x/v1", "http://", "http://a b/", "http://[::1"):
        with pytest.raises(ConfigError, match="not a URL"):
            UrlJudge(url)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        UrlJudge("http://me:sk-1@127.0.0.1/v1")
    with pytest.raises(ConfigError, match=r"no answer: Connection refused \(start the judge's server"):
        UrlJudge("http://127.0.0.1:9/v1")
    assert UrlJudge(endpoint.url, "named").model == "named"


def test_the_key_is_not_sent_in_the_clear_to_another_machine(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    monkeypatch.setattr(endpoints, "is_here", lambda host: False)
    judge = UrlJudge(endpoint.url)
    judge.choose(Question((Message("user", "q"),), ""), ["long", "no"], 1)
    assert judge.withholds_key
    assert {key for _, key in endpoint.seen} == {None}


def test_a_model_that_talks_nonsense_is_no_judge(make, tmp_path):
    ready = queue.Queue()

    def serve():
        with serving(Serving("tiny", tmp_path, port=0, max_tokens=16)) as started:
            ready.put(started)
            started.run()
        mx.clear_streams()

    thread = threading.Thread(target=serve)
    thread.start()
    server = ready.get(timeout=60)
    try:
        result, rows = make(ROWS[:2], judge=UrlJudge(server.url, max_tokens=12), samples=2)
    finally:
        server.stop()
        thread.join()
    assert (rows, result["judge"]) == ([], f"tiny at {server.url}")
    assert result["dropped"] == {"unclear verdicts": 2, "rows without a pair": 2}


def reward(asked, answer, score):
    return {"prompt": asked, "response": answer, "reward": score}


def test_scored_answers_become_the_pairs_that_training_would_see(tmp_path):
    scored = [("a", "1", 1), ("b", "1", 2), ("a", "2", 3), ("b", "2", 2), ("a", "3", 2), ("c", "1", 0), ("a", "4", 0)]
    path = write(tmp_path / "in.jsonl", [reward(*one) for one in scored])
    result = pairs_from_scores([str(path)], tmp_path / "out.jsonl")
    rows = read(tmp_path / "out.jsonl")
    assert result["dropped"] == {"ties": 1, "prompts with one answer": 1}
    assert (result["rows"], result["pairs"]) == (7, 1)
    assert rows[0]["made_by"] == {"way": "scores", "scores": {"chosen": 3.0, "rejected": 0.0}}
    assert rows[0]["source"] == f"{path}:3"

    def pairs(file):
        return [item.row for item in read_rows(locate([parse_spec(str(file))]), "preference")]

    assert pairs(tmp_path / "out.jsonl") == pairs(path)
    pairs_from_scores([str(path)], tmp_path / "two.jsonl", per_row=2)
    said = [[row[side][0]["content"] for side in ("chosen", "rejected")] for row in read(tmp_path / "two.jsonl")]
    assert said == [["2", "4"], ["3", "1"]]


@pytest.mark.parametrize(
    "bad", [{"samples": 0}, {"temperature": 0}, {"temperature": float("nan")}, {"per_row": 0}, {"seed": -1}]
)
def test_settings_out_of_bounds(bad):
    with pytest.raises(ConfigError):
        PairSettings(**bad)
