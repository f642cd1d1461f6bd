"""`task=annotate` as a user runs it: what it adds, what it says, how it ends, and what it leaves behind."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra annotate")

from samtrain import tasks  # noqa: E402
from samtrain.annotator.config import wants_second_opinion  # noqa: E402
from samtrain.annotator.store import open_store  # noqa: E402
from samtrain.modeling.build import build_sam  # noqa: E402
from samtrain.modeling.checkpoints import save_safetensors  # noqa: E402
from samtrain.ops.rle import encode_mask  # noqa: E402

CONF = Path(__file__).resolve().parents[2] / "conf"
SIZE = (48, 64)


def run(folder: Path, *overrides: str) -> None:
    """The task; what it writes lies in `folder`/run."""
    GlobalHydra.instance().clear()
    given = ["task=annotate", "run_dir=run", f"data_dir={folder}/shards", "annotate.port=0", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = tasks.resolve(compose("config", overrides=given))
    (folder / "run").mkdir(exist_ok=True)
    tasks.run(config, folder / "run")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images in a folder and one below it."""
    (tmp_path / "set" / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "c.png", "deep/d.png")):
        pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / name)
    return tmp_path / "set"


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    torch.manual_seed(0)
    return f"checkpoint={save_safetensors(build_sam('vit_tiny', image_size=64), tmp_path / 'sam.safetensors')}"


def names(folder: Path) -> list[str]:
    with open_store(f"sqlite:///{folder}/run/annotations.db") as store:
        return [image.name for image in store.images()]


def test_a_wrong_form_of_export_is_refused_before_people_work(tmp_path: Path, images: Path) -> None:
    with pytest.raises(ValueError, match="annotate.export holds cocoo: choose from coco"):
        run(tmp_path, f"annotate.images={images}", "annotate.export=[cocoo]")
    assert not list(tmp_path.rglob("annotations.db")), "nothing was begun"


