"""Loading: what comes out, and one clear line for everything that can be wrong with a folder."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxforge.core.errors import ModelError
from mlxforge.models import hub
from mlxforge.models.check import check_model_files, model_hash, safetensors_header
from mlxforge.models.hub import resolve_model
from mlxforge.models.load import fast_tokenizer, load, load_tokenizer
from mlxforge.models.tiny import make_tiny


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("models") / "good")


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def edit_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def write_safetensors(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Rewrites the weights after ``change`` to the dictionary of arrays."""
    import mlx.core as mx

    weights = dict(mx.load(str(path / "model.safetensors")))
    change(weights)
    mx.save_safetensors(str(path / "other.safetensors"), weights)
    os.replace(path / "other.safetensors", path / "model.safetensors")


def test_load(good: Path) -> None:
    import mlx.core as mx

    loaded = load(str(good), "float32")
    assert (loaded.detected.family.name, loaded.dtype, loaded.path) == ("llama", "float32", good)
    assert loaded.model(mx.array([[1, 2, 3]])).shape == (1, 3, 512)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("the river", add_special_tokens=False)) == "the river"


def test_dtype(good: Path, tmp_path: Path) -> None:
    import mlx.core as mx

    half = make_tiny("llama", tmp_path / "half", dtype="bfloat16")
    own = "float32" if mx.default_device() == mx.cpu else "bfloat16"
    assert load(str(half)).dtype == own
    assert load(str(good), "float16").dtype == "float16"


def test_packed_weights_stay_packed(good: Path, tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import quantize_model, save_config

    loaded = load(str(good))
    model, config = quantize_model(loaded.model, loaded.config, 32, 4)
    path = Path(shutil.copytree(good, tmp_path / "q4"))
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    save_config(config, path / "config.json")
    again = load(str(path), "float16")
    layer = again.model.layers[0].self_attn.q_proj
    assert (layer.weight.dtype, layer.scales.dtype, again.dtype) == (mx.uint32, mx.float16, "float16")
    assert mx.isfinite(again.model(mx.array([[1, 2, 3]]))).all()


def test_the_familys_template_is_installed(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_tiny("gemma2", tmp_path / "m", chat_template=False))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"


def test_the_fast_tokenizer_agrees_and_cuts_nothing(copy: Path) -> None:
    file = copy / "tokenizer.json"
    cutting = json.loads(file.read_text()) | {
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    }
    file.write_text(json.dumps(cutting))
    fast = fast_tokenizer(copy)
    text = "It's 2024, and\n\nthe river rose <|im_end|>"
    assert fast is not None
    assert fast.encode(text, add_special_tokens=False).ids == load_tokenizer(copy).encode(text, add_special_tokens=False)
    (copy / "tokenizer.json").unlink()
    assert fast_tokenizer(copy) is None


def test_limits_of_open_files_survive() -> None:
    code = (
        "import resource; before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "from mlxforge.models.load import quiet_import\n"
        "with quiet_import():\n    import mlx_lm.utils\n"
        "after = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "assert after[1] == before[1] and after[0] >= min(before[0], 2048), (before, after)\n"
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (1000, 3000):
        limit = min(wanted, hard) if hard != resource.RLIM_INFINITY else wanted
        done = subprocess.run(
            [sys.executable, "-c", f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))\n{code}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


def no_config(path: Path) -> None:
    (path / "config.json").unlink()


def no_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").unlink()


def broken_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").write_text('{"added_tokens": [')


def empty_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").write_text("{}")


def no_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def pickled(path: Path) -> None:
    no_weights(path)
    (path / "pytorch_model.bin").write_bytes(b"PK")


def misnamed(path: Path) -> None:
    (path / "model.safetensors").rename(path / "weights.safetensors")


def cut_off(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_in_header(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50])


def empty_weights(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"")


def garbage(path: Path) -> None:
    (path / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"oops" + b"x" * 50)


def missing_shard(path: Path) -> None:
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')


def pointer(path: Path) -> None:
    (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 100\n")


def small_embedding(path: Path) -> None:
    edit_config(path, vocab_size=100)
    write_safetensors(path, lambda w: w.update({"model.embed_tokens.weight": w["model.embed_tokens.weight"][:100]}))


def lacking(path: Path) -> None:
    write_safetensors(path, lambda w: [w.pop(key) for key in list(w) if "layers.1" in key])


def extra(path: Path) -> None:
    write_safetensors(path, lambda w: w.update({"model.odd.weight": w["model.norm.weight"]}))


def wrong_shape(path: Path) -> None:
    edit_config(path, intermediate_size=96)


def incomplete_config(path: Path) -> None:
    edit_config(path, hidden_size=None)


def foreign_code(path: Path) -> None:
    edit_config(path, model_file="evil.py")


def tokenizer_code(path: Path) -> None:
    file = path / "tokenizer_config.json"
    changed = {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "EvilT"}
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def unknown_family(path: Path) -> None:
    edit_config(path, model_type="lama")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_config, "not a model folder: no config.json"),
        (no_tokenizer, "has no tokenizer"),
        (broken_tokenizer, "tokenizer.json:1: not valid JSON"),
        (empty_tokenizer, "cannot load the tokenizer"),
        (no_weights, "no weights (model*.safetensors)"),
        (pickled, "only pickled weights (pytorch_model.bin)"),
        (misnamed, "no model*.safetensors; there is weights.safetensors"),
        (cut_off, "model.safetensors: truncated"),
        (cut_in_header, "model.safetensors: not a whole safetensors file"),
        (empty_weights, "model.safetensors: not a whole safetensors file"),
        (garbage, "model.safetensors: not a safetensors file"),
        (pointer, "model.safetensors: not a whole safetensors file"),
        (missing_shard, "model-00002-of-00002.safetensors: a part of the weights is missing"),
        (small_embedding, "the embedding has 100 rows"),
        (lacking, "the weights lack 9 tensors of the model: model.layers.1."),
        (extra, "the model has no place for 1 tensors: model.odd.weight"),
        (wrong_shape, "the config asks for (96, 64)"),
        (incomplete_config, "config.json: the config lacks 'hidden_size'"),
        (foreign_code, "evil.py"),
        (tokenizer_code, "cannot load the tokenizer"),
        (unknown_family, "mlx-lm does not know the family 'lama' (did you mean 'llama'?)"),
    ],
)
def test_a_bad_folder_is_one_line(damage: Callable[[Path], None], said: str, copy: Path) -> None:
    damage(copy)
    with pytest.raises(ModelError) as caught:
        load(str(copy))
    line = str(caught.value)
    assert said in line
    assert str(copy) in line
    assert "\n" not in line
    assert len(line) < 420 + len(str(copy))


