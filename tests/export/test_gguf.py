"""The GGUF writer: read back by the gguf package, and byte for byte what llama-quantize makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from mlxforge.core.errors import ConfigError, MissingExtraError, MlxforgeError, ModelError, RunFailed
from mlxforge.export import gguf as module
from mlxforge.export.general import general, honest_name
from mlxforge.export.gguf import write_gguf
from mlxforge.export.header import header
from mlxforge.export.quantize import QUANTS, dequantized, library, nbytes
from mlxforge.export.source import Entry

ROOT = Path(__file__).parents[2]
TEXT, COUNT, NUMBER, ARRAY = (GGUFValueType[name] for name in ("STRING", "UINT32", "FLOAT32", "ARRAY"))


@dataclass
class Stored:
    """A source of float16 or float32 arrays."""

    path: Path
    arrays: dict[str, np.ndarray]

    @property
    def entries(self):
        return {name: Entry(name, "F16" if one.dtype == np.float16 else "F32", one.shape) for name, one in self.arrays.items()}

    def rows(self, name, start=0, stop=None):
        return self.arrays[name][start:stop].astype(np.float32)

    def block(self, name, start=0, stop=None):
        return self.arrays[name][start:stop]

    def chunks(self, name) -> Iterator[bytes]:
        data = self.arrays[name].tobytes()
        return (data[start : start + 100_000] for start in range(0, len(data), 100_000))


@dataclass(frozen=True)
class Placed:
    name: str
    shape: tuple[int, ...]
    keep32: bool = False
    op: str = "copy"

    @property
    def sources(self):
        return (self.name,)

    def blocks(self, source, stored=False):
        values = (source.block if stored else source.rows)(self.name)
        flat = values.reshape(-1, self.shape[-1]) if values.ndim > 1 else values
        step = max(1, -(-len(flat) // 3))
        return (flat[start : start + step] for start in range(0, len(flat), step))


def model(folder, layers=2, width=256, heads=4, vocabulary=96, tied=False, fused=False, experts=0, dtype=np.float32):
    """A transformer in llama.cpp's names, without meaning: (source, tensors, keys)."""
    architecture, kv = "phi3" if fused else "llama", width // heads
    inner = width * 2 if fused else width
    shapes = {"attn_norm": (width,), "ffn_norm": (width,), "attn_output": (width, width)}
    shapes |= {"attn_qkv": (width + 2 * kv, width)} if fused else {"attn_q": (width, width), "attn_k": (kv, width)}
    shapes |= {} if fused else {"attn_v": (kv, width)}
    if experts:
        shapes |= {"ffn_gate_inp": (experts, width)}
        shapes |= {f"ffn_{part}_exps": (experts, width, width) for part in ("gate", "up", "down")}
    else:
        shapes |= {"ffn_up": (inner, width), "ffn_down": (width, width)}
        shapes |= {} if fused else {"ffn_gate": (width, width)}
    tensors = [Placed("token_embd.weight", (vocabulary, width)), Placed("output_norm.weight", (width,), True)]
    tensors += [] if tied else [Placed("output.weight", (vocabulary, width))]
    for layer in range(layers):
        for stem, shape in shapes.items():
            tensors.append(Placed(f"blk.{layer}.{stem}.weight", shape, "norm" in stem or stem == "ffn_gate_inp"))
    random = np.random.default_rng(layers)
    arrays = {one.name: (random.standard_normal(one.shape, np.float32) * np.float32(0.05)).astype(dtype) for one in tensors}
    counts = {"block_count": layers, "context_length": 512, "embedding_length": width, "feed_forward_length": width}
    counts |= {
        "attention.head_count": heads,
        "attention.head_count_kv": 1,
        "rope.dimension_count": kv,
        "vocab_size": vocabulary,
    }
    counts |= {"expert_count": experts, "expert_used_count": 2} if experts else {}
    counts |= {"rope.scaling.original_context_length": 512} if fused else {}
    keys = [("general.architecture", architecture, TEXT), ("tokenizer.ggml.model", "gpt2", TEXT)]
    keys += [(f"{architecture}.{key}", value, COUNT) for key, value in counts.items()]
    keys += [(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5, "FLOAT32")]
    keys += [("tokenizer.ggml.tokens", [f"t{token}ö" for token in range(vocabulary)], ARRAY)]
    keys += [("tokenizer.ggml.token_type", np.ones(vocabulary, np.int32), ARRAY), ("tokenizer.ggml.merges", ["a b"], ARRAY)]
    return Stored(folder, arrays), tensors, keys


