"""A folder or file is there whole or not at all: through a kill, a full disk, and several processes at once."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from samtrain.files import build_once, write_text


def full_disk(*_) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_keeps_its_old_text_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def make(folder: Path) -> dict:
    """Two files, the second after a kill; what the first process has left is found by the next."""
    with open(folder / "calls", "a") as file:
        file.write("x")
    if (folder / "calls").read_text() == "x":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "content").write_text("whole")
    return {"calls": (folder / "calls").read_text()}


def make_it(target: Path) -> None:
    build_once(target, make, "manifest.json")


def test_what_a_killed_process_left_is_not_taken_for_whole(tmp_path: Path) -> None:
    """Four processes at once: the one that begins is killed, one of the others makes the folder, and only one."""
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
