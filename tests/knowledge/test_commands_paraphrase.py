"""Requests in a model's words: what is taken, what is refused, and a run that goes on where it stopped."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_commands_schema import SHIP

from mlxforge.cli.main import run
from mlxforge.knowledge.commands.grammar import Grammar
from mlxforge.knowledge.commands.paraphrase import refusal, wording
from mlxforge.knowledge.commands.reader import read_schema
from mlxforge.knowledge.commands.validate import text_problems


@pytest.fixture
def ship(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ship.yaml").write_text(SHIP)
    return read_schema(Path("ship.yaml"))


def test_what_is_refused(ship):
    row = next(row for row in Grammar(ship).rows(300) if row.case == "plain")
    answer = {
        "command": "deploy",
        "arguments": {"service": "web", "environment": "staging", "replicas": 3},
        "flags": ["--no-wait"],
    }
    row = replace(row, answer=row.answer | answer, instruction="deploy web to staging, 3 replicas, without wait")
    row = replace(row, values=("web", "staging", "3"))
    taken = "Could you put 3 copies of web on staging without wait?"
    assert refusal(ship, row, taken) == ""
    assert refusal(ship, row, taken.replace("web", "website")) == "lost a value: web"
    assert refusal(ship, row, taken.replace("3", "33")) == "lost a value: 3"
    assert refusal(ship, row, taken + " In 5 minutes.") == "added a number: 5"
    assert refusal(ship, row, taken + " --force") == "added an option: --force"
    assert refusal(ship, row, taken.replace(" without wait", "")) == "lost a flag: --no-wait"
    off = next(row for row in Grammar(ship).rows(300) if row.case == "off_topic")
    assert refusal(ship, replace(off, instruction="tell me a joke", values=()), "do that again") == "lost the subject"
    assert refusal(ship, replace(off, instruction="tell me a joke", values=()), "know any good joke?") == ""
    assert refusal(ship, row, "") == "no wording, or too long"
    assert wording('{"paraphrase": " a \\n b "}') == "a b"
    assert [wording(text) for text in ("", "[]", "{}", '{"paraphrase": 3}', '"x"')] == [""] * 5


class Endpoint(BaseHTTPRequestHandler):
    """Rewords what it is asked; every third wording has lost its values; after ``last`` answers it says no."""

    answered = 0
    last = 10**9

    def do_GET(self):
        self.reply(200, {"data": [{"id": "parrot"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = type(self)
        if kind.answered >= kind.last:
            self.reply(401, {"error": {"message": "no"}})
            return
        kind.answered += 1
        asked = body["messages"][-1]["content"].split("\n\n")[1]
        text = "do that again" if kind.answered % 3 == 0 else f"My wish is this: {asked}"
        message = {"role": "assistant", "content": json.dumps({"paraphrase": text})}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        self.reply(200, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})

    def reply(self, status, value):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    kind = type("Parrot", (Endpoint,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield kind, f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


def asked(url, *more):
    words = [
        "synth",
        "commands",
        "ship.yaml",
        "-o",
        "out",
        "--rows",
        "60",
        "--provider",
        "openai",
        "--url",
        url,
        "--model",
        "parrot",
    ]
    return run([*words, "--concurrency", "2", "--json", *more], debug=False)


def test_a_model_rewords_and_what_lost_its_values_is_refused(ship, endpoint, capsys):
    _, url = endpoint
    assert asked(url) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["reworded"] + sum(result["refused"].values()) == 36  # plain, incomplete and off-topic: 60 % of the rows
    assert result["reworded"] >= 20
    assert result["diversity"]["equal"] == 0
    lines = [json.loads(line) for part in result["files"].values() for line in Path(part).read_text().splitlines()]
    models = [line for line in lines if line["source"]["model"] == "parrot"]
    assert len(models) == result["reworded"]
    assert all(line["instruction"].startswith("My wish is this: ") and line["source"]["prompt"] for line in models)
    assert not any(text_problems(ship, line["output"]) for line in lines)
    assert not list(Path().glob(".out.*"))


def test_a_run_that_was_cut_off_asks_for_the_rest_alone(ship, endpoint, capsys):
    kind, url = endpoint
    kind.last = 12
    stopped = asked(url)
    first = kind.answered
    assert stopped != 0
    assert not Path("out").exists()
    with open(".out.wordings.jsonl", "ab") as journal:
        journal.write(b'["half')  # as a kill leaves it
    kind.last = 10**9
    assert asked(url) == 0
    assert kind.answered - first == 36 - 12
