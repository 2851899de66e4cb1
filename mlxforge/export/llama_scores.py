"""Log-probabilities of given tokens by llama.cpp's own library, in a process of its own: its server has those of new ones only.

The library is the one inside xllamacpp, called by its C interface. Two structs of it grow from release to release, so they are
passed as llama.cpp fills them, but for the three sizes that begin one of them; what came of these is looked at, and whoever
uses the figures holds a few of them against the server's.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mlxforge.core.files import PACKAGE
from mlxforge.export.llama import ANSWER, LlamaFailed

if TYPE_CHECKING:
    import numpy as np

AT_ONCE = 256  # tokens whose logits are held together: of a vocabulary of 150,000 they take 150 MB
STRUCT = 4096  # bytes, more than any of llama.cpp's parameters take
SIZES = 3  # n_ctx, n_batch, n_ubatch begin llama_context_params
LAST_LINE = 300  # characters of the log that are shown


class LlamaScores:
    """One GGUF file, as a context manager.

    Args:
        window: tokens of a sequence at most.

    Raises:
        LlamaFailed: the library cannot be used so, or the file not be opened.
    """

    def __init__(self, file: Path, window: int) -> None:
        self.file, self.window = file, window

    def __enter__(self) -> LlamaScores:
        self._log = tempfile.TemporaryFile()
        pipe = subprocess.PIPE
        path = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH", ""))))
        environment = {**os.environ, "PYTHONPATH": path, "GGML_NO_BACKTRACE": "1"}
        command = [sys.executable, "-m", "mlxforge.export.llama_scores"]
        options: dict[str, Any] = {"env": environment, "cwd": "/", "start_new_session": True}
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._log, **options)
        try:
            self._ask({"file": str(self.file.resolve()), "window": self.window})
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def log_probs(self, ids: Sequence[int]) -> np.ndarray:
        """(N - 1,) natural log-probabilities of N tokens but the first, each given those before it.

        Raises:
            LlamaFailed: more tokens than the window, or the process died.
        """
        import numpy as np

        return np.array(self._ask({"ids": [int(index) for index in ids]})["log_probs"], np.float64)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        if not select.select([self._process.stdout], [], [], ANSWER)[0]:
            raise LlamaFailed(f"llama.cpp did not answer in {ANSWER:.0f} s", where=str(self.file))
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise LlamaFailed(f"log-probabilities cannot be had of llama.cpp: {answer['failed']}", where=str(self.file))
        return answer

    def _died(self) -> LlamaFailed:
        code = self._process.wait(ANSWER)
        content = os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode(errors="replace")
        last = next((line for line in reversed(content.splitlines()) if line.strip()), "")[:LAST_LINE]
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return LlamaFailed(f"llama.cpp ended ({how}){': ' if last else ''}{last}", where=str(self.file))


class Parameters(ctypes.Structure):
    """llama.cpp's parameters, whatever they are: passed by value, a longer struct is read as far as it is known."""

    _fields_ = [("content", ctypes.c_uint8 * STRUCT)]


