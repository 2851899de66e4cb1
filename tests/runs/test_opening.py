"""What a name opens: bases, runs, adapters; and that a run's logits are those that mlx-lm computes for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten

from mlxforge.core.errors import ModelError, RunError
from mlxforge.core.files import embedded, locked
from mlxforge.core.rows import Message
from mlxforge.core.settings import LoraSettings
from mlxforge.models.load import cast, load
from mlxforge.models.lora import adapter_config, apply_adapter, make_trainable, save_adapter, trainable
from mlxforge.models.streaming import Sampling
from mlxforge.models.template import load_template
from mlxforge.models.tiny import make_tiny
from mlxforge.runs.opening import Base, default_model, open_model, resolve_base
from mlxforge.runs.record import write_record
from mlxforge.runs.talk import reply_to_chat

TINY = str(embedded("data", "tiny"))
TOKENS = mx.array([[5, 17, 300, 41, 9, 1200, 7]])


def noise(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Weights that have moved: fresh B matrices are zero, and an adapter of zeros proves nothing."""
    mx.random.seed(1)
    return {name: array + 0.05 * mx.random.normal(array.shape) for name, array in weights.items()}


def make_run(folder: Path, base: str = TINY, recorded: str | None = None, created: float = 1.0, **lora) -> Path:
    """A finished run: a record, and an adapter whose weights have moved."""
    folder.mkdir(parents=True)
    model = load(base).model
    config = adapter_config(model, LoraSettings(**{"rank": 4, **lora}), base)
    make_trainable(model, config)
    save_adapter(folder, noise(trainable(model)), config)
    record = {"name": folder.name, "objective": "cpt", "status": "finished", "model": recorded or base, "created": created}
    write_record(folder, record)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project") / "runs"
    make_run(folder / "first", recorded="tiny", created=1.0)
    make_run(folder / "second", recorded="tiny", created=2.0)
    return folder


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora", "full"])
def test_a_run_opens_with_the_logits_of_mlx_lm(kind, tmp_path):
    run = make_run(tmp_path / "runs" / kind, kind=kind, layers=2 if kind == "rslora" else None)
    opened = open_model(f"run:{kind}", tmp_path / "runs")
    theirs, _ = mlx_lm.load(TINY, adapter_path=str(run))
    cast(theirs, "float32")
    ours, base = opened.loaded.model(TOKENS), load(TINY).model(TOKENS)
    assert mx.allclose(ours, theirs(TOKENS), atol=1e-4)
    assert mx.abs(ours - base).max() > 0.1
    assert not tree_flatten(opened.loaded.model.trainable_parameters())


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_over_a_quantized_base(kind, tmp_path):
    base = tmp_path / "quantized"
    model, tokenizer, config = mlx_lm.load(TINY, return_config=True)
    model, config = mlx_lm.utils.quantize_model(model, config, 64, 4)
    mlx_lm.utils.save(base, TINY, model, tokenizer, config)
    run = make_run(tmp_path / "runs" / "q", base=str(base), kind=kind)
    theirs, _ = mlx_lm.load(str(base), adapter_path=str(run))
    cast(theirs, "float32")
    assert mx.allclose(open_model(str(run), tmp_path).loaded.model(TOKENS), theirs(TOKENS), atol=1e-3)


def test_dropout_is_off(tmp_path):
    run = make_run(tmp_path / "d", dropout=0.5)
    model = open_model(str(run), tmp_path).loaded.model
    assert mx.array_equal(model(TOKENS), model(TOKENS))


def test_names(runs, monkeypatch):
    second = runs / "second"
    assert resolve_base("tiny", runs) == Base("tiny")
    assert resolve_base(TINY, runs) == Base(TINY)
    assert resolve_base("org/model", runs) == Base("org/model")
    assert resolve_base("run:second", runs) == resolve_base("run:last", runs) == Base("tiny", second, second)
    assert resolve_base(str(second), Path("elsewhere")) == Base("tiny", second, second)
    monkeypatch.chdir(runs.parent)
    assert resolve_base("runs/second", runs).model == "tiny"
    assert default_model(runs) == "run:second"
    assert default_model(runs / "none") == "tiny"


