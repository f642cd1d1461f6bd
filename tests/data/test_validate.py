"""A valid set passes, and each of many faults is named with its file and record."""

from __future__ import annotations

import copy
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samtrain.data.prepare.importers import PrepareConfig, prepare
from samtrain.data.shards import ShardWriter
from samtrain.data.validate import validate
from samtrain.ops.rle import encode_mask
from tests.data_engine.automatic.images import as_jpeg, shapes

SIZE = (60, 80)


def annotation(identity: int, top: int, left: int) -> dict[str, Any]:
    mask = np.zeros(SIZE, bool)
    mask[top : top + 10, left : left + 20] = True
    return {
        "id": identity, "segmentation": encode_mask(mask), "area": 200, "bbox": [left, top, 19, 9], "predicted_iou": 0.9,
        "stability_score": 0.97, "point_coords": [[left + 1.5, top + 2.5]], "crop_box": [0, 0, 80, 60],
    }  # fmt: skip


def record(number: int) -> tuple[dict[str, Any], bytes]:
    image = {"image_id": number, "width": 80, "height": 60, "file_name": f"sa_{number}.jpg"}
    content = {"image": image, "annotations": [annotation(100 * number + i, 5 * i, 7 * i) for i in range(3)]}
    return content, as_jpeg(shapes(number))


