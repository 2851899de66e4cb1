"""``mlxforge doctor``: what is found, what is a problem, the line that mends it, and that no secret is told."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from mlxforge.cli.main import run as command
from mlxforge.core.blas import HINT
from mlxforge.runs import doctor

VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10000.
Pages active:                            400000.
Pages inactive:                           20000.
Pages speculative:                          500.
Pages throttled:                              0.
Pages wired down:                        120000.
Pages purgeable:                            100.
"Translation faults":                 999999999.
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The object of a whole examination."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_neverShown0123456789")
        patch.chdir(tmp_path_factory.mktemp("here"))
        import contextlib
        import io

        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = command(["doctor", "--json"], debug=False)
    return code, out.getvalue()


def test_this_machine_is_well_and_every_part_is_looked_at(page):
    code, text = page
    found = json.loads(text)
    assert (code, found["healthy"]) == (0, True)
    named = {(one["group"], one["name"]): one for one in found["checks"]}
    groups = {group for group, _ in named}
    assert groups == {"machine", "MLX", "packages", "extras", "disk", "hub", "neighbours", "terminal"}
    assert named["MLX", "matrix product"]["facts"]["gflops"] > 1
    assert named["MLX", "training"]["facts"]["seconds"] > 0
    assert named["machine", "memory"]["facts"]["total"] > named["machine", "memory"]["facts"]["free"] > 1 << 28
    assert named["packages", "versions"]["facts"]["mlx"]
    assert named["disk", "this folder"]["facts"]["writable"]
    assert named["hub", "network"]["status"] == "absent"
    assert all(one["fix"] for one in found["problems"])


def test_a_token_is_seen_and_not_shown(page):
    _, text = page
    assert '"token":true' in text
    assert "neverShown" not in text


def test_a_problem_ends_in_1_and_a_warning_does_not(monkeypatch, capsys):
    """The page tells the line that mends each."""
    for status, code in (("warning", 0), ("problem", 1)):
        look = lambda status=status: iter([doctor.Check("MLX", "thing", "is broken", status, "mend it")])  # noqa: E731
        monkeypatch.setattr(doctor, "LOOKS", (look,))
        assert command(["doctor"], debug=False) == code
        said = capsys.readouterr().out
        assert "→ mend it" in said
        assert f"1 {status}" in said


@pytest.mark.parametrize(
    ("kind", "machine", "macos", "rosetta", "fix"),
    [
        ("linux", "x86_64", "", False, ""),
        ("darwin", "arm64", "15.2", False, ""),
        ("darwin", "arm64", "13.5.1", False, ""),
        ("darwin", "arm64", "13.4", False, "update to macOS"),
        ("darwin", "x86_64", "15.2", True, "Python for arm64"),
        ("darwin", "x86_64", "15.2", False, "M chip"),
        ("win32", "AMD64", "", False, "Linux"),
    ],
)
def test_systems_that_mlx_runs_on(kind, machine, macos, rosetta, fix):
    check = doctor.system("it", {"machine": machine}, kind, macos, rosetta)
    assert check.status == ("problem" if fix else "good")
    assert fix in check.fix


def test_a_slow_blas_is_told_with_what_mends_it():
    assert doctor.speed("", 120.0, 1024, metal=False).status == "good"
    slow = doctor.speed(HINT, 6.0, 1024, metal=False)
    assert (slow.status, slow.fix) == ("warning", "sudo apt-get install libopenblas0-pthread")
    assert doctor.speed("", 6.0, 1024, metal=False).status == "warning"
    assert doctor.speed("", 6.0, 4096, metal=True).status == "good"


def test_free_memory_of_a_mac_by_hand():
    assert doctor.free_of_vm_stat(VM_STAT) == 16384 * (10000 + 20000 + 500 + 100)
    assert doctor.free_of_vm_stat("") is None


def test_the_halves_of_mlx_have_to_be_of_one_version():
    assert doctor.mismatches({"mlx": "0.30.1", "mlx-cpu": "0.30.1"}) == []
    [(what, fix)] = doctor.mismatches({"mlx": "0.30.1", "mlx-metal": "0.29.0"})
    assert "mlx-metal 0.29.0 beside mlx 0.30.1" in what
    assert fix == "pip install --force-reinstall mlx==0.30.1 mlx-metal==0.30.1"


def test_what_a_package_needs_is_read_from_its_metadata():
    plain = {need["name"]: need for need in doctor.needs("mlxforge")}
    assert plain["click"]["fits"]
    assert "pytest" not in plain
    assert "matplotlib" not in plain
    assert [need["name"] for need in doctor.needs("mlxforge", "plot")] == ["matplotlib"]
    assert doctor.needs("no-such-package-here") == []


def test_a_folder_that_does_not_exist_yet_is_judged_by_its_parent(tmp_path):
    check = doctor.place("token cache", tmp_path / "a" / "b", room=False)
    assert check.status == "good"
    assert check.facts["used"] == 0
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 1500)
    assert doctor.place("token cache", tmp_path / "a", room=False).facts["used"] == 1500


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path, monkeypatch):
    """The tests may run as root, who may write anywhere: the system's answer is given here."""
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    check = doctor.place("this folder", tmp_path, room=True)
    assert (check.status, check.fix) == ("problem", f"chmod u+wx {tmp_path}")


def test_a_server_on_this_machine_is_asked(monkeypatch):
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/api/version" else 404)
            self.end_headers()
            self.wfile.write(b'{"version": "0.9.1"}')

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OLLAMA_HOST", f"0.0.0.0:{server.server_port}")
    monkeypatch.setenv("LMSTUDIO_HOST", f"127.0.0.1:{server.server_port}")
    found = {check.name: check for check in doctor.neighbours()}
    server.shutdown()
    assert found["Ollama"].shown == f"answers at http://127.0.0.1:{server.server_port}, version 0.9.1"
    assert found["LM Studio"].status == "absent"
    assert "lms server start" in found["LM Studio"].fix


def test_the_terminal():
    assert doctor.terminal(True, "utf-8", 100, True).status == "good"
    assert doctor.terminal(True, "utf-8", 40, True).status == "warning"
    assert "UTF-8" in doctor.terminal(False, "ascii", 100, True).fix
    assert doctor.terminal(False, "utf-8", 80, False).fix == ""