def written(tmp_path, quant="f16", name="out.gguf", **options):
    source, tensors, keys = model(tmp_path, **options)
    return source, write_gguf(tmp_path / name, source, tensors, keys, quant, name="A model", force=True)


def test_what_is_written_is_read_back(tmp_path):
    source, result = written(tmp_path, "f16")
    reader = GGUFReader(tmp_path / "out.gguf")
    assert {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF")} == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "A model",
        "general.size_label": "771K",
        "tokenizer.ggml.model": "gpt2",
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 256,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 1,
        "llama.rope.dimension_count": 64,
        "llama.vocab_size": 96,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "tokenizer.ggml.tokens": [f"t{token}ö" for token in range(96)],
        "tokenizer.ggml.token_type": [1] * 96,
        "tokenizer.ggml.merges": ["a b"],
        "general.quantization_version": 2,
        "general.file_type": 1,
    }
    assert reader.fields["tokenizer.ggml.token_type"].types == [GGUFValueType.ARRAY, GGUFValueType.INT32]
    assert {one.name for one in reader.tensors} == set(source.arrays)
    for tensor in reader.tensors:
        kept = source.arrays[tensor.name]
        assert tensor.tensor_type.name == ("F32" if "norm" in tensor.name else "F16")
        assert np.array_equal(dequantized(tensor), kept if "norm" in tensor.name else kept.astype(np.float16))
    assert result == {
        "file": str(tmp_path / "out.gguf"),
        "quant": "f16",
        "bytes": (tmp_path / "out.gguf").stat().st_size,
        "tensors": 21,
        "types": {"F16": 16, "F32": 5},
        "fallbacks": {},
        "quantizer": "ggml (xllamacpp)" if library() else "numpy",
    }


def test_the_header_is_that_of_the_gguf_package(tmp_path):
    _, tensors, keys = model(tmp_path, experts=2)
    keys = [*keys, ("a.flag", True, "BOOL"), ("a.long", 2**40, "UINT64"), ("a.flags", [True, False], ARRAY)]
    keys += [("a.scores", [0.5, -1.0], ARRAY), ("a.sizes", [1, 2], ARRAY, "UINT32"), ("a.minus", -1, "INT32")]
    table = [(one.name, one.shape, "F16", nbytes("F16", one.shape)) for one in tensors]
    writer = GGUFWriter(tmp_path / "theirs", "llama")
    for key, value, kind, *item in keys:
        types = [GGUFValueType[one] if isinstance(one, str) else one for one in (kind, *item)]
        writer.add_key_value(key, value.tolist() if isinstance(value, np.ndarray) else value, *types)
    for name, shape, _, size in table:
        writer.add_tensor_info(name, shape, np.dtype(np.float16), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    theirs = (tmp_path / "theirs").read_bytes()
    assert header(keys, table) == theirs + bytes(-len(theirs) % 32)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (("a", -1, "UINT32"), "-1 is not of type UINT32"),
        (("a", 2**32, "UINT32"), "is not of type UINT32"),
        (("a", 1.5, "INT32"), "1.5 is not of type INT32"),
        (("a", "7", "INT32"), "'7' is not of type INT32"),
        (("a", [], "ARRAY"), "an empty array needs"),
        (("a", [1, "b"], "ARRAY"), "items of several types"),
        (("b", 1, "UINT32"), "b is there twice"),
    ],
)
def test_keys_that_cannot_be_written(key, text):
    with pytest.raises(ValueError, match=text):
        header([("b", 1, "UINT32"), key], [])


