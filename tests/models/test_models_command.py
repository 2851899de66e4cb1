"""``mlxforge models``: its JSON, its exit codes, and how little it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from mlxforge.cli.models import models
from mlxforge.models.families import FAMILIES
from mlxforge.models.tiny import make_tiny
from mlxforge.runs.models import detect_model

KEYS = ["family", "model_type", "instruct", "template", "eot", "packable", "gguf"]


def test_families() -> None:
    rows = json.loads(CliRunner().invoke(models, ["families", "--json"]).output)
    assert [row["family"] for row in rows] == list(FAMILIES)
    assert len(rows) >= 25
    plain = CliRunner().invoke(models, ["families"]).output
    assert all(name in plain for name in FAMILIES)


def test_detect(tmp_path: Path) -> None:
    path = str(make_tiny("phi3", tmp_path / "m"))
    found = json.loads(CliRunner().invoke(models, ["detect", path, "--json"]).output)
    assert list(found) == KEYS
    assert found == detect_model(path)
    assert (found["family"], found["template"], found["eot"]) == ("phi3", "own", ["<|end|>", "<|endoftext|>"])
    assert "packable    yes" in CliRunner().invoke(models, ["detect", path]).output


def test_detection_imports_nothing_heavy(tmp_path: Path) -> None:
    path = make_tiny("qwen3", tmp_path / "m")
    code = (
        f"import sys; from mlxforge.runs.models import detect_model; detect_model({str(path)!r})\n"
        "heavy = {'mlx', 'mlx_lm', 'transformers', 'tokenizers', 'numpy', 'huggingface_hub', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_model_is_one_line_and_exit_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlxforge", "models", "detect", "./none"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
