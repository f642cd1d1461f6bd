"""`import samtrain` is light, and its names are there all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

import samtrain


def test_importing_samtrain_does_not_import_torch():
    code = "import sys, samtrain; assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_exists():
    for name in samtrain.__all__:
        assert getattr(samtrain, name).__name__ == name
    assert dir(samtrain) == sorted(samtrain.__all__)
    with pytest.raises(AttributeError, match="use one of EmbeddingStore, SamAutomaticMaskGenerator, SamPredictor"):
        _ = samtrain.build_sma