class TokenBatch(ctypes.Structure):
    """``llama_batch``."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


HANDLE, NUMBER = ctypes.c_void_p, ctypes.c_int32
# Function -> what it returns and takes.
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "llama_backend_init": (None,),
    "llama_model_default_params": (Parameters,),
    "llama_context_default_params": (Parameters,),
    "llama_model_load_from_file": (HANDLE, ctypes.c_char_p, Parameters),
    "llama_init_from_model": (HANDLE, HANDLE, Parameters),
    "llama_n_ctx": (ctypes.c_uint32, HANDLE),
    "llama_n_batch": (ctypes.c_uint32, HANDLE),
    "llama_model_get_vocab": (HANDLE, HANDLE),
    "llama_vocab_n_tokens": (NUMBER, HANDLE),
    "llama_batch_init": (TokenBatch, NUMBER, NUMBER, NUMBER),
    "llama_decode": (NUMBER, HANDLE, TokenBatch),
    "llama_get_logits": (ctypes.POINTER(ctypes.c_float), HANDLE),
    "llama_get_memory": (HANDLE, HANDLE),
    "llama_memory_clear": (None, HANDLE, ctypes.c_bool),
}


class Unusable(Exception):
    """Why the library cannot be used so."""


class Library:
    """A file opened by the C interface."""

    def __init__(self, file: str, window: int) -> None:
        self.call = {name: _function(name) for name in FUNCTIONS}
        self.call["llama_backend_init"]()
        self.at_once = min(AT_ONCE, window)
        model = self.call["llama_model_load_from_file"](file.encode(), self.call["llama_model_default_params"]())
        if not model:
            raise Unusable("the file does not load")
        parameters = self.call["llama_context_default_params"]()
        sizes = (ctypes.c_uint32 * SIZES).from_buffer(parameters)
        sizes[:] = [window, self.at_once, self.at_once]
        self.context = self.call["llama_init_from_model"](model, parameters)
        if not self.context:
            raise Unusable("no context for the file")
        found = self.call["llama_n_ctx"](self.context), self.call["llama_n_batch"](self.context)
        if found[0] < window or found[1] != self.at_once:
            raise Unusable("this version of xllamacpp has another C interface")
        self.window = window
        self.vocabulary = self.call["llama_vocab_n_tokens"](self.call["llama_model_get_vocab"](model))
        self.memory = self.call["llama_get_memory"](self.context)
        self.batch = self.call["llama_batch_init"](self.at_once, 0, 1)

    def log_probs(self, ids: Sequence[int]) -> list[float]:
        """See :meth:`LlamaScores.log_probs`."""
        import numpy as np

        if len(ids) - 1 > self.window:
            raise Unusable(f"{len(ids) - 1:,} tokens, where the window has {self.window:,}")
        self.call["llama_memory_clear"](self.memory, True)
        found: list[float] = []
        inputs = ids[:-1]
        for begin in range(0, len(inputs), self.at_once):
            part = inputs[begin : begin + self.at_once]
            for place, token in enumerate(part):
                self.batch.token[place], self.batch.pos[place] = token, begin + place
                self.batch.n_seq_id[place], self.batch.seq_id[place][0], self.batch.logits[place] = 1, 0, 1
            self.batch.n_tokens = len(part)
            if code := self.call["llama_decode"](self.context, self.batch):
                raise Unusable(f"it does not decode (code {code})")
            logits = np.ctypeslib.as_array(self.call["llama_get_logits"](self.context), (len(part), self.vocabulary))
            top = logits.max(axis=-1)
            total = np.log(np.exp(logits - top[:, None]).sum(axis=-1, dtype=np.float64))
            chosen = logits[np.arange(len(part)), list(ids[begin + 1 : begin + 1 + len(part)])]
            found += (chosen - top - total).astype(np.float64).tolist()
        return found


def _function(name: str) -> Any:
    spec = importlib.util.find_spec("xllamacpp")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).glob("xllamacpp*.so")):
            library = ctypes.CDLL(str(file))
            if hasattr(library, name):
                function = getattr(library, name)
                function.restype, *function.argtypes = FUNCTIONS[name]
                return function
    raise Unusable(f"this xllamacpp does not show {name}")


def serve() -> None:
    """The process: settings and then sequences on stdin, a line each; answers on stdout."""
    answer = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what llama.cpp prints belongs to the log
    library: Library | None = None
    for line in sys.stdin.buffer:
        question = json.loads(line)
        try:
            if library is None:
                library = Library(question["file"], question["window"])
                answer.write(b"{}\n")
            else:
                answer.write(json.dumps({"log_probs": library.log_probs(question["ids"])}).encode() + b"\n")
        except Unusable as reason:
            answer.write(json.dumps({"failed": str(reason)}).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    serve()
