"""Measures the export: fuse, conversion to float16 and quantization of a synthetic model of half a billion weights.

    python scripts/bench_export.py
    python scripts/bench_export.py --repeat 5 --quant q8_0 q4_k_m q6_k --json

The model (qwen3 in bfloat16, 151,936 tokens, 471 M weights; 1 GB) and an adapter over it are made once, in the cache folder;
4 GB more are needed while it runs. Each step runs in a process of its own, whose peak memory is stated; times are those of the
step alone, without the start of Python. Beside the conversion the same bytes are copied, beside a quantization the float16
file goes through llama.cpp's own quantizer with as many threads. The fastest of several counts, as other work only adds.
"""

from __future__ import annotations

import argparse
import filecmp
import itertools
import json
import os
import shutil
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LIMITS = {"convert": 1.5, "q4_k_m": 1.2}  # times of the copy, times of llama-quantize
SHAPE = {"hidden_size": 1024, "num_hidden_layers": 20, "intermediate_size": 4096, "vocab_size": 151_936}
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64}
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 512, "vocab_size": 4096}
RANK = 8
MARKER = "done"


def job_make(given: argparse.Namespace) -> dict[str, Any]:
    """The model in ``base`` and the adapter in ``adapter`` of the cache folder, if they are not there whole."""
    folder, shape = given.folder, SMALL if given.small else SHAPE
    if (folder / MARKER).is_file():
        return {}
    import mlx.core as mx

    from mlxforge.models.lora import save_adapter
    from mlxforge.models.tiny import make_tiny

    shutil.rmtree(folder, ignore_errors=True)
    (folder / "adapter").mkdir(parents=True)
    make_tiny("qwen3", folder / "base", dtype="bfloat16", **shape, **HEADS)
    fill_vocabulary(folder / "base" / "tokenizer.json", shape["vocab_size"])
    mx.random.seed(0)
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    sizes = {"self_attn.q_proj": (width, 1024), "self_attn.v_proj": (width, 512), "mlp.down_proj": (inner, width)}
    weights = {}
    for layer, (key, (columns, rows)) in itertools.product(range(shape["num_hidden_layers"]), sizes.items()):
        name = f"model.layers.{layer}.{key}"
        weights[f"{name}.lora_a"] = mx.random.normal((columns, RANK)) * 0.02
        weights[f"{name}.lora_b"] = mx.random.normal((RANK, rows)) * 0.02
    settings = {"rank": RANK, "scale": 2.0, "dropout": 0.0, "keys": list(sizes)}
    config = {"fine_tune_type": "lora", "num_layers": shape["num_hidden_layers"], "lora_parameters": settings}
    save_adapter(folder / "adapter", weights, {**config, "model": str(folder / "base")})
    (folder / MARKER).touch()
    return {}


def fill_vocabulary(file: Path, rows: int) -> None:
    """Adds tokens of up to four letters and their merges until there are as many as rows of the embedding."""
    content = json.loads(file.read_bytes())
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    pairs = isinstance(merges[0], list)
    ids = {*vocabulary.values(), *(token["id"] for token in content["added_tokens"])}
    for length in (2, 3, 4):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            token = "".join(letters)
            if len(ids) >= rows or token in vocabulary:
                continue
            vocabulary[token] = len(ids)
            ids.add(vocabulary[token])
            merges.append([token[:-1], token[-1]] if pairs else f"{token[:-1]} {token[-1]}")
    file.write_text(json.dumps(content))


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and seconds of all cores' work, which other work on the machine changes less."""
    begun, worked = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begun, time.process_time() - worked


def fastest(times: list[tuple[float, float]]) -> dict[str, float]:
    """The least of each."""
    return {"seconds": min(one for one, _ in times), "cpu": min(one for _, one in times)}


