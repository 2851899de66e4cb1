"""llama.cpp itself, in a process of its own: it may abort on a bad file, and it prints a lot.

The process (``python -m mlxforge.export.llama``) opens one GGUF file with xllamacpp, which answers on a loopback port behind a
random key; it ends with its parent, or when its file is closed. It computes on the CPU, with attention and caches in float32:
the limits of :mod:`mlxforge.export.verify` were measured there. Metal's numerics were not measured.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mlxforge.core.errors import MissingExtraError, MlxforgeError, RunFailed
from mlxforge.core.files import PACKAGE

if TYPE_CHECKING:
    import numpy as np  # the process starts faster without it

CONTEXT = 1024  # tokens; the checks' conversations are shorter
START, ANSWER = 600.0, 600.0  # seconds until a file is open, and until a request is answered
SMALL = 64 << 20  # bytes of a file that one thread reads faster than several would wait for each other
LAST_LINES = 6  # of llama.cpp's log, shown where it fails and names no reason
# A line of its log that tells of an error: when, E, which function, what.
REASON = re.compile(r"[\d.]+ E +\w+: +(?:error loading model: )?(?:\w+: )?(.+)")
FLOOR = -80.0  # log-probabilities below are no more than that: e^-88 is not a float32
OUTRIGHT = 1e6  # added to a logit: that token comes next, whatever the others are


class LlamaFailed(RunFailed):
    """llama.cpp refused a file or a request, died, or took too long."""


def available() -> bool:
    """Whether the extra ``gguf`` is installed."""
    return find_spec("xllamacpp") is not None


def version() -> str:
    """The version of xllamacpp, whose last part is llama.cpp's build number; empty where it is not installed."""
    from importlib.metadata import version

    return version("xllamacpp") if available() else ""


