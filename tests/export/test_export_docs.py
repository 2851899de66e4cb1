"""docs/export.md says what the tables say, and its commands run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mlxforge.export.architectures import EXPORTABLE
from mlxforge.export.llama import available
from mlxforge.export.quantize import QUANTS
from mlxforge.export.quantized import MODES
from mlxforge.export.restored import ERRORS
from mlxforge.export.turns import conversations
from mlxforge.export.verify import DIVERGENCE, FUZZ, LOGITS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


def test_the_families_are_those_of_the_exporter():
    rows = [
        line.split("|") for line in PAGE.split("### Families")[1].split("What is refused")[0].splitlines() if "| `" in line
    ][1:]
    named = {kind for row in rows for kind in re.findall(r"`(\w+)`", row[1])}
    assert named == set(EXPORTABLE)
    assert {kind for row in rows for kind in re.findall(r"`([\w-]+)`", row[3])} == {one.name for one in EXPORTABLE.values()}


def test_types_and_limits_are_those_of_the_code():
    assert set(re.search(r"Types: `(.*?)`", PAGE)[1].split()) == set(QUANTS)
    text = " ".join(PAGE.split("Limits of it:")[1].split("\n\n")[0].split())
    written = {kind: float(value) for kind, value in re.findall(r"(\w+) ([\d.e-]*\d)[,.]", text)}
    assert written == {kind: value for kind, value in ERRORS.items() if kind in written}
    assert set(written) >= {"F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q3_K"}
    assert f"{FUZZ} texts" in PAGE
    assert f"largest difference {LOGITS} |" in PAGE
    found = re.search(r"in nats: f16 (\S+), bf16 (\S+), quantized (\S+) \|", PAGE)
    assert [float(value) for value in found.groups()] == [DIVERGENCE[sort] for sort in ("float", "bf16", "quantized")]
    assert all(f"`{mode}`" in PAGE for mode in MODES)
    assert len(conversations()) == 16, "the page says sixteen"


@pytest.mark.slow
@pytest.mark.skipif(not available(), reason="the extra 'gguf' is not installed")
def test_the_commands_run(tmp_path):
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    preset = str(ROOT / "configs" / "handbook-sft.yaml")
    train = ["mlxforge", "sft", "-c", preset, "--steps", "2", "--plain"]
    lines = re.search(r"<!-- export -->\n```sh\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()
    assert len(lines) == 5
    for words in [train, *(shlex.split(line, comments=True) for line in lines)]:
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}\n{done.stderr}"
    made = ("fused/config.json", "answers.gguf", "answers.report.json", "answers/Modelfile", "answers-4bit/config.json")
    assert all((tmp_path / name).is_file() for name in made)
