"""What the documents say is true: commands run, pages are fresh, the changelog knows the version."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from command_lines import parses

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def block(mark: str, page: str = README) -> str:
    """The code block after a mark in the README or another page."""
    found = re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", page, re.DOTALL)
    assert found, mark
    return found[1]


def call(words, folder):
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"}
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_the_commands_of_the_readme_run(tmp_path):
    lines = [line for line in block("commands").splitlines() if line.strip()]
    assert len(lines) >= 5
    for line in lines:
        done = call(shlex.split(line, comments=True), tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert (tmp_path / "runs" / "first" / "adapters.safetensors").exists()


@pytest.mark.slow
def test_the_commands_of_the_page_on_knowledge_run(tmp_path):
    lines = block("commands", (ROOT / "docs" / "knowledge.md").read_text()).splitlines()
    assert len(lines) >= 8
    for line in lines:
        done = call(shlex.split(line, comments=True), tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) > 1


@pytest.mark.slow
def test_the_commands_of_the_page_on_runs_run(tmp_path):
    for line in block("commands", (ROOT / "docs" / "runs.md").read_text()).splitlines():
        done = call(shlex.split(line, comments=True), tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        if "--tree" in line:
            assert [name in done.stdout for name in ("tiny", "notes", "bold", "exports/fused", "from step 15")] == [True] * 5
    assert not (tmp_path / "runs" / "bold").exists()
    assert (tmp_path / "losses.png").stat().st_size > 10_000


def test_the_commands_of_the_page_on_pipelines_run(tmp_path):
    lines = block("commands", (ROOT / "docs" / "pipeline.md").read_text()).splitlines()
    assert len(lines) == 3
    for line in lines:
        done = call(shlex.split(line, comments=True), tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_the_python_of_the_readme_runs(tmp_path):
    done = call([sys.executable, "-c", block("python")], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "from-python" in done.stdout.splitlines()[-1]


def test_the_python_of_the_page_on_evaluation_runs(tmp_path):
    done = call([sys.executable, "-c", block("python", (ROOT / "docs" / "evaluation.md").read_text())], tmp_path)
    assert done.stdout.splitlines()[-1:] == ["True"], done.stderr


@pytest.mark.slow
def test_the_commands_of_the_page_on_evaluation_run(tmp_path):
    for line in block("commands", (ROOT / "docs" / "evaluation.md").read_text()).splitlines():
        done = call(shlex.split(line, comments=True), tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert (tmp_path / "report" / "report.html").exists()


@pytest.mark.parametrize("page", [README, *(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))])
def test_every_command_of_a_page_is_one(page):
    """Blocks of shell lines, and the examples of ``--help``; a pipe or a redirection ends a line."""
    shell = "".join(re.findall(r"```(?:sh|bash)\n(.*?)```", page, re.DOTALL)).replace("\\\n", " ")
    examples = re.findall(r"^  (mlxforge [a-z].*[^.\n]$)", page, re.MULTILINE)
    for line in [*(line for line in shell.splitlines() if line.startswith("mlxforge ")), *examples]:
        parses(re.split(r" [|<>] ", line)[0])


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_changelog_begins_with_this_version():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == version("mlxforge")


def test_generated_pages_are_fresh():
    done = call([sys.executable, "scripts/make_docs.py", "--check"], ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "target",
    ["pipeline", "dashboard", "data", "cpt", "sft", "dpo", "export", "test", "test-all", "check", "format", "docs", "clean"],
)
def test_make_help_lists_the_targets(target):
    assert f"make {target} " in call(["make", "help"], ROOT).stdout