def test_images_of_any_depth_are_added_once(tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(tmp_path, f"annotate.images={images}", "annotate.serve=false")
        assert names(tmp_path) == ["a.png", "b.jpg", "c.png", "deep/d.png"]
        Image.new("RGB", (9, 7)).save(images / "e.png")
        run(tmp_path, f"annotate.images={images}", "annotate.serve=false")
    assert "Images: 4 new, 0 were there already, 0 left out" in caplog.text
    assert "Images: 1 new, 4 were there already, 0 left out" in caplog.text
    with open_store(f"sqlite:///{tmp_path}/run/annotations.db") as store:
        last = store.images()[-1]
    assert (last.name, last.width, last.height) == ("e.png", 9, 7)


def test_broken_images_are_refused_or_left_out(tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    (images / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="broken.png: its image cannot be read"):
        run(tmp_path, f"annotate.images={images}", "annotate.serve=false")
    with caplog.at_level(logging.INFO):
        run(tmp_path, f"annotate.images='{images}/*.png'", "annotate.serve=false", "data.on_error=skip")
    assert "2 new, 0 were there already, 1 left out" in caplog.text
    assert names(tmp_path) == ["a.png", "c.png"]


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["annotate.images=nowhere", "CHECKPOINT"], "annotate.images is 'nowhere', and no image was found there"),
        (["annotate.serve=false"], "There are no images to annotate: set annotate.images"),
        (["annotate.images=SET"], "checkpoint is null: task=annotate needs checkpoint=FILE"),
        (["annotate.host=0.0.0.0"], r"annotate.host is '0.0.0.0', which lets other machines in"),
        (["annotate.annotators=[a,a]"], "give each annotator a name of their own"),
        (["annotate.annotators=['<b>']", "annotate.images=SET", "CHECKPOINT"], "cannot be an annotator's name"),
        (["annotate.port=99999"], "annotate.port is 99999: give a number from 0 to 65535"),
        (["annotate.opinions=2"], "annotate.opinions is 2: give a number from 0 to 1"),
        (["annotate.val=0.6", "annotate.test=0.5"], "give shares with a sum below 1"),
        (["annotate.import_masks=true", "annotate.images=SET", "CHECKPOINT"], "import_masks is true, .* data=folder"),
        (["annotate.export=[word]", "annotate.images=SET", "annotate.serve=false"], "annotate.export holds word: choose"),
        (["annotate.store=mysql://x", "annotate.images=SET"], "annotate.store"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, images: Path, checkpoint: str, overrides: list[str], complaint: str) -> None:
    given = [each.replace("SET", str(images)) if each != "CHECKPOINT" else checkpoint for each in overrides]
    with pytest.raises(ValueError, match=complaint):
        run(tmp_path, *given)


def test_the_share_of_second_opinions_is_a_function_of_the_image() -> None:
    chosen = [wants_second_opinion(str(number), 0.25) for number in range(2000)]
    assert 400 < sum(chosen) < 600 and chosen == [wants_second_opinion(str(number), 0.25) for number in range(2000)]
    assert not any(wants_second_opinion(str(number), 0.0) for number in range(99))
    assert all(wants_second_opinion(str(number), 1.0) for number in range(99))


def test_masks_are_imported_and_exported(tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask = np.zeros(SIZE, bool)
    mask[5:20, 5:30] = True
    content = {"image": {"width": SIZE[1], "height": SIZE[0]}, "annotations": [{"id": 7, "segmentation": encode_mask(mask)}]}
    for path in [*images.rglob("*.png"), *images.rglob("*.jpg")]:
        path.with_suffix(".json").write_text(json.dumps(content))
    folder = ["data=folder", f"data.root={images}", "annotate.import_masks=true", "annotate.serve=false"]
    with caplog.at_level(logging.INFO):
        run(tmp_path, *folder, "annotate.export=[coco,sa1b]", f"annotate.output={tmp_path}/out")
        run(tmp_path, *folder)
    assert "Imported: 4 images with 4 masks" in caplog.text and len(names(tmp_path)) == 4
    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert len(coco["images"]) == len(coco["annotations"]) == 4 and coco["annotations"][0]["area"] == mask.sum()
    assert (tmp_path / "out" / "sa1b").is_dir()


def served(folder: Path, *overrides: str, number: int = signal.SIGTERM, visit: Any = lambda url: None) -> None:
    """Runs the task until a thread has visited it, which then sends a signal."""
    printed: list[str] = []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            printed.append(record.getMessage())

    def work() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and not any("The page is at" in line for line in printed):
            time.sleep(0.02)
        try:
            visit(next(line for line in printed if "The page is at" in line).split()[4].rstrip("."))
        finally:
            os.kill(os.getpid(), number)

    handler, logger = Listen(), logging.getLogger("samtrain.tasks.annotate")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        run(folder, *overrides)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        thread.join(20)


def post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_and_says_what_was_done(
    tmp_path: Path, images: Path, checkpoint: str, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    def visit(url: str) -> None:
        opened = post(f"{url}/api/next", {})
        place = f"{url}/api/images/{opened['image']['id']}"
        candidates = post(f"{place}/prompts", {"points": [[20, 20]], "labels": [1], "seq": 1})["candidates"]
        mask = max(candidates, key=lambda each: each["area"])["segmentation"]
        post(f"{place}/masks", {"segmentation": mask, "seconds": 2, "lease": opened["lease"]["token"]})
        post(f"{place}/finish", {"lease": opened["lease"]["token"]})

    with caplog.at_level(logging.INFO):
        served(tmp_path, f"annotate.images={images}", checkpoint, "annotate.export=[coco]", number=number, visit=visit)
    assert "1 mask in this session; in the store: 1 mask in 1 of 4 images" in caplog.text
    assert "the prefetch hit rate is 0 %" in caplog.text and "To continue: python -m samtrain run_dir=" in caplog.text
    assert (tmp_path / "run" / "export" / "coco.json").is_file()


def test_it_resumes_without_encoding_again(
    tmp_path: Path, images: Path, checkpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    def visit(url: str) -> None:
        post(f"{url}/api/images/1/prompts", {"points": [[20, 20]], "labels": [1]})

    command = [f"annotate.images={images}", checkpoint, "annotate.prefetch=0"]
    with caplog.at_level(logging.INFO):
        served(tmp_path, *command, visit=visit)
        served(tmp_path, *command, visit=visit)
    assert "1 image encoded, 0 embeddings were found on disk" in caplog.text
    assert "0 images encoded, 1 embeddings were found on disk" in caplog.text


def test_links_are_printed_and_not_logged(
    tmp_path: Path, images: Path, checkpoint: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        served(tmp_path, f"annotate.images={images}", checkpoint, "annotate.annotators=[anna,ben]")
    printed = capsys.readouterr().out
    tokens = [line.rpartition("#token=")[2] for line in printed.splitlines() if "#token=" in line]
    assert len(tokens) == 2 and "  anna: http://127.0.0.1:" in printed
    assert not any(token in caplog.text for token in tokens)


def test_a_missing_extra_is_named(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samtrain.tasks.annotate.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'samtrain\[annotate\]'"):
        run(tmp_path, f"annotate.images={images}")
