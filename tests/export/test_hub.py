"""``export hub`` against a stand-in of the hub's API: what arrives is what was made, and every refusal is one clear line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hub_server import TOKEN, serving
from huggingface_hub import constants

from mlxforge import CptConfig, train
from mlxforge.cli.export_hub import hub as command
from mlxforge.core.config import from_dict
from mlxforge.core.errors import ConfigError, MlxforgeError, RunFailed
from mlxforge.export.card import FRONT, Facts, card, public, sparkline
from mlxforge.models.tiny import make_tiny
from mlxforge.runs.export_hub import MAKERS, Wish, export_hub, hide
from mlxforge.runs.export_peft import export_peft
from mlxforge.runs.opening import Base, resolve_base


@pytest.fixture(scope="module")
def run(documents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("private-folder")
    base = make_tiny("llama3", folder / "my-base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: some/other\n---\n# Base\n")
    settings = {"model": str(base), "data": [str(documents)], "runs_dir": str(folder / "runs"), "name": "mill", "steps": 3}
    settings |= {"sample_tokens": 0, "max_length": 64, "batch_tokens": 256, "warmup": 0, "lora": {"rank": 4}, "eval_every": 1}
    return train(from_dict(CptConfig, settings)).path


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def subject_of(run: Path) -> Base:
    return resolve_base(str(run), run.parent)


@pytest.mark.parametrize("what", ["adapter", "fused"])
def test_what_arrives_is_what_was_made(what, run, hub, tmp_path):
    result = export_hub(subject_of(run), "me/mill", what=what, private=True)
    MAKERS[what](subject_of(run), tmp_path / "made", Wish((), None, lambda _: None))
    hide(tmp_path / "made")
    made = {file.name: file.read_bytes() for file in (tmp_path / "made").iterdir()}
    assert hub.files["me/mill"] == made
    assert hub.repos == {"me/mill": True}
    assert hub.commits == 1
    assert {file["path"]: file["bytes"] for file in result["files"]} == {name: len(data) for name, data in made.items()}
    assert (result["repo"], result["url"]) == ("me/mill", f"{hub.url}/me/mill")
    assert hub.tokens == {TOKEN}


def test_nothing_of_this_disk_is_uploaded(run, hub):
    export_hub(subject_of(run), "me/mill")
    places = [str(run.parent.parent), str(Path.home()) + "/", tempfile.gettempdir() + "/", "private-folder"]
    for name, data in hub.files["me/mill"].items():
        assert not [place for place in places if place.encode() in data], name
    assert json.loads(hub.files["me/mill"]["adapter_config.json"])["base_model_name_or_path"] == "my-base"


def test_a_text_that_tells_a_folder_is_not_uploaded(tmp_path):
    (tmp_path / "x.report.json").write_text(
        json.dumps({"file": str(tmp_path / "a.gguf"), "against": "run:/a/b", "texts": ["../x/y", "a/b"]})
    )
    hide(tmp_path)
    assert json.loads((tmp_path / "x.report.json").read_text()) == {"file": "a.gguf", "against": "run:b", "texts": ["y", "a/b"]}
    (tmp_path / "README.md").write_text(f"trained in {Path.home()}/notes")
    with pytest.raises(MlxforgeError, match=r"README\.md would tell a folder"):
        hide(tmp_path)


def test_the_card(run):
    result = export_hub(subject_of(run), "me/mill", dry_run=True)
    front = yaml.safe_load(FRONT.match(result["card"])[1])
    assert front == {
        "tags": ["mlxforge", "lora"],
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
    }
    record = json.loads((run / "run.json").read_text())
    for words in ("# mill", "| steps | 3 |", "documents0", record["lineage"]["model"]["hash"], "| 3 |", "## Losses"):
        assert words in result["card"], words
    before, after = (record["result"][key]["loss"] for key in ("before", "valid"))
    assert f"| validation loss | {before:.4f} | {after:.4f} |" in result["card"]


def test_what_the_hub_reads():
    base = "Qwen/Qwen3-0.6B"
    facts = Facts(kind="dora", relation="adapter", library="peft", data={"data": ["hub:me/rows:train", "/home/x/notes.txt"]})
    front = yaml.safe_load(FRONT.match(card(base, facts))[1])
    assert (front["base_model"], front["base_model_relation"], front["datasets"]) == (base, "adapter", ["me/rows"])
    assert "notes.txt" in card(base, facts)
    assert "/home" not in card(base, facts)
    assert "not stated" in card(base, facts)
    assert public(["/a/b/c.txt", "C:\\x\\y.txt", "hub:a/b", "plain"]) == "c.txt, y.txt, hub:a/b, plain"
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert sparkline([1.0, 1.0]) == "▁▁"


def test_a_dry_run_asks_nothing(run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    done = CliRunner().invoke(command, [str(run), "--repo", "me/mill", "--dry-run"], catch_exceptions=False)
    assert "nothing was uploaded" in done.stdout
    assert "adapter_model.safetensors" in done.stdout
    assert "# mill" in done.stdout


def test_refusals(run, hub, monkeypatch):
    base = subject_of(run)
    cases = [
        (r"POST /api/repos/create", 401, "does not accept the token", MlxforgeError),
        (r"POST /api/repos/create", 403, "may not write there", MlxforgeError),
        (r"POST /api/repos/create", 500, "status 500", MlxforgeError),
        (r"POST .*/batch", 403, "broke off.*may not write", RunFailed),
        (r"POST .*/commit/", 413, "larger than the hub takes.*--force", RunFailed),
    ]
    for number, (pattern, status, words, kind) in enumerate(cases):
        hub.fail = {pattern: status}
        with pytest.raises(kind, match=words) as caught:
            export_hub(base, f"me/mill{number}")
        assert TOKEN not in str(caught.value)
    hub.fail = {}
    with pytest.raises(MlxforgeError, match="may not write there"):
        export_hub(base, "somebody/mill")
    with pytest.raises(ConfigError, match="no name for a repository"):
        export_hub(base, "me/a b")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(MlxforgeError, match="does not accept the token") as caught:
        export_hub(base, "me/other")
    assert "hf_wrong" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(MlxforgeError, match="no token"):
        export_hub(base, "me/other")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MlxforgeError, match="cannot be reached"):
        export_hub(base, "me/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MlxforgeError, match="switched off"):
        export_hub(base, "me/other")


def test_a_name_that_is_taken(run, hub):
    base = subject_of(run)
    export_hub(base, "me/mill")
    with pytest.raises(MlxforgeError, match=r"there already.*--force"):
        export_hub(base, "me/mill")
    export_hub(base, "me/mill", force=True)
    assert hub.commits == 2
    with pytest.raises(ConfigError, match="public"):
        export_hub(base, "me/mill", force=True, private=True)
    assert hub.commits == 2


def test_a_packed_base_and_options_that_do_not_fit(run, tmp_path):
    done = CliRunner().invoke(command, [str(run), "--repo", "me/x", "--quant", "q8_0", "--dry-run"])
    assert isinstance(done.exception, ConfigError)
    done = CliRunner().invoke(command, [str(run), "--repo", "me/x", "--what", "fused", "--base", "a/b", "--dry-run"])
    assert isinstance(done.exception, ConfigError)
    export_peft(subject_of(run), tmp_path / "peft", named="org/base")
    assert "base_model: org/base" in (tmp_path / "peft" / "README.md").read_text()


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own(run, tmp_path):
    """With nothing but the environment: the endpoint, and the token of a login."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(TOKEN)
    shutil.copytree(run, tmp_path / "runs" / "mill")
    with serving() as server:
        env = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
        env |= {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
        words = [sys.executable, "-m", "mlxforge", "export", "hub", "mill", "--runs-dir", str(tmp_path / "runs")]
        done = subprocess.run([*words, "--repo", "mill", "--json"], capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["repo"], set(server.files)) == ("me/mill", {"me/mill"})
        assert TOKEN not in done.stdout + done.stderr
        again = subprocess.run([*words, "--repo", "mill"], capture_output=True, text=True, env=env, check=False)
        assert (again.returncode, again.stderr.count("\n")) == (2, 1), again.stderr
