"""The version of samtrain and the commit that it was built from."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
COMMIT_FILE = "commit.txt"  # a wheel has it inside the package: hatch_build.py writes it


def version() -> str:
    """Returns the version of the installed package, or "not installed" for a checkout that is only on PYTHONPATH."""
    try:
        return metadata.version("samtrain")
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str | None:
    """Returns the commit of the checkout that samtrain runs from, or the one that its wheel was built from, if known."""
    if (PACKAGE.parent / ".git").exists():
        return git("rev-parse", "HEAD")
    stored = PACKAGE / COMMIT_FILE
    if stored.is_file():
        return stored.read_text(encoding="utf-8").strip() or None
    return _commit_of_url()


def git(*arguments: str) -> str | None:
    """Returns git's answer about the checkout; None for an installed package, and if git does not answer."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    try:
        answer = subprocess.run(["git", "-C", str(PACKAGE.parent), *arguments], capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return None
    return answer.stdout.strip() or None


def _commit_of_url() -> str | None:
    """Returns the commit that pip has recorded for `pip install git+https://...`."""
    try:
        text = metadata.distribution("samtrain").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    return json.loads(text).get("vcs_info", {}).get("commit_id") if text else None
