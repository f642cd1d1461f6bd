"""The scripts in examples/ run as a newcomer would run them, on a small model and images made here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samtrain import build_sam, load_sam, save_safetensors

ROOT = Path(__file__).resolve().parents[1]
SIZE = (72, 96)


def run_example(name: str, *arguments: object, cwd: Path) -> str:
    """Returns what the script prints; a failure shows what it said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    answer = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_safetensors(build_sam("vit_tiny"), tmp_path / "tiny.safetensors")


@pytest.fixture
def images(tmp_path: Path, making) -> Path:
    """A folder of images with a bright rectangle each, and their masks in SA-1B's form."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        mask = making.rectangle(SIZE, (10 + 4 * number, 20, 40 + 4 * number, 50))
        Image.fromarray(np.where(mask[..., None], 220, 40).astype(np.uint8).repeat(3, 2)).save(folder / f"{number}.png")
        (folder / f"{number}.json").write_text(json.dumps(making.annotate([mask], SIZE)))
    return folder


def test_each_is_short() -> None:
    scripts = sorted((ROOT / "examples").glob("*.py"))
    assert [path.stem for path in scripts] == ["click_on_image", "finetune_on_folder", "masks_of_folder"]
    for path in scripts:
        assert len(path.read_text().splitlines()) < 40, path.name
        assert f"python examples/{path.name}" in path.read_text(), "the docstring says how to run it"


def test_click_on_image(tmp_path: Path, checkpoint: Path, images: Path) -> None:
    printed = run_example("click_on_image.py", checkpoint, images / "0.png", 25, 35, cwd=tmp_path).splitlines()
    assert len(printed) == 3
    assert all(Image.open(line.split(":")[0]).size == SIZE[::-1] for line in printed)


def test_finetune_on_folder(tmp_path: Path, checkpoint: Path, images: Path) -> None:
    run_example("finetune_on_folder.py", checkpoint, images, "tuned.safetensors", 2, cwd=tmp_path)
    before, after = load_sam(checkpoint).state_dict(), load_sam(tmp_path / "tuned.safetensors").state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"mask_decoder"}


def test_masks_of_folder(tmp_path: Path, checkpoint: Path, images: Path) -> None:
    for number in range(2, 8):  # two images are enough: each takes 1,024 clicks
        (images / f"{number}.png").unlink()
    printed = run_example("masks_of_folder.py", checkpoint, images, tmp_path / "masks", cwd=tmp_path)
    assert printed.count("masks") == 2
    content = json.loads((tmp_path / "masks" / "0.json").read_text())
    assert content["image"] == {"image_id": 1, "width": 96, "height": 72, "file_name": "0.png"}
