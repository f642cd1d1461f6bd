"""Writes the commit into the wheel, so that a run of an installed package can record what it was made by."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMMIT_FILE = "commit.txt"  # samtrain/version.py reads it


class CommitHook(BuildHookInterface):
    """Adds `samtrain/commit.txt` if the wheel is built from a git checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if (Path(self.root) / "samtrain" / COMMIT_FILE).is_file() or not (Path(self.root) / ".git").exists():
            return
        command = ["git", "-C", self.root, "rev-parse", "HEAD"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / COMMIT_FILE
        path.write_text(answer.stdout, encoding="utf-8")
        path.chmod(0o644)
        build_data["force_include"][str(path)] = f"samtrain/{COMMIT_FILE}"
