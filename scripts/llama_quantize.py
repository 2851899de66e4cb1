"""llama.cpp's own quantizer, for comparison: ``llama_model_quantize`` of the libraries in the npm package @node-llama-cpp.

    python scripts/llama_quantize.py IN.gguf OUT.gguf Q4_K_M [IN OUT TYPE ...] [--threads 2]

Prints a line of JSON with the seconds that each file took. The package (Linux x86-64, 11 MB) is fetched once from the npm
registry into ~/.cache/mlxforge-tests and checked by its SHA-512. Exit code 3: it cannot be had here, with the reason.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import hashlib
import io
import json
import os
import platform
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

from mlxforge.core.files import new_directory
from mlxforge.export.quantize import QUANTS

VERSION = "3.22.1"
ADDRESS = f"https://registry.npmjs.org/@node-llama-cpp/linux-x64/-/linux-x64-{VERSION}.tgz"
SHA512 = "5uCCDNqWCNfaAm8aR/Uzxbo4HBpKgNF91kCHPepKhgMgV2OAmatoefbOlMihsqCiH2Od35E/eUHQCFbfRBJuOg=="
UNAVAILABLE = 3


class Params(ctypes.Structure):
    """``llama_model_quantize_params`` of llama.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("nthread", "ftype", "output_tensor_type", "token_embedding_type")),
        *((name, ctypes.c_bool) for name in ("allow_requantize", "quantize_output_tensor", "only_copy")),
        *((name, ctypes.c_bool) for name in ("pure", "keep_split", "dry_run")),
        *((name, ctypes.c_void_p) for name in ("imatrix", "kv_overrides", "tt_overrides", "prune_layers")),
    ]


def libraries() -> Path:
    """The folder of the libraries, fetched where they are not there yet.

    Raises:
        OSError: another system, no network, or another content than the one that is known.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise OSError("the package is for Linux on x86-64")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "mlxforge-tests" / f"node-llama-cpp-{VERSION}"
    if not folder.is_dir():
        with urllib.request.urlopen(ADDRESS, timeout=60) as answer:
            content = answer.read()
        if base64.b64encode(hashlib.sha512(content).digest()).decode() != SHA512:
            raise OSError(f"{ADDRESS} has another content than the one that is known")
        with new_directory(folder) as made, tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                if member.isfile() and ".so" in member.name:
                    (made / Path(member.name).name).write_bytes(archive.extractfile(member).read())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", metavar="IN OUT TYPE")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    if len(given.jobs) % 3:
        parser.error("IN, OUT and TYPE come in threes")
    try:
        folder = libraries()
    except OSError as error:
        print(f"no llama_model_quantize: {error}", file=sys.stderr)
        sys.exit(UNAVAILABLE)
    llama = ctypes.CDLL(str(next(folder.glob("libllama.v*.so"))))
    llama.llama_model_quantize_default_params.restype = Params
    llama.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Params)]
    llama.llama_backend_init()
    for source, target, kind in zip(given.jobs[::3], given.jobs[1::3], given.jobs[2::3], strict=True):
        params = llama.llama_model_quantize_default_params()
        params.ftype, params.nthread = QUANTS[kind.lower()].number, given.threads
        begun = time.perf_counter()
        if llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)):
            sys.exit(f"{source}: llama_model_quantize failed")
        print(json.dumps({"file": target, "seconds": time.perf_counter() - begun}), flush=True)


if __name__ == "__main__":
    main()
