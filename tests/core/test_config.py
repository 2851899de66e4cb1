"""Settings: order of force, all mistakes at once, one place for default, bounds and help."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxforge.core.config import (
    assignments_layer,
    description,
    flags_layer,
    from_dict,
    resolve,
    to_dict,
    to_yaml,
    type_name,
    walk,
    yaml_layer,
)
from mlxforge.core.errors import ConfigError
from mlxforge.core.files import embedded
from mlxforge.core.settings import CONFIGS, CptConfig

ISSUE_NAMES = """model data valid retention seed epochs steps batch_tokens max_length accumulate learning_rate schedule warmup
optimizer weight_decay clip_norm dtype save_every eval_every keep patience replay_ratio grad_checkpoint lora.kind lora.rank
lora.alpha lora.dropout lora.layers lora.targets""".split()


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_defaults_yield_to_the_file_and_the_file_to_flags(tmp_path):
    file = yaml_layer(written(tmp_path, "epochs: 5\nlearning_rate: 1e-4\nlora:\n  rank: 4\n"))
    config = resolve(CptConfig, file, assignments_layer(["lora.rank=2"]), flags_layer({"epochs": "7"}))
    assert (config.epochs, config.learning_rate, config.lora.rank, config.lora.alpha) == (7.0, 1e-4, 2, 64.0)


def test_every_mistake_is_reported_at_once_with_line_and_near_miss(tmp_path):
    file = yaml_layer(written(tmp_path, "batch_token: 4\nsteps: -1\nlora:\n  rank: x\n"))
    with pytest.raises(ConfigError) as caught:
        resolve(CptConfig, file, assignments_layer(["schedule=sine", "lorra.rank=3"]))
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert lines[0].endswith("run.yaml:1: unknown setting 'batch_token' (did you mean 'batch_tokens'?)")
    assert "run.yaml:2: steps: -1: expected int >= 1" in lines[1]
    assert "run.yaml:4: lora.rank: 'x' is not integer" in lines[2]
    assert lines[3] == "--set: schedule: 'sine' is not one of constant, linear, cosine, wsd"
    assert "did you mean 'lora.rank'?" in lines[4]


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: [1", "not valid YAML"), ("- 1\n- 2\n", "a config is a mapping"), ("seed: 1\nseed: 2\n", "'seed' is given twice")],
)
def test_a_broken_file_is_one_line(tmp_path, text, line):
    with pytest.raises(ConfigError, match=line):
        yaml_layer(written(tmp_path, text))


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the config"):
        yaml_layer(tmp_path / "none.yaml")


@pytest.mark.parametrize("item", ["lora.rank", "=3", ""])
def test_an_assignment_needs_a_key_and_a_value(item):
    with pytest.raises(ConfigError, match="no assignment"):
        assignments_layer([item])


def test_settings_survive_yaml(tmp_path):
    config = resolve(CptConfig, assignments_layer(["lora.targets=[q_proj]", "clip_norm=null", "map={text: body}", "data=a"]))
    assert from_dict(CptConfig, to_dict(config)) == config
    assert resolve(CptConfig, yaml_layer(written(tmp_path, to_yaml(config)))) == config


def test_every_setting_has_help_and_a_readable_type():
    for key, annotation, _ in walk(CptConfig):
        assert description(annotation), key
        assert "Annotated" not in type_name(annotation), key


def test_the_names_are_the_contract():
    assert set(ISSUE_NAMES) <= {key for key, _, _ in walk(CptConfig)}


def test_every_shipped_config_loads():
    # tests/data/ loads the configs of other kinds: speakers and mixes.
    files = [file for file in sorted(embedded("configs").glob("*.yaml")) if not file.stem.startswith(("speakers", "mix-"))]
    assert files
    for file in files:
        settings = next(CONFIGS[word] for word in file.stem.split("-") if word in CONFIGS)
        assert resolve(settings, yaml_layer(file)).data is not None
        assert file.read_text().startswith("# "), f"{file.name} has no sentence on when to use it"