def test_stored_bytes_are_handed_on(tmp_path):
    """What is stored as float16 already is the same file as from its values in float32."""
    source, tensors, keys = model(tmp_path, dtype=np.float16)
    write_gguf(tmp_path / "a.gguf", source, tensors, keys, "f16", name="x")
    wide = Stored(tmp_path, {name: one.astype(np.float32) for name, one in source.arrays.items()})
    write_gguf(tmp_path / "b.gguf", wide, tensors, keys, "f16", name="x")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(tmp_path, threads):
    source, tensors, keys = model(tmp_path, experts=4)
    for name, count in (("a.gguf", threads), ("b.gguf", 2)):
        write_gguf(tmp_path / name, source, tensors, keys, "q8_0", name="x", threads=count)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_progress_ends_at_the_total(tmp_path):
    source, tensors, keys = model(tmp_path)
    heard = []
    write_gguf(tmp_path / "out.gguf", source, tensors, keys, "q8_0", emit=heard.append)
    done = [event.done for event in heard]
    assert done == sorted(done)
    assert done[-1] == heard[-1].total == sum(nbytes("F32" if one.keep32 else "Q8_0", one.shape) for one in tensors)
    assert {(event.task, event.unit) for event in heard} == {("writing out.gguf", "B")}


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [
        (np.float32, 1e5, r"'blk\.1\.attn_q\.weight' holds values beyond the range of f16 \(use --quant bf16\)"),
        (np.float32, np.nan, r"'blk\.1\.attn_q\.weight' holds values that are no finite numbers \(the model is damaged"),
        (np.float16, np.inf, r"'blk\.1\.attn_q\.weight' holds values that are no finite numbers"),
    ],
)
def test_bad_values_leave_what_was_there(tmp_path, dtype, value, text):
    source, tensors, keys = model(tmp_path, dtype=dtype)
    source.arrays["blk.1.attn_q.weight"][200, 7] = value
    (tmp_path / "out.gguf").write_text("old")
    with pytest.raises(ModelError, match=text):
        write_gguf(tmp_path / "out.gguf", source, tensors, keys, "f16", force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["out.gguf"]
    assert (tmp_path / "out.gguf").read_text() == "old"


def test_the_output_is_looked_at_first(tmp_path, monkeypatch):
    source, tensors, keys = model(tmp_path)
    (tmp_path / "out.gguf").write_text("old")
    with pytest.raises(ConfigError, match="is there already"):
        write_gguf(tmp_path / "out.gguf", source, tensors, keys, "f16")
    with pytest.raises(ConfigError, match="is a folder"):
        write_gguf(tmp_path, source, tensors, keys, "f16", force=True)
    with pytest.raises(ConfigError, match="unknown quantization"):
        write_gguf(tmp_path / "b.gguf", source, tensors, keys, "q9")
    usage = type("Usage", (), {"free": 10 << 20})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MlxforgeError, match=r"\d MB are to be written and 17 to stay free; "):
        write_gguf(tmp_path / "new" / "b.gguf", source, tensors, keys, "f16")
    assert not (tmp_path / "new").exists()


def test_a_tensor_that_gives_too_little_is_an_error(tmp_path):
    source, tensors, keys = model(tmp_path)
    source.arrays["output.weight"] = source.arrays["output.weight"][:-1]
    with pytest.raises(ModelError, match="the tensors took"):
        write_gguf(tmp_path / "out.gguf", source, tensors, keys, "q8_0")
    assert not list(tmp_path.iterdir())


