"""docs/memory.md: its tables are what the forecast says, and its commands run."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

import pytest

from mlxforge.cli.main import run

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "memory.md").read_text()


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("make_memory_tables", ROOT / "scripts" / "make_memory_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def agree(tables, names):
    found = tables.rows(names)
    for name in names:
        assert tables.shapes_of(name, "LoRA, bf16").parameters == pytest.approx(tables.MODELS[name][2], rel=1e-3)
        for memory in tables.MACS:
            section = PAGE.partition(f"### {memory} GB")[2].partition("###")[0]
            assert f"| {name} | {' | '.join(found[name][memory])} |" in section


def test_some_rows_are_what_is_forecast(tables):
    agree(tables, ["Qwen2.5 0.5B"])


@pytest.mark.slow
def test_all_rows_are_what_is_forecast(tables):
    """Parameters are those that the models' makers publish."""
    agree(tables, list(tables.MODELS))
    assert tables.page(tables.text(tables.rows(list(tables.MODELS)))) == PAGE


def test_every_table_says_that_it_is_a_forecast(tables):
    headings = [line for line in PAGE.splitlines() if line.startswith("### ")]
    assert headings == [f"### {memory} GB (forecast)" for memory in tables.MACS]


@pytest.mark.slow
def test_the_commands_of_the_page_run(capsys):
    commands = PAGE.partition("```bash\n")[2].partition("```")[0].splitlines()
    assert len(commands) == 3
    for line in commands:
        assert run(shlex.split(line)[1:], debug=False) == 0
        assert "memory, total:" in capsys.readouterr().out
