"""Every ``--help`` starts without the heavy packages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mlxforge.cli.data import COMMANDS as DATA_COMMANDS
from mlxforge.cli.export import COMMANDS as EXPORT_COMMANDS
from mlxforge.cli.kb import COMMANDS as KB_COMMANDS
from mlxforge.cli.main import COMMANDS
from mlxforge.cli.runs import COMMANDS as RUNS_COMMANDS
from mlxforge.cli.synth import COMMANDS as SYNTH_COMMANDS

HEAVY = {"mlx", "mlx_lm", "transformers", "datasets", "numpy", "rich", "yaml", "tokenizers", "huggingface_hub", "matplotlib"}
DATA = [["data", name] for name in DATA_COMMANDS]
EXPORT = [["export", name] for name in EXPORT_COMMANDS]
PAGES = [
    [],
    *([name] for name in COMMANDS),
    *DATA,
    *EXPORT,
    *(["kb", name] for name in KB_COMMANDS),
    *(["synth", name] for name in SYNTH_COMMANDS),
    *(["runs", name] for name in RUNS_COMMANDS),
    ["plan", "sft"],
    ["models", "list"],
    ["models", "families"],
    ["models", "detect"],
]
CODE = """
import json, sys
from mlxforge.cli.main import run
code = run([*json.loads(sys.argv[1]), "--help"], debug=False)
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_help_imports_nothing_heavy(page):
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(page)], capture_output=True, text=True, check=True)
    *text, last = done.stdout.splitlines()
    code, modules = json.loads(last)
    assert code == 0
    assert text[0].startswith("Usage: mlxforge")
    assert HEAVY.isdisjoint(modules)


def test_the_package_imports_nothing_heavy():
    code = "import sys, mlxforge; mlxforge.CptConfig; print(sorted({n.partition('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not [name for name in HEAVY if f"'{name}'" in done.stdout]
