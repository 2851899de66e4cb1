"""What a model is: config.json first, the tokenizer next, the name last."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlxforge.core.errors import ModelError
from mlxforge.models.detect import detect
from mlxforge.models.families import FAMILIES
from mlxforge.models.tiny import make_tiny


def folder(path: Path, config: Any, tokens: tuple[str, ...] = (), template: str | None = None) -> str:
    """A model folder without weights; a tokenizer with ``tokens`` where there are some."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if tokens:
        added = [{"id": index, "content": token, "special": True} for index, token in enumerate(tokens)]
        (path / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {"vocab": {}}}))
        settings = {"eos_token": tokens[0]} | ({"chat_template": template} if template else {})
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tiny_folder_is_recognised(family: str, tmp_path: Path) -> None:
    found = detect(str(make_tiny(family, tmp_path / "m")))
    row = FAMILIES[family]
    assert (found.family.name, found.template, found.instruct) == (family, "own", True)
    assert (found.packable, found.gguf) == (row.packable, row.gguf)
    assert found.eot
    assert set(found.eot) <= set(row.eot)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_model_gets_its_familys_template(family: str, tmp_path: Path) -> None:
    found = detect(str(make_tiny(family, tmp_path / "m", chat_template=False)))
    assert (found.template, found.instruct) == (FAMILIES[family].chat.template, False)
    assert found.eot[0] in FAMILIES[family].eot


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"vocab_size": 32000, "rope_theta": 10000.0}, "llama2"),
        ({"vocab_size": 128256, "rope_theta": 500000.0}, "llama3"),
        ({"vocab_size": 49152, "rope_theta": 100000.0}, "smollm2"),
        ({"vocab_size": 64000, "rope_theta": 10000.0}, "llama"),
    ],
)
def test_families_of_one_type_by_config(config: dict[str, Any], family: str, tmp_path: Path) -> None:
    assert detect(folder(tmp_path / "m", {"model_type": "llama", **config})).family.name == family


def test_config_beats_tokens_and_tokens_beat_the_name(tmp_path: Path) -> None:
    llama3 = ("<|eot_id|>", "<|start_header_id|>")
    by_config = folder(tmp_path / "a" / "llama-3", {"model_type": "llama", "vocab_size": 32000}, llama3)
    by_tokens = folder(tmp_path / "b" / "Llama-2-7b", {"model_type": "llama", "vocab_size": 128300}, llama3)
    by_name = folder(tmp_path / "c" / "Llama-2-7b", {"model_type": "llama", "vocab_size": 40000})
    assert [detect(path).family.name for path in (by_config, by_tokens, by_name)] == ["llama2", "llama3", "llama2"]


@pytest.mark.parametrize(("vocab", "family"), [(32064, "phi3"), (100352, "phi4"), (200064, "phi4_mini")])
def test_phi(vocab: int, family: str, tmp_path: Path) -> None:
    assert detect(folder(tmp_path / "m", {"model_type": "phi3", "vocab_size": vocab})).family.name == family


def test_a_nested_config_is_read_inside(tmp_path: Path) -> None:
    config = {"model_type": "gemma3", "text_config": {"rope_scaling": {"rope_type": "dynamic"}}}
    found = detect(folder(tmp_path / "m", config))
    assert found.family.name == "gemma3"
    assert not found.packable  # the rope's base would follow the length of the packed line


@pytest.mark.parametrize(
    ("name", "template", "instruct"),
    [
        ("Qwen3-8B-Base", "{{ x }}", False),
        ("Qwen3-8B", "{{ x }}", True),
        ("gemma-3-1b-it", None, True),
        ("gemma-3-1b-pt", None, False),
        ("Llama-3.2-1B-Instruct", None, True),
        ("Llama-3.2-1B", None, False),
    ],
)
def test_instruct(name: str, template: str | None, instruct: bool, tmp_path: Path) -> None:
    path = folder(tmp_path / name, {"model_type": "qwen3"}, ("<|im_end|>", "<|im_start|>"), template)
    assert detect(path).instruct is instruct


def test_the_template_decides_what_ends_a_turn(tmp_path: Path) -> None:
    tokens = ("</s>", "<|im_start|>", "<|im_end|>")
    path = folder(tmp_path / "m", {"model_type": "mistral"}, tokens, "<|im_start|>{{ x }}<|im_end|>")
    assert "<|im_end|>" in detect(path).eot


def test_templates_in_files_and_lists(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", {"model_type": "qwen2"}, ("<|im_end|>",))
    (Path(path) / "chat_template.jinja").write_text("{{ messages }}")
    assert detect(path).template == "own"
    path = folder(tmp_path / "b", {"model_type": "qwen2"}, ("<|im_end|>",))
    listed = [{"name": "default", "template": "{{ messages }}"}]
    (Path(path) / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    assert detect(path).template == "own"


def test_without_its_markers_a_template_is_not_installed(tmp_path: Path) -> None:
    bare = folder(tmp_path / "a", {"model_type": "llama", "vocab_size": 128256}, ("<|end_of_text|>",))
    chatml = folder(tmp_path / "b", {"model_type": "gemma2"}, ("<eos>", "<|im_start|>", "<|im_end|>"))
    assert (detect(bare).template, detect(bare).eot) == ("plain", ["<|end_of_text|>"])
    assert detect(chatml).template == "chatml"
    assert "<|im_end|>" in detect(chatml).eot
    assert detect(folder(tmp_path / "c", {"model_type": "gemma2"})).template is None


def test_a_type_that_only_mlx_lm_knows_is_treated_with_care(tmp_path: Path) -> None:
    found = detect(folder(tmp_path / "m", {"model_type": "kimi_k2"}))
    assert (found.family.name, found.packable, found.gguf) == ("kimi_k2", False, None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "qwen9"}', r"config.json: mlx-lm does not know the family 'qwen9' \(did you mean 'qwen"),
        ('{"model_type": "zzzzz"}', r"does not know the family 'zzzzz' \(see 'mlxforge models families', or upgrade mlx-lm\)"),
        ('{"model_type": "cache"}', r"does not know the family 'cache'"),
        ('{"model_type": "../../etc"}', r"does not know the family"),
        ('{"vocab_size": 3}', r"config.json: config.json names no model_type"),
        ('{\n "model_type": qwen2}', r"config.json:2: not valid JSON"),
        ("[1]", r"not a JSON object"),
    ],
)
def test_bad_configs_are_one_line(config: str, message: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "m", config)
    with pytest.raises(ModelError) as caught:
        detect(path)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_template_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {"model_type": "llama"})
    (Path(path) / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"chat_template.jinja: cannot read: .*utf-8"):
        detect(path)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="an adapter, not a model"):
        detect(str(tmp_path))
