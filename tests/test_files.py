"""Files and folders appear whole or not at all."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from vimlrp.errors import InputError
from vimlrp.files import atomic_folder, atomic_write, sha256_of


def test_write_makes_the_folders_above_and_leaves_nothing_else(tmp_path):
    path = atomic_write(tmp_path / "a" / "b" / "c.bin", b"123")
    assert path.read_bytes() == b"123"
    assert list(path.parent.iterdir()) == [path]


def test_write_replaces_a_file(tmp_path):
    path = tmp_path / "x"
    atomic_write(path, b"a long first version")
    atomic_write(str(path), b"2")
    assert path.read_bytes() == b"2"


def test_written_file_has_the_ordinary_mode(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert atomic_write(tmp_path / "ours", b"").stat().st_mode == ordinary.stat().st_mode


def test_write_accepts_the_longest_file_name(tmp_path):
    assert atomic_write(tmp_path / ("n" * 251 + ".png"), b"1").is_file()


def test_write_refuses_a_folder(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        atomic_write(tmp_path, b"1")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch, step):
    path = atomic_write(tmp_path / "x", b"old")
    _break(monkeypatch, step)
    with pytest.raises(OSError, match="no space"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def _break(monkeypatch, step):
    def fail(*args):
        raise OSError("no space")

    owner = {"fsync": os, "replace": Path}[step]
    monkeypatch.setattr(owner, step, fail)


def _fill_and_fail(path, error):
    with atomic_folder(path, overwrite=True) as folder:
        (folder / "manifest.json").write_text("2")
        raise error


def test_folder_appears_at_the_end(tmp_path):
    path = tmp_path / "deep" / "out"
    with atomic_folder(path) as folder:
        (folder / "a.txt").write_text("a")
        assert not path.exists()
    assert [p.name for p in path.iterdir()] == ["a.txt"]
    assert list(path.parent.iterdir()) == [path]


def test_folder_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_folder("out") as folder:
        (folder / "a").touch()
    assert (tmp_path / "out" / "a").is_file()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failed_folder_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        _fill_and_fail(tmp_path / "deep" / "out", error)
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.fixture
def ours(tmp_path):
    path = tmp_path / "out"
    with atomic_folder(path) as folder:
        (folder / "manifest.json").write_text("1")
        (folder / "only in the old one").touch()
    return path


def test_existing_folder_is_refused_before_the_work(ours):
    with pytest.raises(InputError, match="overwrite=True"), atomic_folder(ours):
        pytest.fail("the block ran")


def test_overwrite_replaces_the_whole_folder(ours):
    with atomic_folder(ours, overwrite=True) as folder:
        (folder / "manifest.json").write_text("2")
    assert (ours / "manifest.json").read_text() == "2"
    assert [p.name for p in ours.iterdir()] == ["manifest.json"]
    assert list(ours.parent.iterdir()) == [ours]


def test_failed_overwrite_keeps_the_old_folder(ours):
    with pytest.raises(RuntimeError):
        _fill_and_fail(ours, RuntimeError)
    assert (ours / "manifest.json").read_text() == "1"
    assert list(ours.parent.iterdir()) == [ours]


def test_old_folder_comes_back_when_the_new_one_cannot_move_in(ours, monkeypatch):
    rename, calls = Path.rename, []

    def fail_second(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no space")
        return rename(self, target)

    with pytest.raises(OSError, match="no space"), atomic_folder(ours, overwrite=True):
        monkeypatch.setattr(Path, "rename", fail_second)
    assert (ours / "manifest.json").read_text() == "1"
    assert list(ours.parent.iterdir()) == [ours]


def test_overwrite_spares_a_folder_that_is_not_ours(tmp_path):
    (tmp_path / "holiday.jpg").write_text("precious")
    with (
        pytest.raises(InputError, match=r"no manifest\.json"),
        atomic_folder(tmp_path, overwrite=True),
    ):
        pytest.fail("the block ran")
    assert (tmp_path / "holiday.jpg").read_text() == "precious"


def test_overwrite_takes_an_empty_folder_and_another_marker(tmp_path):
    for content in ("1", "2"):
        (tmp_path / "out").mkdir(exist_ok=True)
        with atomic_folder(tmp_path / "out", overwrite=True, marker="report.html") as folder:
            (folder / "report.html").write_text(content)
    assert (tmp_path / "out" / "report.html").read_text() == "2"


def test_folder_over_a_file_is_refused(tmp_path):
    (tmp_path / "out").touch()
    with (
        pytest.raises(InputError, match="is a file"),
        atomic_folder(tmp_path / "out", overwrite=True),
    ):
        pytest.fail("the block ran")


def test_sha256_of_file_bytes_and_array_agree(tmp_path):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    path = atomic_write(tmp_path / "x", array.tobytes())
    expected = hashlib.sha256(bytes(range(6))).hexdigest()
    assert {sha256_of(path), sha256_of(str(path)), sha256_of(bytes(range(6)))} == {expected}
    assert sha256_of(array) == sha256_of(np.asfortranarray(array)) == expected
    assert sha256_of(array.T) != expected


@pytest.mark.parametrize(("source", "message"), [("missing", "no such file"), (3, "a int")])
def test_sha256_refuses(source, message):
    with pytest.raises(InputError, match=message):
        sha256_of(source)
