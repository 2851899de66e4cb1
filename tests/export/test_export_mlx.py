"""A quantized folder is the merged model in fewer bits, as mlx-lm makes and reads it; nothing is left out in silence."""

from __future__ import annotations

import json
import resource

import mlx.core as mx
import mlx_lm
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten

from mlxforge.cli.main import cli
from mlxforge.core.errors import ConfigError, MlxforgeError
from mlxforge.core.events import Progress, Warned
from mlxforge.core.settings import LoraSettings
from mlxforge.export.quantized import MODES, distance, logprobs, packing
from mlxforge.models.load import load
from mlxforge.models.lora import adapter_config, make_trainable, save_adapter, trainable
from mlxforge.models.tiny import make_tiny
from mlxforge.runs.export_mlx import export_mlx
from mlxforge.runs.fuse import fuse
from mlxforge.runs.opening import Base

TOKENS = [5, 17, 300, 41, 9, 120, 7]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny("llama3", tmp_path_factory.mktemp("bases") / "base")


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    model = load(str(base), "float32").model
    config = adapter_config(model, LoraSettings(rank=4), str(base))
    make_trainable(model, config)
    mx.random.seed(1)
    moved = {name: array + 0.05 * mx.random.normal(array.shape) for name, array in trainable(model).items()}
    save_adapter(folder, moved, config)
    return folder


def weights(folder) -> dict[str, mx.array]:
    return dict(tree_flatten(mlx_lm.utils.load_model(folder)[0].parameters()))


def test_it_is_what_mlx_lm_makes_of_the_merged_model(base, adapter, tmp_path):
    export_mlx(Base(str(base), adapter), tmp_path / "ours")
    fuse(Base(str(base), adapter), tmp_path / "fused")
    model, config = mlx_lm.utils.load_model(tmp_path / "fused")
    model, config = mlx_lm.utils.quantize_model(model, config, 64, 4)
    theirs, ours = dict(tree_flatten(model.parameters())), weights(tmp_path / "ours")
    assert set(ours) == set(theirs)
    assert all(mx.array_equal(ours[name], theirs[name]).item() for name in theirs)
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["quantization"] == config["quantization"] == written["quantization_config"]
    assert {one.name for one in tmp_path.iterdir()} == {"ours", "fused"}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_loads_and_more_bits_are_nearer(mode, base, tmp_path):
    result = export_mlx(Base(str(base)), tmp_path / mode, mode=mode)
    model, tokenizer = mlx_lm.load(str(tmp_path / mode))
    assert mx.isfinite(model(mx.array([TOKENS]))).all()
    assert tokenizer.chat_template
    assert 0 < result["error"] < 0.2
    assert result["after"] < 0.45 * result["before"]
    if mode == "affine":
        finer = export_mlx(Base(str(base)), tmp_path / "finer", bits=8, group_size=32)
        assert finer["error"] < result["error"] / 10
        assert finer["kl"] < result["kl"] / 10


def test_the_error_and_the_distance_are_those_of_their_definitions(base, tmp_path):
    result = export_mlx(Base(str(base)), tmp_path / "q")
    exact, packed = mlx_lm.utils.load_model(base)[0], mlx_lm.utils.load_model(tmp_path / "q")[0]
    before = dict(tree_flatten(exact.parameters()))
    after = dict(tree_flatten(mlx_lm.utils.dequantize_model(mlx_lm.utils.load_model(tmp_path / "q")[0]).parameters()))
    names = [name for name in before if not mx.array_equal(before[name], after[name]).item()]
    change = sum(mx.abs(before[name] - after[name]).sum().item() for name in names)
    assert result["error"] == pytest.approx(change / sum(mx.abs(before[name]).sum().item() for name in names), rel=1e-4)
    p, q = (mx.softmax(model(mx.array([TOKENS]))[0], axis=-1) for model in (exact, packed))
    by_hand = (p * mx.log(p / q)).sum(axis=-1)[:-1].mean().item()
    found = distance(logprobs(exact, [TOKENS]), logprobs(packed, [TOKENS]), [TOKENS])
    assert found["kl"] == pytest.approx(by_hand, rel=1e-2)
    chances = mx.log(p[:-1])[mx.arange(len(TOKENS) - 1), mx.array(TOKENS[1:])]
    assert found["perplexity_before"] == pytest.approx(mx.exp(-chances.mean()).item(), rel=1e-3)


