"""The server of the pages as a child process: a short program stands in for it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from samtrain.annotator import server_process
from samtrain.annotator.server_process import ServerProcess

SAID = {"url": "http://127.0.0.1:4242", "links": {"Ada": "http://x/#token=secret"}}
SAYS = f"import json, sys; print(json.dumps({SAID}), flush=True)"


def program(tmp_path: Path, then: str) -> list[str]:
    """Returns a command that counts its starts in a file, says its address, and goes on with `then`."""
    return [sys.executable, "-S", "-c", f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); {SAYS}; {then}"]


def starts(tmp_path: Path) -> int:
    path = tmp_path / "starts"
    return len(path.read_text()) if path.is_file() else 0


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "annotate.json"
    path.write_text(json.dumps({"annotate": {"port": 0}}))
    return path


def test_a_server_that_dies_starts_again_at_its_port(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_process, "PAUSE", 0.01)
    with ServerProcess(config, program(tmp_path, "sys.exit(3)")), caplog.at_level("INFO"):
        while starts(tmp_path) < 2:
            time.sleep(0.01)
    assert "exit status 3" in caplog.text
    assert json.loads(config.read_text())["annotate"]["port"] == 4242, "open pages know this one"


def test_a_server_ends_when_its_input_closes_and_tokens_are_not_logged(
    tmp_path: Path, config: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level("INFO"), ServerProcess(config, program(tmp_path, "sys.stdin.read()")) as server:
        while not server.url:
            time.sleep(0.01)
        time.sleep(0.05)
    assert server.process is not None and server.process.returncode == 0 and starts(tmp_path) == 1
    assert "http://127.0.0.1:4242" in caplog.text and "secret" not in caplog.text
