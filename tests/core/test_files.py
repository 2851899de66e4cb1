"""Files are whole or not there."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from mlxforge.core.errors import MlxforgeError, RunError
from mlxforge.core.files import bytes_hash, disk_size, locked, new_directory, point, write_atomic


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(MlxforgeError, match=r"a\.json: cannot write: No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_directory_appears_whole_or_not(tmp_path):
    def half_filled():
        with new_directory(tmp_path / "d") as directory:
            (directory / "one").write_text("1")
            assert not (tmp_path / "d").exists()
            raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        half_filled()
    assert list(tmp_path.iterdir()) == []
    with new_directory(tmp_path / "d") as directory:
        (directory / "one").write_text("1")
    assert (tmp_path / "d" / "one").read_text() == "1"


def test_a_link_moves_in_one_step(tmp_path):
    point(tmp_path / "last", "a")
    point(tmp_path / "last", "b")
    assert os.readlink(tmp_path / "last") == "b"


def _try_lock(directory, answers):
    try:
        with locked(directory):
            answers.put("got it")
    except RunError as error:
        answers.put(str(error))


def test_one_process_writes_a_run(tmp_path):
    answers = multiprocessing.Queue()
    with locked(tmp_path):
        other = multiprocessing.Process(target=_try_lock, args=(tmp_path, answers))
        other.start()
        assert "another process is writing this run" in answers.get(timeout=20)
        other.join()
    _try_lock(tmp_path, answers)
    assert answers.get(timeout=5) == "got it"


def test_hashes_know_where_parts_end():
    assert bytes_hash("ab", "c") != bytes_hash("a", "bc")
    assert bytes_hash("ab") == bytes_hash(b"ab")


def test_the_size_of_a_folder_is_that_of_its_files_without_links(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"x" * 10)
    (tmp_path / "a" / "b" / "two").write_bytes(b"x" * 5)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "one")
    (tmp_path / "a" / "ring").symlink_to(tmp_path / "a")
    assert [disk_size(tmp_path / name) for name in ("a", "a/one")] == [15, 10]
    assert disk_size(tmp_path / "a" / "ring") < 10**4  # the link's own