def test_a_larger_embedding_is_fine_and_a_placeholder_needs_no_row(tmp_path: Path) -> None:
    assert load(str(make_tiny("llama", tmp_path / "large", vocab_size=600))).config["vocab_size"] == 600
    path = make_tiny("gemma3_text", tmp_path / "gemma")
    file = path / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    placeholder = dict(tokenizer["added_tokens"][0]) | {"id": 512, "content": "<image_soft_token>"}
    tokenizer["added_tokens"].append(placeholder)
    tokenizer["model"]["vocab"] |= {f"filler{index}": index for index in range(len(tokenizer["model"]["vocab"]), 512)}
    file.write_text(json.dumps(tokenizer))
    assert load(str(path)).tokenizer.convert_tokens_to_ids("<image_soft_token>") == 512


def test_shards(copy: Path) -> None:
    import mlx.core as mx

    weights = dict(mx.load(str(copy / "model.safetensors")))
    names = sorted(weights)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        mx.save_safetensors(str(copy / file), {name: weights[name] for name in part})
    (copy / "model.safetensors").unlink()
    listed = {name: file for file, part in halves.items() for name in part}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    check_model_files(copy)
    assert load(str(copy)).dtype == "float32"


def test_the_header_names_every_tensor(good: Path) -> None:
    import mlx.core as mx

    assert set(safetensors_header(good / "model.safetensors")) == set(mx.load(str(good / "model.safetensors")))


def test_model_hash_follows_the_content(good: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for whole in (64 << 20, 0):
        monkeypatch.setattr("mlxforge.models.check.HASH_WHOLE", whole)
        assert model_hash(copy) == model_hash(good)
        file = copy / "model.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert model_hash(copy) != model_hash(good)
        file.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["./none", "/none/here", "~/none-such", "none.gguf", "a/b/c", "white space", "none/", "", "~nobody/m"]
)
def test_a_name_that_can_only_be_a_path_is_not_asked_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_download", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(ModelError, match="no such model: not a folder here"):
        resolve_model(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="a file, not a model folder"):
        resolve_model(str(tmp_path / "x.gguf"))


def hub_error(name: str, cause: Exception | None = None) -> Exception:
    """An exception of the hub's client, by the name of its class."""
    error = type(name, (Exception,), {})("many\nlines of it")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (hub_error("GatedRepoError"), "accept the licence"),
        (hub_error("RepositoryNotFoundError"), "not on the Hugging Face hub"),
        (hub_error("LocalEntryNotFoundError", hub_error("ConnectError")), "cannot be reached"),
        (hub_error("LocalEntryNotFoundError", hub_error("OfflineModeIsEnabled")), "switched off"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_hub_errors_are_one_line(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError) as caught:
        resolve_model("some/model")
    assert said in str(caught.value)
    assert str(caught.value).startswith("some/model: no such model: ")
    assert "\n" not in str(caught.value)


def test_only_safe_files_are_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, list[str]] = {}

    def remember(_: str, allow_patterns: list[str]) -> str:
        asked["patterns"] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", remember)
    assert resolve_model("some/model") == tmp_path
    wanted = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "chat_template.jinja", "merges.txt"]
    refused = ["pytorch_model.bin", "modeling.py", "original/consolidated.00.pth", "consolidated.safetensors"]
    assert list(filter_repo_objects(wanted + refused, allow_patterns=asked["patterns"])) == wanted