def tokens(*stripping, plain=("<unk>", "<s>", "<|endoftext|>")):
    added = [{"content": one, "special": True, "rstrip": one in stripping} for one in (*plain, *stripping)]
    return {"added_tokens": added, "model": {"vocab": {}}}


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (tokens(plain=("<s>", "</s>", "<unk>")), "My phi-3 and Phi3", "My Phi 3 and Phi 3"),
        (tokens(plain=("<s>", "</s>", "<unk>")), "My llama", "My llama"),
        (tokens("</s>", "<|end|>"), "My run", "My run (Phi-3 tokens)"),
        (tokens("</s>", "<|end|>"), "microsoft/Phi-3-mini", "microsoft/Phi-3-mini"),
        (tokens("</s>", "<|end|>", plain=("<unk>", "<s>", "<|endoftext|>", "<tool>")), "phi3", "Phi 3"),
        (tokens("<|end|>", plain=("<s>",)), "phi3", "Phi 3"),
    ],
)
def test_the_name_does_not_change_the_tokenizer(tmp_path, content, name, expected):
    """llama.cpp lets special tokens swallow spaces in models whose name holds "phi-3" or "phi3", in any others not."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert honest_name(name, tmp_path) == expected


def test_a_changed_name_is_said(tmp_path):
    source, tensors, keys = model(tmp_path, layers=1)
    heard = []
    write_gguf(tmp_path / "out.gguf", source, tensors, keys, "f16", name="phi3-notes", emit=heard.append)
    assert heard[0].message.startswith("the file is called 'Phi 3-notes', not 'phi3-notes'")


def test_the_card_says_licence_and_base(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\nbase_model:\n- org/base\ntags: [a]\n---\n# Text\n")
    keys = {key: value for key, value, _ in general(tmp_path, [Placed("a.weight", (1000, 2000))], "x")}
    assert keys == {
        "general.type": "model",
        "general.name": "x",
        "general.size_label": "2.0M",
        "general.license": "apache-2.0",
        "general.base_model.count": 1,
        "general.base_model.0.name": "base",
        "general.base_model.0.organization": "org",
        "general.base_model.0.repo_url": "https://huggingface.co/org/base",
    }
    given = {key: value for key, value, _ in general(tmp_path, [], "x", base_model="/models/tiny")}
    assert given["general.base_model.0.name"] == "tiny"
    assert "general.base_model.0.repo_url" not in given
    (tmp_path / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(ModelError, match="its head is no YAML"):
        general(tmp_path, [], "x")


def test_experts_in_the_size(tmp_path):
    _, tensors, _ = model(tmp_path, experts=8)
    assert {key: value for key, value, _ in general(tmp_path, tensors, "x")}["general.size_label"] == "8x775K"


LARGE = """
import resource, sys
from pathlib import Path
import numpy as np
from mlxforge.export.gguf import write_gguf
from mlxforge.export.source import Entry
from mlxforge.export.tensors import Placed

class Source:
    path = Path(sys.argv[1])
    entries = {"e": Entry("e", sys.argv[2], (150_000, 1024))}
    def rows(self, name, start, stop):
        return np.resize(np.linspace(-1, 1, 999, dtype=np.float32), (stop - start, 1024))
    block = rows
    def chunks(self, name):
        return (bytes(300 * 2048) for _ in range(500))

placed = [Placed("token_embd.weight", (150_000, 1024), ("e",), stored=((150_000, 1024),))]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_gguf(Path(sys.argv[1], "out.gguf"), Source(), placed, [("general.architecture", "llama", "STRING")], sys.argv[3])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * (1 if sys.platform == "darwin" else 1024), after * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("stored", "quant"), [("BF16", "f16"), ("F16", "f16"), ("BF16", "bf16"), ("BF16", "q8_0")])
def test_memory_is_bounded_by_blocks(tmp_path, stored, quant):
    """An embedding of 307 MB takes less than 200 MB to write, and the process less than the promise."""
    command = [sys.executable, "-c", LARGE, str(tmp_path), stored, quant]
    added, whole = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert added < 200e6
    assert whole < 1.5 * 150_000 * 1024 * 2 + 300e6


# llama-quantize itself

CASES = {
    "grouped": {"layers": 5},
    "tied": {"layers": 3, "tied": True},
    "odd rows": {"layers": 3, "width": 160, "heads": 5},
    "eight experts": {"layers": 2, "experts": 8},
    "four experts": {"layers": 9, "experts": 4},
    "fused": {"layers": 9, "fused": True},
    "many layers": {"layers": 33},
}
QUANTIZED = [quant for quant in QUANTS if quant not in ("f16", "bf16")]
CORE = [("grouped", QUANTIZED), ("tied", ["q4_k_m", "q8_0"]), ("odd rows", ["q4_k_m", "q3_k_m"])]
CORE += [("eight experts", ["q4_k_m"]), ("fused", ["q4_k_m"])]
ALL = [(case, QUANTIZED) for case in CASES]