def write_folder(folder: Path, change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
    """Writes three records, with a change to the second."""
    folder.mkdir()
    for number in (1, 2, 3):
        content, image = record(number)
        if number == 2 and change is not None:
            content = change(content) or content
        (folder / f"sa_{number}.jpg").write_bytes(image)
        (folder / f"sa_{number}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def as_tar(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, arcname=file.name)
    return path


def test_valid_sets_have_no_faults(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    for dataset in (folder, as_tar(folder, tmp_path / "sa.tar")):
        verdict = validate(str(dataset))
        assert verdict.is_sound and (verdict.images, verdict.masks) == (3, 9) and not verdict.notes


def test_boxes_of_both_conventions(tmp_path: Path) -> None:
    def coco(content):
        for each in content["annotations"]:
            each["bbox"] = [each["bbox"][0], each["bbox"][1], 20, 10]

    assert validate(str(write_folder(tmp_path / "in", coco))).is_sound


def at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Returns a function that sets a value; in annotations, that of the second one."""

    def change(content: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        node = content["annotations"][1] if parents[0] == "mask" else content[parents[0]]
        for key in parents[1:]:
            node = node[key]
        if value is KeyError:
            del node[last]
        else:
            node[last] = value

    return change


def without_scores(content: dict[str, Any]) -> None:
    for each in content["annotations"]:
        for key in ("predicted_iou", "stability_score", "point_coords", "crop_box"):
            del each[key]


FAULTS = {
    "no JSON at all": (lambda content: "not json", "cannot be read", None),
    "another form": (lambda content: json.dumps([1]), "cannot be read", None),
    "no size": (at("image.width", KeyError), "cannot be read", None),
    "another size": (at("image.width", 81), "does not fit its JSON", None),
    "image_id": (at("image.image_id", "two"), "image_id is not an integer of 0 or more", None),
    "image_id is a list": (at("image.image_id", [2]), "image_id is not an integer of 0 or more", None),
    "file_name": (at("image.file_name", "sa_7.jpg"), "file_name is that of another file", None),
    "no scores": (without_scores, "keys are missing", None),
    "keys": (at("mask.crop_box", KeyError), "keys are missing", 201),
    "id": (at("mask.id", "x"), "id is not an integer of 0 or more", "x"),
    "RLE of another size": (at("mask.segmentation.size", [80, 60]), "RLE does not fit", 201),
    "RLE too short": (at("mask.segmentation.counts", "0"), "RLE does not fit", 201),
    "RLE is garbage": (at("mask.segmentation.counts", "\x7f\x01"), "RLE does not fit", 201),
    "RLE is none": (at("mask.segmentation", 5), "RLE does not fit", 201),
    "empty mask": (at("mask.segmentation", encode_mask(np.zeros(SIZE, bool))), "the mask is empty", 201),
    "area": (at("mask.area", 199), "area does not fit the mask", 201),
    "box": (at("mask.bbox", [7, 5, 19, 12]), "bbox does not fit the mask", 201),
    "box of words": (at("mask.bbox", "7 5 19 9"), "bbox does not fit the mask", 201),
    "predicted_iou": (at("mask.predicted_iou", 17.0), "predicted_iou is out of range", 201),
    "predicted_iou is none": (at("mask.predicted_iou", None), "predicted_iou is out of range", 201),
    "stability_score": (at("mask.stability_score", 1.2), "stability_score is out of range", 201),
    "crop_box": (at("mask.crop_box", [0, 0, 81, 60]), "crop_box is not inside the image", 201),
    "point": (at("mask.point_coords", [[99.0, 1.0]]), "point_coords are not inside the crop", 201),
    "no point": (at("mask.point_coords", []), "point_coords are not inside the crop", 201),
    "id twice in an image": (at("mask.id", 200), "another mask has the same id", 200),
    "id twice in the set": (at("mask.id", 100), "another mask has the same id", 100),
    "image_id twice": (at("image.image_id", 1), "another image has the same image_id", None),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named(tmp_path: Path, name: str) -> None:
    change, kind, identity = FAULTS[name]
    folder = write_folder(tmp_path / "in", change)
    for dataset in (folder, as_tar(folder, tmp_path / "sa.tar")):
        verdict = validate(str(dataset))
        assert not verdict.is_sound
        found = [fault for fault in verdict.faults if kind in fault.kind]
        assert found, verdict.faults
        assert "sa_2" in str(found[0]) and str(dataset) in str(found[0])
        if identity is not None:
            assert f"annotation {identity}" in str(found[0])
        others = {fault.kind for fault in verdict.faults} - {found[0].kind}
        assert not others or name == "another size", others  # one fault, one message; masks are of the size, too


def test_what_prepare_writes_is_sound(tmp_path: Path) -> None:
    """Masks of people have no scores; ids are given per image, and copies bring an image_id twice."""

    def bare(folder: Path) -> None:
        for path in folder.glob("*.json"):
            content = json.loads(path.read_text())
            without_scores(content)
            for number, each in enumerate(content["annotations"]):
                each["id"] = number
            path.write_text(json.dumps(content))

    for day in ("day1", "day2"):
        (tmp_path / "in").mkdir(exist_ok=True)
        bare(write_folder(tmp_path / "in" / day))
    prepared = prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "in")))
    for dataset in (prepared, f"{prepared}/*"):
        verdict = validate(str(dataset))
        assert verdict.is_sound and (verdict.images, verdict.masks) == (6, 18), verdict.faults
        assert any("for masks of stage 3 alone" in note.kind for note in verdict.notes)


def test_ids_twice_in_one_image_are_a_fault_without_scores_too(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        without_scores(content)
        content["annotations"][1]["id"] = content["annotations"][0]["id"]
        path.write_text(json.dumps(content))
    assert validate(str(folder)).counts() == {"another mask has the same id": 3}


def test_the_same_mask_twice(tmp_path: Path) -> None:
    def twice(content):
        content["annotations"].append({**copy.deepcopy(content["annotations"][0]), "id": 299})

    verdict = validate(str(write_folder(tmp_path / "in", twice)))
    assert list(verdict.counts()) == ["the same mask twice in an image"] and "annotation 299" in str(verdict.faults[0])


def test_incomplete_pairs(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    (folder / "sa_1.json").unlink()
    (folder / "sa_3.jpg").unlink()
    verdict = validate(str(folder))
    assert [str(f).split("/")[-1].split(":")[0] for f in verdict.faults] == ["sa_1.jpg", "sa_3.json"]
    verdict = validate(str(as_tar(folder, tmp_path / "sa.tar")))
    assert verdict.counts() == {"the tar is damaged": 2} and "sa_1" in str(verdict.faults) and "sa_3" in str(verdict.faults)


def test_a_cut_tar(tmp_path: Path) -> None:
    path = as_tar(write_folder(tmp_path / "in"), tmp_path / "sa.tar")
    path.write_bytes(path.read_bytes()[:7000])
    verdict = validate(str(path))
    assert not verdict.is_sound and "cut" in str(verdict.faults[0]) and str(path) in str(verdict.faults[0])


def test_a_broken_image(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    (folder / "sa_2.jpg").write_bytes((folder / "sa_2.jpg").read_bytes()[:300])
    verdict = validate(str(folder))
    assert verdict.counts() == {"the image does not fit its JSON": 1} and "sa_2" in str(verdict.faults[0])


def test_one_image_under_two_names_is_a_note(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    (folder / "sa_2.jpg").write_bytes((folder / "sa_1.jpg").read_bytes())
    verdict = validate(str(folder))
    assert verdict.is_sound and len(verdict.notes) == 1 and "sa_2" in str(verdict.notes[0])


def test_a_name_in_two_tars_is_a_fault(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    as_tar(folder, tmp_path / "a.tar"), as_tar(folder, tmp_path / "b.tar")
    counts = validate(str(tmp_path / "*.tar")).counts()
    assert counts["another image has the same name"] == 3 and counts["another mask has the same id"] == 9


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a folder with tars"):
        validate(str(tmp_path))


def test_our_own_shards(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "sa") as writer:
        for number in (1, 2, 3):
            content, image = record(number)
            writer.write(f"sa_{number}", image, "jpg", content)
    assert validate(str(tmp_path)).is_sound