def copy(source: Path, target: Path) -> None:
    """A plain copy that is on the disk in the end, as a written GGUF file is."""
    shutil.copyfile(source, target)
    handle = os.open(target, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def job_fuse(given: argparse.Namespace) -> dict[str, Any]:
    from mlxforge.runs.fuse import fuse
    from mlxforge.runs.opening import Base

    base = Base(str(given.folder / "base"), given.folder / "adapter")
    return {**fastest([timed(lambda: fuse(base, given.work / "fused", force=True)) for _ in range(given.repeat)])}


def job_write(given: argparse.Namespace) -> dict[str, Any]:
    """One file of the fused model; the same bytes are copied in turn, so that both meet the same disk."""
    from mlxforge.export.gguf import write_gguf
    from mlxforge.export.layout import metadata
    from mlxforge.runs.opening import Base
    from mlxforge.runs.verify import material

    begun = time.perf_counter()
    made = material(Base(str(given.work / "fused")))
    keys = [*metadata(made.source), *made.vocabulary.keys]
    result = {"opening": time.perf_counter() - begun}
    output = given.work / f"{given.write}.gguf"

    def write() -> None:
        threads = given.threads
        write_gguf(output, made.source, made.placed, keys, given.write, name="bench", force=True, threads=threads)

    own, copies = [], []
    for _ in range(given.repeat):
        own.append(timed(write))
        copies.append(timed(lambda: copy(output, given.work / "copy")))
    (given.work / "copy").unlink()
    return {**result, **fastest(own), "copy": fastest(copies), "bytes": output.stat().st_size}


JOBS = {"make": job_make, "fuse": job_fuse, "write": job_write}


def child(command: list[str]) -> tuple[int, str, float]:
    """Exit code, standard output and peak memory in bytes of a process.

    Linux counts what this process held when it started the other, so nothing heavy is imported here.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        return process.returncode, output.read(), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def step(given: argparse.Namespace, *options: str) -> dict[str, Any]:
    """Runs a job of this script in a process of its own."""
    shared = ["--repeat", str(given.repeat), "--threads", str(given.threads), *(["--small"] if given.small else [])]
    code, text, memory = child([sys.executable, __file__, *shared, *options])
    if code:
        sys.exit(f"{' '.join(options)} failed with {code}: run it alone to see why")
    return {**json.loads(text.splitlines()[-1]), "memory": memory}


def reference(given: argparse.Namespace, work: Path, quant: str) -> dict[str, Any] | None:
    """llama.cpp's own quantizer on the float16 file; None where it cannot be had."""
    job = [str(work / "f16.gguf"), str(work / "theirs.gguf"), quant]
    jobs = job * max(1, min(given.repeat, 2))
    code, text, memory = child([sys.executable, str(HERE / "llama_quantize.py"), *jobs, "--threads", str(given.threads)])
    if code:
        return None
    seconds = min(json.loads(line)["seconds"] for line in text.splitlines() if line.startswith("{"))
    same = filecmp.cmp(work / "theirs.gguf", work / f"{quant}.gguf", shallow=False)
    (work / "theirs.gguf").unlink()
    return {"seconds": seconds, "memory": memory, "identical": same}


def measure(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All figures."""
    place = ["--work", str(work)]
    result: dict[str, Any] = {"threads": given.threads, "fuse": step(given, "--job", "fuse", *place)}
    result["convert"] = step(given, "--job", "write", "--write", "f16", *place)
    for quant in given.quant:
        result[quant] = step(given, "--job", "write", "--write", quant, *place)
        result[quant]["llama_quantize"] = reference(given, work, quant)
        (work / f"{quant}.gguf").unlink()
    shape = SMALL if given.small else SHAPE
    largest = shape["vocab_size"] * shape["hidden_size"] * 2
    return result | {"memory_limit": 1.5 * largest + 300e6}


def table(result: dict[str, Any]) -> str:
    """The figures for a terminal."""
    lines = [f"{'':10} {'seconds':>8} {'cpu':>6} {'beside it':>21} {'ratio':>6} {'wanted':>7} {'peak':>8}"]
    for name, row in result.items():
        if not isinstance(row, dict):
            continue
        theirs = row.get("llama_quantize")
        other, label = (row.get("copy"), "copy") if name == "convert" else (theirs, "llama-quantize")
        beside, ratio = (f"{label} {other['seconds']:.2f}", f"{row['seconds'] / other['seconds']:.2f}") if other else ("-", "-")
        wanted = f"<= {LIMITS[name]}" if name in LIMITS else ""
        peak = f"{row['memory'] / 1e6:.0f} MB"
        lines.append(f"{name:10} {row['seconds']:8.2f} {row['cpu']:6.2f} {beside:>21} {ratio:>6} {wanted:>7} {peak:>8}")
        if theirs and not theirs["identical"]:
            lines.append(f"{'':10} NOT the bytes of llama-quantize")
    lines.append(f"{result['threads']} threads; a GGUF file may take {result['memory_limit'] / 1e6:.0f} MB of memory")
    return "\n".join(lines)


def main() -> None:
    from mlxforge.core.files import cache_dir

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quant", nargs="*", default=["q8_0", "q4_k_m"])
    parser.add_argument("--small", action="store_true", help="a model of 4 M weights, to try the script")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--job", choices=list(JOBS), help=argparse.SUPPRESS)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.folder = cache_dir() / ("bench-export-small" if given.small else "bench-export")
    if given.job:
        print(json.dumps(JOBS[given.job](given)))
        return
    step(given, "--job", "make")
    with tempfile.TemporaryDirectory(dir=given.folder) as work:
        result = measure(given, Path(work))
    print(json.dumps(result) if given.json else table(result))


if __name__ == "__main__":
    main()