def llama_quantize(jobs):
    """Runs llama.cpp's own quantizer: (input, output, type) each. Skips where it cannot be had."""
    command = [sys.executable, str(ROOT / "scripts" / "llama_quantize.py"), *(str(part) for job in jobs for part in job)]
    ran = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=ROOT)
    if ran.returncode == 3:
        pytest.skip(ran.stderr.strip())
    assert ran.returncode == 0, ran.stderr[-2000:]


def compare(folder, cases):
    if library() is None:
        pytest.skip("xllamacpp is not installed")
    jobs = []
    for case, quants in cases:
        source, tensors, keys = model(folder, **CASES[case])
        for quant in ["f16", *quants]:
            write_gguf(folder / f"{case}.{quant}.gguf", source, tensors, keys, quant, name=case)
        jobs += [(folder / f"{case}.f16.gguf", folder / f"{case}.{quant}.theirs", quant) for quant in quants]
    llama_quantize(jobs)
    assert jobs
    different = [theirs.name for _, theirs, _ in jobs if theirs.read_bytes() != theirs.with_suffix(".gguf").read_bytes()]
    assert different == []


def test_files_are_llama_quantizes_byte_for_byte(tmp_path):
    compare(tmp_path, CORE)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_all_files_are_llama_quantizes_byte_for_byte(tmp_path, case):
    compare(tmp_path, [(case, QUANTIZED)])


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setattr("mlxforge.export.gguf.library", lambda: None)
    monkeypatch.setattr("mlxforge.export.quantize.library", lambda: None)


def program(folder, text):
    """A folder for the PATH with a llama-quantize of this shell text."""
    (folder / "bin").mkdir()
    file = folder / "bin" / "llama-quantize"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def test_without_xllamacpp_a_llama_quantize_is_used_and_named(tmp_path, monkeypatch, without_library):
    script = f'exec {sys.executable} {ROOT}/scripts/llama_quantize.py "$1" "$2" "$3" --threads "$4"'
    file = program(tmp_path, script)
    llama_quantize([])
    monkeypatch.setenv("PATH", f"{file.parent}{os.pathsep}{os.environ['PATH']}")
    source, tensors, keys = model(tmp_path)
    result = write_gguf(tmp_path / "a.gguf", source, tensors, keys, "q4_k_m", name="x")
    assert result["quantizer"] == str(file)
    assert result["types"] == {"Q4_K": 13, "F32": 5, "Q6_K": 3}
    monkeypatch.undo()
    write_gguf(tmp_path / "b.gguf", source, tensors, keys, "q4_k_m", name="x")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "bin"]


def test_a_llama_quantize_that_fails(tmp_path, monkeypatch, without_library):
    file = program(tmp_path, "echo useless >&2; exit 4")
    monkeypatch.setenv("PATH", str(file.parent), prepend=os.pathsep)
    source, tensors, keys = model(tmp_path)
    with pytest.raises(RunFailed, match="failed: useless"):
        write_gguf(tmp_path / "a.gguf", source, tensors, keys, "q4_k_m")
    assert [one.name for one in tmp_path.iterdir()] == ["bin"]


def test_without_both_it_is_said(tmp_path, monkeypatch, without_library):
    monkeypatch.setenv("PATH", str(tmp_path))
    source, tensors, keys = model(tmp_path)
    with pytest.raises(MissingExtraError, match=r"q4_k_m without a llama-quantize on the PATH needs the package 'xllamacpp'"):
        write_gguf(tmp_path / "a.gguf", source, tensors, keys, "q4_k_m")
    for quant in ("f16", "bf16", "q8_0"):
        assert write_gguf(tmp_path / f"{quant}.gguf", source, tensors, keys, quant)["quantizer"] == "numpy"
