"""Stage 3 by its command: its shards are valid, kills change no byte, and a training reads them."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from samtrain import tasks
from samtrain.data.decode import decode_shown
from samtrain.data.shards import ShardWriter, index_tar, read_record
from samtrain.data.validate import validate
from samtrain.ops.rle import encode_mask
from tests.data_engine.automatic.images import as_jpeg, shapes, write_images, write_model

CONF = Path(__file__).resolve().parents[2] / "conf"
IMAGES = 30
SETTINGS = [
    "+experiment=stage3", "generator=sam", "generator.points_per_side=5", "generator.pred_iou_thresh=0.0",
    "generator.stability_score_thresh=0.1", "generator.box_nms_thresh=0.97", "generate.images_per_shard=8",
    "trainer.accelerator=cpu",
]  # fmt: skip


def overrides(model: Path, source: Path, output: Path, run_dir: Path, *more: str) -> list[str]:
    given = [f"checkpoint={model}", f"generate.input={source}", f"generate.output={output}", f"run_dir={run_dir}"]
    return [*SETTINGS, *given, *more]


def run(run_dir: Path, given: list[str]) -> dict | None:
    """Runs a task in this process."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = tasks.resolve(compose("config", overrides=given))
    run_dir.mkdir(exist_ok=True)
    return tasks.run(config, run_dir)


def generate(model: Path, source: Path, output: Path, run_dir: Path, *more: str) -> dict | None:
    return run(run_dir, overrides(model, source, output, run_dir, *more))