def test_an_adapter_folder_names_its_base(runs, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapters.safetensors", "adapter_config.json"):
        shutil.copy(runs / "first" / name, folder)
    assert resolve_base(str(folder), runs) == Base(TINY, folder)
    (folder / "adapter_config.json").write_text(json.dumps({"lora_parameters": {}}))
    with pytest.raises(ModelError, match="names no base"):
        resolve_base(str(folder), runs)


def test_a_checkpoint_belongs_to_its_run(runs, tmp_path):
    run = tmp_path / "r"
    shutil.copytree(runs / "first", run)
    step = run / "checkpoints" / "step-000002"
    shutil.copytree(runs / "first", step, ignore=shutil.ignore_patterns("run.json"))
    assert resolve_base(str(step), runs) == Base("tiny", step, run)


def test_a_relative_base_is_found_from_elsewhere(tmp_path, monkeypatch):
    make_tiny("llama", tmp_path / "base")
    run = make_run(tmp_path / "runs" / "r", base=str(tmp_path / "base"), recorded="base")
    monkeypatch.chdir("/")
    assert resolve_base(str(run), tmp_path) == Base(str(tmp_path / "base"), run, run)


def test_a_run_that_began_from_a_run_names_its_base_in_the_adapter(tmp_path):
    run = make_run(tmp_path / "after", recorded="run:before")
    assert resolve_base(str(run), tmp_path).model == TINY


def test_what_cannot_be_opened_is_told(runs, tmp_path):
    with pytest.raises(RunError, match="no run 'secnd'") as error:
        resolve_base("run:secnd", runs)
    assert "second" in str(error.value)
    with pytest.raises(ModelError, match="a run, not a model") as error:
        resolve_base("second", runs)
    assert "run:second" in str(error.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    write_record(empty, {"model": "tiny", "status": "running"})
    with pytest.raises(RunError, match="no adapter yet"):
        resolve_base("run:empty", tmp_path)
    live = make_run(tmp_path / "live", recorded="tiny", created=3.0)
    with locked(live):
        with pytest.raises(RunError, match="being trained now"):
            resolve_base("run:live", tmp_path)
        assert default_model(tmp_path) == "tiny"
    assert default_model(tmp_path) == "run:live"


def test_an_adapter_of_another_model_is_refused(runs, tmp_path):
    make_tiny("llama", tmp_path / "base")
    with pytest.raises(ModelError, match="of another model"):
        apply_adapter(load(str(tmp_path / "base")).model, runs / "first")
    broken = tmp_path / "broken"
    shutil.copytree(runs / "first", broken)
    config = json.loads((broken / "adapter_config.json").read_text())
    del config["lora_parameters"]["scale"]
    (broken / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="not an adapter that mlx-lm reads"):
        open_model(str(broken), tmp_path)


def test_a_run_renders_with_the_template_of_its_training(tmp_path):
    base = make_tiny("qwen3", tmp_path / "base")
    (base / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
    )
    assert open_model(str(base), tmp_path).thinks
    run = make_run(tmp_path / "runs" / "r", base=str(base))
    assert open_model(str(run), tmp_path).thinks
    for thoughts in (True, False):
        load_template(base, thinking_default=thoughts).save(run)
        opened = open_model(str(run), tmp_path)
        assert opened.thinks is thoughts
        prompt = reply_to_chat(opened, [Message("user", "Hello")], Sampling()).prompt
        assert opened.loaded.tokenizer.decode(prompt).endswith("assistant\n" + "<think>\n\n</think>\n\n" * (not thoughts))
    (run / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    assert "assistant" not in open_model(str(run), tmp_path).template.text
