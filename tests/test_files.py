"""A file or folder is complete or absent, after a kill, on a full disk, and with several processes at once."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from samtrain.files import build_once, do_once, explain_full_disk, locked, write_bytes, write_once, write_text


def full_disk(*_) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_keeps_its_old_text_if_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device \(free some disk space.* it resumes\): '.*a\.json'"):
        write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="Is a directory: .*folder'$"):
        write_text(tmp_path / "folder", "")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"], "no temporary file stays behind"


def test_the_first_text_of_a_file_written_once_stays(tmp_path: Path) -> None:
    assert write_once(tmp_path / "new" / "id", "first") == "first" == write_once(tmp_path / "new" / "id", "second")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["id"], "no temporary file stays behind"


def test_work_is_done_once_and_its_result_is_plain_json(tmp_path: Path) -> None:
    first = do_once(tmp_path / "done.json", lambda: (1, 2))
    assert first.result == [1, 2] and do_once(tmp_path / "done.json", full_disk) == first


def test_bytes_are_written_complete(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b.png", b"\x00\xff")
    assert (tmp_path / "a" / "b.png").read_bytes() == b"\x00\xff"


def make(folder: Path) -> dict:
    """Writes two files and kills itself between them the first time; the next process finds the first file."""
    with open(folder / "calls", "a") as file:
        file.write("x")
    if (folder / "calls").read_text() == "x":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "content").write_text("whole")
    return {"calls": (folder / "calls").read_text()}


def make_it(target: Path) -> None:
    build_once(target, make, "manifest.json")


def test_the_remains_of_a_killed_process_are_not_taken_for_complete(tmp_path: Path) -> None:
    """The first process is killed; of three others, one makes the folder."""
    target = tmp_path / "set"
    context = multiprocessing.get_context("spawn")
    first = context.Process(target=make_it, args=(target,))
    first.start()
    first.join()
    assert first.exitcode == -signal.SIGKILL and not target.exists()
    others = [context.Process(target=make_it, args=(target,)) for _ in range(3)]
    for each in others:
        each.start()
    for each in others:
        each.join()
    assert [each.exitcode for each in others] == [0, 0, 0]
    assert (target / "content").read_text() == "whole" and '"xx"' in (target / "manifest.json").read_text()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_with_a_way_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(*_) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.lockf", no_locks)
    words = r"has no file locks \(.*run_dir and data_dir on another disk.*SAMTRAIN_LOCKS=off"
    with pytest.raises(ValueError, match=words), locked(tmp_path / ".lock"):
        pass
    monkeypatch.setenv("SAMTRAIN_LOCKS", "off")
    with locked(tmp_path / ".lock"):
        pass


def test_a_library_that_meets_a_full_disk_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's writer raises a RuntimeError without the reason; another error of the same kind stays as it is."""

    def write(words: str) -> None:
        with explain_full_disk(tmp_path / "x.pth", "free some disk space", of_libraries=(RuntimeError,)):
            raise RuntimeError(words)

    with pytest.raises(RuntimeError, match="no such layer"):
        write("no such layer")
    with pytest.raises(OSError, match=r"No space left on device \(free some disk space\): '.*x.pth'"):
        write("I/O error: No space left on device (os error 28)")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4096))
    with pytest.raises(OSError, match="No space left on device"):
        write("PytorchStreamWriter failed writing file data/3: file write failed")