def by_command(model: Path, source: Path, output: Path, run_dir: Path, *more: str) -> None:
    arguments = [sys.executable, "-m", "samtrain", *overrides(model, source, output, run_dir, *more)]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def shards(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(output.glob("*.tar"))}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Writes images; some are unusual and two cannot be read."""
    folder = write_images(tmp_path_factory.mktemp("source") / "in", IMAGES - 6)
    (folder / "broken.jpg").write_bytes(as_jpeg(shapes(100))[:200])
    (folder / "no image.png").write_bytes(b"nothing")
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer rotates it
    (folder / "turned.jpg").write_bytes(as_jpeg(shapes(101), exif=exif.tobytes()))
    exif[0x0112] = 3  # upside down, which does not change the sides
    (folder / "upside_down.jpg").write_bytes(as_jpeg(shapes(103), exif=exif.tobytes()))
    Image.fromarray(shapes(102)[..., 0]).save(folder / "grey.png")
    Image.fromarray((np.arange(4800).reshape(60, 80) * 13).astype(np.uint16)).save(folder / "deep.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(model: Path, source: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    by_command(model, source, folder / "out", folder / "run")
    return folder


def test_it_writes_valid_shards_a_manifest_and_a_report(undisturbed: Path, source: Path) -> None:
    output = undisturbed / "out"
    verdict = validate(str(output))
    assert verdict.is_sound, verdict.faults
    assert verdict.images == IMAGES - 2 and verdict.masks > IMAGES
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["images"], manifest["masks"]) == (verdict.images, verdict.masks)
    assert sorted(Path(name).name for name, _ in manifest["refused"]) == ["broken.jpg", "no image.png"]
    metrics = json.loads((undisturbed / "run" / "metrics.json").read_text())
    assert metrics["generated/masks"] == verdict.masks and metrics["generated/left_out"] == 2
    page = (undisturbed / "run" / "report.html").read_text()
    assert "Automatic masks" in page and "no image.png" in page and "Concavity" in page
    assert not (output / ".work").exists()


def test_the_stored_image_is_the_one_that_the_masks_were_made_of(undisturbed: Path, source: Path) -> None:
    """Also for readers that follow EXIF, and for those that do not."""
    found = {}
    for tar in sorted((undisturbed / "out").glob("*.tar")):
        index = index_tar(tar)
        for i in range(len(index)):
            record = read_record(index, i)
            found[record.annotation["image"]["source_name"]] = Image.open(io.BytesIO(record.image_bytes))
    for name in ("turned.jpg", "upside_down.jpg"):
        shown = decode_shown((source / name).read_bytes(), name)
        for seen in (found[name], ImageOps.exif_transpose(found[name])):
            assert np.array_equal(np.asarray(seen), shown), name


def test_other_programs_read_the_shards(undisturbed: Path) -> None:
    """webdataset and pycocotools read the shards, and they have the form that Meta's README describes."""
    names = []
    for path in sorted((undisturbed / "out").glob("*.tar")):
        for sample in webdataset.WebDataset(str(path), shardshuffle=False):
            content = json.loads(sample["json"])
            assert sample.get("jpg") or sample.get("png")
            names.append(sample["__key__"])
            assert content["image"]["file_name"].split(".")[0] == sample["__key__"]
            for each in content["annotations"]:
                mask = coco_mask.decode(each["segmentation"])
                assert mask.shape == (content["image"]["height"], content["image"]["width"])
                assert mask.sum() == each["area"]
        with tarfile.open(path) as tar:
            for name in (n for n in tar.getnames() if n.endswith(".json")):
                content = json.load(tar.extractfile(name))
                image = content["image"]
                assert isinstance(image["image_id"], int) and image["file_name"] in tar.getnames()
                with Image.open(tar.extractfile(image["file_name"])) as photo:
                    assert photo.size == (image["width"], image["height"])
                for each in content["annotations"]:
                    x, y, w, h = each["bbox"]
                    assert 0 <= x <= x + w < image["width"] and 0 <= y <= y + h < image["height"]
                    (px, py), = each["point_coords"]
                    assert 0 <= px <= image["width"] and 0 <= py <= image["height"]
                    assert 0 <= each["stability_score"] <= 1 and isinstance(each["predicted_iou"], float)
                    assert len(each["crop_box"]) == 4 and isinstance(each["id"], int)
    assert len(names) == len(set(names)) == IMAGES - 2


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "times"), [(1, 10), (2, 5)])
def test_many_kills_change_no_byte(
    model: Path, source: Path, undisturbed: Path, tmp_path: Path, workers: int, times: int
) -> None:
    """Kills the command and its workers by SIGKILL, at random moments of writing.

    The reference uses the same number of processes, because each has its share of the threads, and these decide how float32
    rounds.
    """
    output, rng = tmp_path / "out", random.Random(workers)
    alike = undisturbed / "out"
    if workers > 1:
        alike = tmp_path / "undisturbed"
        by_command(model, source, alike, tmp_path / "first", f"generate.num_workers={workers}")
    kills = 0
    while kills < times and not (output / "manifest.json").is_file():
        given = overrides(model, source, output, tmp_path / "run", f"generate.num_workers={workers}")
        arguments = [sys.executable, "-m", "samtrain", *given]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        finished = len(list(output.rglob("*.json")))
        # kill it after its first new file, within the time that one image takes
        deadline = time.monotonic() + 120
        while process.poll() is None and len(list(output.rglob("*.json"))) <= finished and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.08))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 0.8 * times
    by_command(model, source, output, tmp_path / "run", f"generate.num_workers={workers}")
    assert shards(output) == shards(alike)
    assert validate(str(output)).is_sound
    assert not list(output.rglob("*.tmp")) and not (output / ".work").exists()


