"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures that lies beside the project where we develop; a plain clone has none."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the shared pictures, {SHARED_DATA} is not there")
    return SHARED_DATA