def test_rows_that_do_not_divide_are_kept_and_said(tmp_path):
    base = make_tiny("llama3", tmp_path / "base", hidden_size=96, intermediate_size=128)
    said = []
    result = export_mlx(Base(str(base)), tmp_path / "q", emit=said.append)
    assert all(result["kept"].count(f"model.layers.{at}.self_attn.q_proj") == 1 for at in (0, 1)), "rows of 96"
    assert not [name for name in result["kept"] if "down_proj" in name], "rows of 128"
    assert any(isinstance(one, Warned) and "do not divide by 64" in one.message for one in said)
    assert mx.isfinite(mlx_lm.utils.load_model(tmp_path / "q")[0](mx.array([TOKENS]))).all()
    assert export_mlx(Base(str(base)), tmp_path / "q32", group_size=32)["kept"] == []


def test_experts_and_their_routers(tmp_path):
    base = make_tiny("qwen3_moe", tmp_path / "base")
    export_mlx(Base(str(base)), tmp_path / "q", bits=4, group_size=32)
    settings = json.loads((tmp_path / "q" / "config.json").read_text())["quantization"]
    assert any(isinstance(value, dict) and value["bits"] == 8 for value in settings.values()), "mlx-lm keeps routers finer"
    assert mx.isfinite(mlx_lm.utils.load_model(tmp_path / "q")[0](mx.array([TOKENS]))).all()


def test_a_packed_base_is_unpacked_first(base, tmp_path):
    export_mlx(Base(str(base)), tmp_path / "q8", bits=8)
    said = []
    result = export_mlx(Base(str(tmp_path / "q8")), tmp_path / "q4", emit=said.append)
    assert result["layers"] > 5
    assert mx.isfinite(mlx_lm.utils.load_model(tmp_path / "q4")[0](mx.array([TOKENS]))).all()
    assert any("unpacked" in getattr(one, "message", "") for one in said)
    assert json.loads((tmp_path / "q4" / "config.json").read_text())["quantization"]["bits"] == 4


def test_an_interrupt_leaves_nothing(base, adapter, tmp_path):
    def stop(event):
        if isinstance(event, Progress) and event.task == "packing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_mlx(Base(str(base), adapter), tmp_path / "q", emit=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [((7, None, "affine"), "one of 2, 3, 4, 5, 6, 8"), ((None, 48, "affine"), "32, 64, 128"), ((8, None, "mxfp4"), "one of 4"),
     ((None, None, "q4"), "affine, mxfp4")],
)  # fmt: skip
def test_what_mlx_cannot_pack_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        packing(*given)


def test_the_command(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["export", "mlx", str(base), "-o", "q"]
    done = CliRunner().invoke(cli, [*line, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["packing"] == "4 bits, groups of 64 (affine)"
    with pytest.raises(ConfigError, match="--force"):
        CliRunner().invoke(cli, line, catch_exceptions=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="no model folder"):
        CliRunner().invoke(cli, [*line[:-1], "mine", "--force"], catch_exceptions=False)
    shown = CliRunner().invoke(cli, [*line, "--force"])
    assert "mean error" in shown.stdout
    card = (tmp_path / "q" / "README.md").read_text()
    assert "4 bits, groups of 64 (affine)" in card
    assert str(tmp_path) not in card
    assert "KL divergence" in shown.stdout


def test_a_full_disk_is_said_and_leaves_nothing(base, tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))  # bytes that a file may have
    try:
        with pytest.raises(MlxforgeError, match="out: cannot write"):
            export_mlx(Base(str(base), None), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list(tmp_path.iterdir()) == []