def test_two_parts_share_the_work(model: Path, source: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Two parts, as two jobs of a SLURM array: the first logs that the other part is not finished.

    They run as commands like the reference, because the threads of a process decide how float32 rounds.
    """
    output = tmp_path / "out"
    by_command(model, source, output, tmp_path / "a", "generate.num_parts=2", "generate.part=0")
    assert "others are at work" in (tmp_path / "a" / "samtrain.log").read_text()
    assert not (output / "manifest.json").exists()
    by_command(model, source, output, tmp_path / "b", "generate.num_parts=2", "generate.part=1")
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
    assert metrics["generated/images"] == IMAGES - 2
    assert shards(output) == shards(undisturbed / "out")


def test_a_second_run_changes_nothing(model: Path, source: Path, undisturbed: Path, tmp_path: Path) -> None:
    output = undisturbed / "out"
    before = {path: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    generate(model, source, output, tmp_path / "again")
    assert {path: path.stat().st_mtime_ns for path in output.glob("*.tar")} == before
    with pytest.raises(ValueError, match="was begun with other settings"):
        generate(model, source, output, tmp_path / "other", "generator.points_per_side=4")
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled" / "x.tar").write_bytes(b"someone's")
    with pytest.raises(ValueError, match="holds tars"):
        generate(model, source, tmp_path / "filled", tmp_path / "third")


def test_the_release_form(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="needs OpenCV: pip install 'samtrain[release]'")
    photos = pytest.importorskip("skimage.data", reason="needs images: pip install scikit-image")
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(photos.astronaut()).save(folder / "astronaut.png")
    original = (folder / "astronaut.png").read_bytes()
    more = ("+generate/release=sa1b", "generate.release.short_side=256", "generator.crop_n_layers=1")
    generate(model, folder, tmp_path / "out", tmp_path / "run", *more)
    verdict = validate(str(tmp_path / "out"))
    assert verdict.is_sound and verdict.masks > 0, verdict.faults
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["blurred"]["faces"] >= 1
    with tarfile.open(tmp_path / "out" / "sa_000000.tar") as tar:
        with Image.open(tar.extractfile("sa_1.jpg")) as image:
            assert image.size == (256, 256) and not image.getexif()
        content = json.load(tar.extractfile("sa_1.json"))
    assert all(each["segmentation"]["size"] == [256, 256] for each in content["annotations"])
    assert (folder / "astronaut.png").read_bytes() == original
    assert "no guarantee of privacy" in (tmp_path / "run" / "report.html").read_text()


def test_a_training_reads_the_shards(undisturbed: Path, tmp_path: Path) -> None:
    """task=fit trains on the shards as they are."""
    output = undisturbed / "out"
    given = [
        "+experiment=sa1b", "data=sa1b", f"data.train.automatic.urls={output}", f"data.val={output}", "data.seen_images=allow",
        "model.name=vit_tiny",
        "scale.sa1b.steps=3", "scale.val_every_steps=3", "loader.max_val_masks=2", "trainer.accelerator=cpu",
        f"run_dir={tmp_path / 'fit'}",
    ]  # fmt: skip
    run(tmp_path / "fit", given)
    assert (tmp_path / "fit" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["generate.input=null"], "generate.input is null"),
        (["checkpoint=null"], "checkpoint is null"),
        (["generate.num_workers=0"], "generate.num_workers"),
        (["generate.part=3"], "generate.part"),
        (["generate.output=null", "generate.num_workers=2"], "generate.output"),
        (["generate.on_error=never"], "on_error"),
        (["generator.output_mode=binary_mask"], "coco_rle"),
        (["generate.truth=true"], "generate.truth=false"),
        (["generate.on_error=raise"], "generate.on_error=skip"),
        (["generator.points_per_side=null"], "points_per_side"),
    ],
)
def test_errors_name_the_key(model: Path, source: Path, tmp_path: Path, more: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        generate(model, source, tmp_path / "out", tmp_path / "run", *more)


# ---- against ground truth, audited, validated


def rectangle(top: int, left: int) -> np.ndarray:
    mask = np.zeros((60, 80), bool)
    mask[top : top + 20, left : left + 25] = True
    return mask


@pytest.fixture(scope="module")
def with_truth(tmp_path_factory) -> Path:
    """Writes a tar of six images with two objects each."""
    folder = tmp_path_factory.mktemp("truth") / "in"
    with ShardWriter(folder, "scene") as writer:
        for number in range(6):
            photo = shapes(number)
            masks = [rectangle(5, 10 + number), rectangle(35, 40)]
            for mask, colour in zip(masks, ((250, 20, 20), (20, 20, 250)), strict=True):
                photo[mask] = colour
            annotations = [{"id": i, "segmentation": encode_mask(mask)} for i, mask in enumerate(masks)]
            image = {"image_id": number, "width": 80, "height": 60}
            writer.write(f"scene_{number}", as_jpeg(photo), "jpg", {"image": image, "annotations": annotations})
    return folder


@pytest.fixture(scope="module")
def compared(model: Path, with_truth: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    generate(model, with_truth, folder / "out", folder / "run", "generate.truth=true")
    return folder


def test_recall_and_precision_are_in_the_metrics_and_the_report(compared: Path) -> None:
    metrics = json.loads((compared / "run" / "metrics.json").read_text())
    assert 0 <= metrics["generated/ar_100"] <= 1 and 0 <= metrics["generated/precision_50"] <= 1
    page = (compared / "run" / "report.html").read_text()
    assert "AR@100" in page and "lowest stability score kept" in page


def test_the_audit_agrees_with_counts_by_hand(compared: Path, with_truth: Path, tmp_path: Path) -> None:
    """The shares of simulated corrections follow from audit.jsonl; those of people from the corrected JSONs."""
    given = ["task=audit", f"audit.dataset={compared / 'out'}", "audit.min_iou=0.05", "audit.images=4"]
    metrics = run(tmp_path / "run", [*given, f"audit.truth={with_truth}", f"run_dir={tmp_path / 'run'}"])
    pairs = [json.loads(line) for line in (tmp_path / "run" / "audit.jsonl").read_text().splitlines()]
    assert len(pairs) == metrics["audit/pairs"] > 4 and len({pair["image"] for pair in pairs}) <= 4
    for level in (0.9, 0.75):
        assert metrics[f"audit/share_above_{100 * level:.0f}"] == sum(pair["iou"] > level for pair in pairs) / len(pairs)
    assert "97 %" in (tmp_path / "run" / "report.html").read_text()

    # corrections by people: the first mask of each image is unchanged, the others cover the whole image
    (tmp_path / "corrected").mkdir()
    expected = []
    with tarfile.open(compared / "out" / "sa_000000.tar") as tar:
        for name in (n for n in tar.getnames() if n.endswith(".json")):
            content = json.load(tar.extractfile(name))
            for number, each in enumerate(content["annotations"]):
                if number:
                    expected.append(each["area"] / 4800)
                    each["segmentation"] = encode_mask(np.ones((60, 80), bool))
                else:
                    expected.append(1.0)
            (tmp_path / "corrected" / name).write_text(json.dumps(content))
    given = ["task=audit", f"audit.dataset={compared / 'out'}", f"audit.corrected={tmp_path / 'corrected'}"]
    metrics = run(tmp_path / "people", [*given, f"run_dir={tmp_path / 'people'}"])
    assert metrics["audit/pairs"] == len(expected)
    assert metrics["audit/share_above_90"] == pytest.approx(np.mean(np.array(expected) > 0.9))
    assert metrics["audit/share_above_75"] == pytest.approx(np.mean(np.array(expected) > 0.75))
    assert metrics["audit/mean_iou"] == pytest.approx(np.mean(expected))


def test_an_invalid_dataset_is_exit_status_1(undisturbed: Path, tmp_path: Path) -> None:
    given = ["task=validate_dataset", f"validate.dataset={undisturbed / 'out'}", f"run_dir={tmp_path / 'run'}"]
    assert run(tmp_path / "run", given)["validation/faults"] == 0
    cut = tmp_path / "cut.tar"
    cut.write_bytes((undisturbed / "out" / "sa_000000.tar").read_bytes()[:9000])
    given = ["task=validate_dataset", f"validate.dataset={cut}", f"run_dir={tmp_path / 'cli'}"]
    arguments = [sys.executable, "-m", "samtrain", *given]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and str(cut) in ended.stdout + ended.stderr
    assert json.loads((tmp_path / "cli" / "validation.json").read_text())["sound"] is False


def test_no_masks_are_explained_by_the_thresholds(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_images(tmp_path / "in", 1)
    more = ["generator.pred_iou_thresh=0.99", "generator.stability_score_thresh=1.0", "generator.points_per_side=2"]
    metrics = generate(model, source, tmp_path / "out", tmp_path / "run", *more)
    assert metrics is not None and metrics["generated/masks"] == 0
    said = next(record.message for record in caplog.records if "No image got a mask" in record.message)
    assert "(generator.pred_iou_thresh is 0.99, generator.stability_score_thresh is 1). Lower the thresholds" in said


def test_a_changed_threshold_is_named_alone(model: Path, tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 1)
    generate(model, source, tmp_path / "out", tmp_path / "run")
    with pytest.raises(ValueError, match="was begun with other settings") as error:
        generate(model, source, tmp_path / "out", tmp_path / "run", "generator.pred_iou_thresh=0.5")
    lines = str(error.value).splitlines()
    assert len(lines) == 3 and lines[1] == "  generator.pred_iou_thresh: 0.0 before, 0.5 now"
