"""A server of OpenAI's protocol that writes true rows about what stands in its prompts, and misbehaves as it is told to.

``plan`` holds what it does with the next requests, one each, by the names in ``FAULTS``; after that it answers.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def rows_about(prompt: str, count: int) -> list[dict[str, str]]:
    """Questions that each name a sentence of the passage; the sentence is answer and quote."""
    passage = re.search(r"<passage>\n(.*?)\n</passage>", prompt, re.DOTALL)
    sentences = [one.strip() for one in re.split(r"(?<=[.!?])\s+", passage[1]) if one.strip()]
    return [
        {"question": f"What is known of {' '.join(one.split()[:9])}?", "answer": one, "quote": one}
        for one in (sentences * count)[:count]
    ]


def as_tags(rows: list[dict[str, str]]) -> str:
    parts = ["".join(f"<{key}>{value}</{key}>\n" for key, value in row.items()) for row in rows]
    return "\n".join(f"<rows>\n{part}</rows>" for part in parts)


class Handler(BaseHTTPRequestHandler):
    """One request; ``self.server`` has the plan."""

    server: Server

    def do_GET(self) -> None:
        self.say({"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            fault = self.server.plan.pop(0) if self.server.plan else self.server.always
            self.server.seen.append((body, dict(self.headers)))
            self.server.under_way += 1
            self.server.most = max(self.server.most, self.server.under_way)
        time.sleep(self.server.delay)
        try:
            FAULTS[fault](self, body) if fault else self.answer(body)
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def answer(self, body: dict[str, Any], **changes: Any) -> None:
        """What was asked for: JSON by the schema where the server has schemas, tags where it was told of tags."""
        prompt = body["messages"][-1]["content"]
        if not self.server.schemas and "response_format" in body:
            return self.say({"error": {"message": "response_format is not supported"}}, 400)
        if "score" in json.dumps(body.get("response_format", {})):
            text = json.dumps({"reason": "It is as the passage says.", "score": self.server.score})
        else:
            rows = rows_about(prompt, int(re.search(r"with (\d+) in", prompt)[1]))
            text = as_tags(rows) if "<rows>" in prompt else json.dumps({"rows": rows})
        choice = {"message": {"content": text}, "finish_reason": "stop", **changes}
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text) // 4}
        return self.say({"choices": [choice], "usage": usage})

    def say(self, values: Any, status: int = 200, **headers: Any) -> None:
        content = values if isinstance(values, bytes) else json.dumps(values).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Silence."""


def cut(handler: Handler, _: Any) -> None:
    """Promises more than it sends, though that is JSON."""
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": []}')
    handler.close_connection = True


def hang_up(handler: Handler, _: Any) -> None:
    handler.connection.close()


def drip(handler: Handler, _: Any) -> None:
    """A byte now and then, so that no single read times out; a whole answer in the end."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(20):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)
    handler.wfile.write(b'{"choices": []}')


def content(text: str) -> Any:
    return lambda handler, _: handler.say({"choices": [{"message": {"content": text}}], "usage": {}})


FAULTS: dict[str, Any] = {
    "busy": lambda handler, _: handler.say({"error": {"message": "slow down"}}, 429, Retry_After="0.3"),
    "500": lambda handler, _: handler.say({"error": "boom"}, 500),
    "key": lambda handler, _: handler.say({"error": {"message": f"wrong {handler.headers['Authorization']}"}}, 401),
    "too long": lambda handler, _: handler.say({"error": {"message": "the prompt is too long"}}, 400),
    "no temperature": lambda handler, _: handler.say({"error": {"message": "Unsupported: 'temperature'"}}, 400),
    "old name": lambda handler, _: handler.say({"error": {"message": "Use max_completion_tokens, not max_tokens"}}, 400),
    "redirect": lambda handler, _: handler.say({}, 302, Location="http://127.0.0.1:9/v1/chat/completions"),
    "cut": cut,
    "hang up": hang_up,
    "drip": drip,
    "html": lambda handler, _: handler.say(b"<html>welcome</html>"),
    "no choices": lambda handler, _: handler.say({"choices": []}),
    "broken JSON": content('{"rows": [{"question": "What is'),
    "wrong schema": content('{"rows": [{"q": 1}]}'),
    "prose": content("Certainly! Here are some questions."),
    "length": lambda handler, body: handler.answer(body, message={"content": '{"rows": ['}, finish_reason="length"),
}


class Server(ThreadingHTTPServer):
    """See the module."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[str] = []
        self.always = ""
        self.seen: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.models, self.schemas, self.score, self.delay = ["writer"], True, 5, 0.0
        self.under_way = self.most = 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def asked(self) -> Counter[str]:
        """How often each prompt was asked."""
        return Counter(body["messages"][-1]["content"] for body, _ in self.seen)

    def handle_error(self, *_: Any) -> None:
        """A client that was killed is no error."""


@contextmanager
def serving_badly() -> Iterator[Server]:
    """The server, on a free port of this machine."""
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
