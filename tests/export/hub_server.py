"""A stand-in for the hub's HTTP API on loopback: repositories, large files by their hash, commits. No package of ours in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_secret"
OWNER = "me"


class Hub(ThreadingHTTPServer):
    """What was received.

    Attributes:
        repos: name -> whether it is private; files: name -> path -> bytes; objects: sha256 -> bytes.
        fail: pattern of "METHOD path" -> status to answer with.
        tokens: all that came in Authorization headers.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.fail: dict[str, int] = {}
        self.tokens: set[str] = set()
        self.commits = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET", [(r"/api/whoami-v2", self.whoami), (r"/api/models/([^/]+/[^/]+)(?:/revision/main)?", self.info)])

    def do_PUT(self) -> None:
        self._serve("PUT", [(r"/store/(\w+)", self.store)])

    def do_POST(self) -> None:
        routes = [
            (r"/api/repos/create", self.create),
            (r"/api/validate-yaml", self.valid),
            (r"/api/models/([^/]+/[^/]+)/preupload/main", self.preupload),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.batch),
            (r"/verify/(\w+)", self.verify),
            (r"/api/models/([^/]+/[^/]+)/commit/main", self.commit),
        ]
        self._serve("POST", routes)

    def _serve(self, method, routes) -> None:
        self.body = self._read()
        path = self.path.partition("?")[0]
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given:
            self.server.tokens.add(given)
        failing = next((status for pattern, status in self.server.fail.items() if re.search(pattern, f"{method} {path}")), None)
        if failing:
            return self.answer({"error": f"refused for {given}"}, failing)
        if method != "PUT" and given != TOKEN:
            return self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        for pattern, does in routes:
            if found := re.fullmatch(pattern, path):
                return does(*found.groups())
        return self.answer({"error": f"not known here: {method} {path}"}, 404)

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            whole = b""
            while size := int(self.rfile.readline(), 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return whole
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, content, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def whoami(self) -> None:
        self.answer({"name": OWNER, "type": "user"})

    def info(self, repo: str) -> None:
        if repo not in self.server.repos:
            return self.answer({"error": "Repository not found"}, 404)
        return self.answer({"id": repo, "modelId": repo, "private": self.server.repos[repo], "sha": "0" * 40, "siblings": []})

    def create(self) -> None:
        wanted = json.loads(self.body)
        owner = wanted.get("organization") or OWNER
        repo = f"{owner}/{wanted['name']}"
        if owner != OWNER:
            return self.answer({"error": f"You don't have the rights to create a model under {owner}"}, 403)
        if repo in self.server.repos:
            return self.answer({"error": "You already created this model repo", "url": f"{self.server.url}/{repo}"}, 409)
        self.server.repos[repo] = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.server.files[repo] = {}
        return self.answer({"url": f"{self.server.url}/{repo}", "name": repo, "id": repo})

    def valid(self) -> None:
        content = json.loads(self.body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no front matter"}]
        self.answer({"errors": errors, "warnings": []})

    def preupload(self, _: str) -> None:
        files = json.loads(self.body)["files"]
        large = (".safetensors", ".gguf", "tokenizer.json")
        said = [
            {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(large) else "regular", "shouldIgnore": False}
            for one in files
        ]
        self.answer({"files": said})

    def batch(self, _: str) -> None:
        objects = []
        for one in json.loads(self.body)["objects"]:
            oid = one["oid"]
            actions = {
                "upload": {"href": f"{self.server.url}/store/{oid}"},
                "verify": {"href": f"{self.server.url}/verify/{oid}"},
            }
            objects.append({"oid": oid, "size": one["size"], "actions": actions})
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.answer({"error": "not the content of this hash"}, 400)
        self.server.objects[oid] = self.body
        return self.answer({})

    def verify(self, oid: str) -> None:
        size = json.loads(self.body)["size"]
        known = len(self.server.objects.get(oid, b"")) == size
        self.answer({} if known else {"error": "not stored"}, 200 if known else 404)

    def commit(self, repo: str) -> None:
        made: dict[str, bytes] = {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                made[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    return self.answer({"error": f"{value['path']} was not uploaded"}, 400)
                made[value["path"]] = self.server.objects[value["oid"]]
        self.server.files[repo].update(made)
        self.server.commits += 1
        oid = f"{self.server.commits:040x}"
        return self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}"})


@contextmanager
def serving():
    """A hub that runs until the end of the block."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