class LlamaCpp:
    """One GGUF file in llama.cpp, as a context manager.

    Args:
        file: any name will do, ``*.unverified`` too.
        context: tokens that a prompt and its continuation may take.
        threads: None for all cores but one, or for one thread where the file is small.
        plain: as llama.cpp runs by itself, on a GPU where it has one and with caches in half precision; else as checks need it,
            on the CPU with all of attention in float32.

    Raises:
        MissingExtraError: no xllamacpp.
        LlamaFailed: the file does not load; why, as llama.cpp's log has it.
        MlxforgeError: xllamacpp is installed and does not start.
    """

    def __init__(
        self,
        file: Path,
        *,
        context: int = CONTEXT,
        threads: int | None = None,
        timeout: float = ANSWER,
        plain: bool = False,
    ) -> None:
        if not available():
            raise MissingExtraError("xllamacpp", "gguf", "verification")
        self.file, self.timeout = file, timeout
        # llama.cpp's threads wait for each other by spinning: where one has no core of its own, all take several times as long.
        threads = threads or (1 if file.stat().st_size < SMALL else max(1, (os.cpu_count() or 2) - 1))
        self._settings = {"file": str(file.resolve()), "context": context, "threads": threads, "key": secrets.token_hex(16)}
        self._settings["plain"] = plain

    def __enter__(self) -> LlamaCpp:
        self._log = tempfile.TemporaryFile()
        command = [sys.executable, "-m", "mlxforge.export.llama"]
        pipe = subprocess.PIPE
        paths = (str(PACKAGE.parent), os.environ.get("PYTHONPATH", ""))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        # Where it aborts, llama.cpp would start a debugger on itself, for seconds and pages.
        environment["GGML_NO_BACKTRACE"] = "1"
        # From /, no file that lies about can be taken for a module.
        options: dict[str, Any] = {"env": environment, "cwd": "/", "start_new_session": True}
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._log, **options)
        try:
            self._process.stdin.write(json.dumps(self._settings).encode() + b"\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
            self._connection = http.client.HTTPConnection(self._address(), timeout=self.timeout)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()
        self._end()

    def _address(self) -> str:
        """``host:port`` of the process, once the file is open."""
        output = self._process.stdout
        assert output is not None
        if not select.select([output], [], [], START)[0]:
            raise self._failed(f"did not open the file in {START:.0f} s")
        line = output.readline()
        if not line:
            raise self._failed("cannot open the file")
        answer = json.loads(line)
        if "missing" in answer:
            what = f"the package 'xllamacpp' does not start: {answer['missing']}"
            raise MlxforgeError(what, fix="install it again; --no-verify exports without it")
        return str(answer["address"])

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def _failed(self, what: str) -> LlamaFailed:
        # A process that fails says so before it ends.
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            code = 0
        died = f", killed by signal {-code}" if code < 0 else ""
        log = self.log()
        # llama.cpp names the reason first, and then everything that fails with it.
        reason = next((found[1] for line in log if (found := REASON.match(line))), None)
        lines = f" {reason}" if reason else "".join(f"\n  {line}" for line in log[-LAST_LINES:])
        return LlamaFailed(f"llama.cpp {what}{died}{':' if lines else ''}{lines}", where=str(self.file))

    def log(self) -> list[str]:
        """The lines of llama.cpp's log so far; the file offset is shared with the process, so it is read by position."""
        content = os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0)
        return [line for line in content.decode(errors="replace").splitlines() if line.strip()]

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """One request to the server, as llama.cpp documents them.

        Raises:
            LlamaFailed: it refuses, died or took too long.
        """
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._settings['key']}"}
        try:
            content = None if body is None else json.dumps(body)
            self._connection.request("GET" if body is None else "POST", path, content, headers)
            response = self._connection.getresponse()
            answer = json.loads(response.read())
        except TimeoutError as error:
            raise self._failed(f"did not answer {path} in {self.timeout:g} s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failed(f"ended while it answered {path}") from error
        if response.status != 200:
            said = answer.get("error", answer) if isinstance(answer, dict) else answer
            what = said.get("message", said) if isinstance(said, dict) else said
            raise LlamaFailed(f"llama.cpp refuses {path}: {what}", where=str(self.file))
        return answer

    @property
    def info(self) -> dict[str, Any]:
        """``chat_template``, ``bos_token``, ``eos_token`` (text) and ``n_vocab`` as llama.cpp understood the file."""
        properties, models = self.ask("/props"), self.ask("/v1/models")
        kept = {key: properties.get(key) for key in ("chat_template", "bos_token", "eos_token")}
        return {**kept, "n_vocab": int(models["data"][0]["meta"]["n_vocab"])}

    def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Ids of a text. ``special``: names of special tokens become these; ``bos``: what the file says goes before a text."""
        ids = self.ask("/tokenize", {"content": text, "add_special": bos, "parse_special": special})["tokens"]
        return [int(index) for index in ids]

    def chat_prompt(self, messages: Sequence[dict[str, Any]], *, thinking: bool | None = False) -> str:
        """The conversation by the file's own template, with the opening of an answer; None leaves thoughts to the template."""
        switches = {} if thinking is None else dict.fromkeys(("enable_thinking", "thinking", "force_thinking"), thinking)
        body = {"messages": list(messages), "add_generation_prompt": True, "chat_template_kwargs": switches}
        return str(self.ask("/apply-template", body)["prompt"])

    def chat_ids(self, messages: Sequence[dict[str, Any]], *, thinking: bool = False) -> list[int]:
        """The ids that llama.cpp's chat endpoint feeds for a conversation."""
        return self.tokenize(self.chat_prompt(messages, thinking=thinking), special=True, bos=True)

    def logprobs(self, ids: Sequence[int], n: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, natural log-probabilities), both (n,) and best first, of what follows ``ids``."""
        # What is reported is not biased, and is left out where the token that comes next is a part of a character.
        made = self._complete(ids, 1, n_probs=n, logit_bias=[[self._whole, OUTRIGHT]])["completion_probabilities"][0]
        made = made["top_logprobs"]
        import numpy as np

        values = np.array([token["logprob"] for token in made], np.float32)
        return np.array([token["id"] for token in made], np.int64), np.maximum(values, FLOOR)

    @cached_property
    def _whole(self) -> int:
        """A token that is a whole character."""
        return self.tokenize("a")[-1]

    def greedy(self, ids: Sequence[int], n: int) -> list[int]:
        """The most likely continuation: ``n`` tokens, or fewer and the end-of-generation token that ended it."""
        return [int(index) for index in self._complete(ids, n)["tokens"]]

    def stops_at(self, ids: Sequence[int], token: int) -> bool:
        """Whether generation ends when ``token`` is generated after ``ids``."""
        made = self._complete(ids, 2, logit_bias=[[token, OUTRIGHT]])
        return bool(made["stop_type"] == "eos" and made["tokens_predicted"] == 1)

    def _complete(self, ids: Sequence[int], n: int, **options: Any) -> Any:
        settings = {"n_predict": n, "temperature": 0, "return_tokens": True, "cache_prompt": True, "add_special": False}
        return self.ask("/completion", {"prompt": list(ids), **settings, **options})


def serve() -> None:
    """The process: settings on stdin, the address on stdout; it lives until stdin is closed."""
    answer = os.dup(1)
    os.dup2(2, 1)  # what llama.cpp prints belongs to the log
    settings = json.loads(sys.stdin.buffer.readline())
    try:
        import xllamacpp
    except (ImportError, OSError) as error:
        os.write(answer, json.dumps({"missing": str(error)}).encode() + b"\n")
        os._exit(1)

    params = xllamacpp.CommonParams()
    params.model.path = settings["file"]
    params.api_keys = [settings["key"]]
    params.n_ctx = params.n_batch = params.n_ubatch = settings["context"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    if not settings["plain"]:
        params.n_gpu_layers, params.no_op_offload, params.no_kv_offload = 0, True, True
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_parallel, params.cache_ram_mib, params.n_ctx_checkpoints = 1, 0, 0
    # fit_params tries memory layouts for a third of a second; a sliding window's cache could not be rewound.
    params.fit_params, params.warmup, params.ui, params.swa_full = False, False, False, True
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:  # the reason is in the log
        written()
        os._exit(1)
    os.write(answer, json.dumps({"address": server.listening_address.removeprefix("http://")}).encode() + b"\n")
    sys.stdin.buffer.read()
    os._exit(0)


def written(patience: float = 2.0) -> None:
    """Waits until the log stands still: a thread of llama.cpp writes it, a little later than it happened."""
    size, still, end = -1, 0, time.monotonic() + patience
    while still < 3 and time.monotonic() < end:
        time.sleep(0.05)
        before, size = size, os.fstat(2).st_size
        still = still + 1 if size == before and size else 0


if __name__ == "__main__":
    serve()
