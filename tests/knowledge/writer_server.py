"""A server of OpenAI's protocol on loopback that says what a function makes of the messages; and a store to ask about."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mlxforge.knowledge.store import Chunk, Document, open_store

Write = Callable[[list[dict[str, str]]], str]


class Writer(ThreadingHTTPServer):
    """``asked`` holds the messages of each request; after ``most`` answers it refuses all others."""

    daemon_threads = True

    def __init__(self, write: Write) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.write, self.asked = write, list[list[dict[str, str]]]()
        self.most = 10**9
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Writer

    def do_GET(self) -> None:
        self.say({"data": [{"id": "writer"}]})

    def do_POST(self) -> None:
        messages = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
        if len(self.server.asked) >= self.server.most:
            self.say({"error": {"message": "no more"}}, 402)
            return
        self.server.asked.append(messages)
        choice = {"message": {"content": self.server.write(messages)}, "finish_reason": "stop"}
        self.say({"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10}})

    def say(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def writer(write: Write) -> Iterator[Writer]:
    """The server, running."""
    server = Writer(write)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def make_store(path: Path, documents: dict[str, list[str]]) -> Path:
    """A store of documents, each given as its chunks."""
    with open_store(path, create=True) as store, store.writing():
        for name, texts in documents.items():
            chunks, start = [], 0
            for text in texts:
                chunks.append(Chunk(text, len(text.split()), "", None, start, start + len(text), 0))
                start += len(text)
            store.put(Document(f"/d/{name}", "/d", name, name, "markdown", "en", start, "s", "{}"), chunks)
    return path
