"""Masks into the store and out of it: round trips through every form, and exports that stay in their folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samtrain.annotator.store import NewImage, NewMask, Store, open_store
from samtrain.annotator.transfer import FORMATS, coco_text, export_store, import_masks, import_shards
from samtrain.data.image_set import records
from samtrain.data.prepare.config import PrepareConfig
from samtrain.data.validate import validate
from samtrain.ops.rle import decode_rle, encode_mask

SIZE = (40, 60)


@pytest.fixture
def opened(tmp_path: Path):
    """A new, empty SQLite store: the forms do not depend on the database."""
    stores = []

    def make(name: str = "a") -> Store:
        stores.append(open_store(str(tmp_path / f"{name}.db")))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def masks_of(seed: int) -> list[np.ndarray]:
    """Two masks that do not overlap: a ring, and pixels with holes; and one beside them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    ring = (np.hypot(y - 20, x - 15) < 12) & (np.hypot(y - 20, x - 15) > 5)
    noisy = (rng.random(SIZE) < 0.7) & (x > 30) & (y < 20)
    return [ring, noisy, (x > 30) & (y > 25)]


@pytest.fixture
def filled(opened, tmp_path: Path) -> Store:
    """A store with three images, in folders, of which one has no masks, and one is not finished."""
    store = opened("filled")
    folder = tmp_path / "images"
    for number, name in enumerate(("one.png", "below/two.png", "three.png")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        (row,) = store.add_images([NewImage(key=str(path), name=name, source=str(path), width=SIZE[1], height=SIZE[0])])
        for place, mask in enumerate(masks_of(number) if number < 2 else []):
            scores = {"predicted_iou": 0.9, "stability_score": 0.95} if place else {}
            store.accept(
                row.id, "ann",
                NewMask(
                    segmentation=encode_mask(mask), seconds=2.5, label="cell" if place == 1 else None,
                    point_coords=[[4.0, 5.0]], point_labels=[1], **scores,
                ),
            )  # fmt: skip
        gone = store.accept(row.id, "ann", NewMask(segmentation=encode_mask(np.ones(SIZE, dtype=bool))))
        store.delete(gone.id, "ann")
        if number != 1:
            store.finish(row.id, "ann")
    return store


def contents(store: Store) -> dict[str, list[np.ndarray]]:
    """The accepted masks by the image's file name without its folder."""
    return {Path(row.name).stem: [decode_rle(m.segmentation) for m in store.masks(row.id)] for row in store.images()}


def assert_same(found: dict[str, list[np.ndarray]], wanted: dict[str, list[np.ndarray]]) -> None:
    assert {key: len(masks) for key, masks in found.items()} == {key: len(masks) for key, masks in wanted.items()}
    for key, masks in wanted.items():
        for a, b in zip(found[key], masks, strict=True):
            np.testing.assert_array_equal(a, b)


WANTED = {"one": masks_of(0), "two": masks_of(1), "three": []}


@pytest.mark.parametrize("form", ["coco", "coco_polygons"])
def test_coco_comes_back_mask_by_mask(filled: Store, opened, tmp_path: Path, form: str) -> None:
    (exported,) = export_store(filled, tmp_path / "out", [form])
    assert (exported.images, exported.masks) == (3, 6)
    content = json.loads(exported.path.read_text())
    assert [each["name"] for each in content["categories"]] == ["object", "cell"]
    again = opened("again")
    found = import_masks(again, PrepareConfig(root=str(tmp_path / "images"), annotations=str(exported.path)))
    assert (found.images, found.masks, dict(found.refused)) == (3, 6, {})
    assert_same(contents(again), WANTED)
    assert sorted(m.label or "" for row in again.images() for m in again.masks(row.id)).count("cell") == 2


def test_sa1b_comes_back_with_its_scores(filled: Store, opened, tmp_path: Path) -> None:
    (exported,) = export_store(filled, tmp_path / "out", ["sa1b"])
    assert sorted(path.name for path in exported.path.iterdir()) == [
        ".exported_by_samtrain", "below__two.json", "below__two.png", "one.json", "one.png", "three.json", "three.png",
    ]  # fmt: skip
    again = opened("again")
    import_masks(again, PrepareConfig(root=str(exported.path)))
    assert_same({key.removeprefix("below__"): masks for key, masks in contents(again).items()}, WANTED)
    (before, after) = (store.masks(next(r.id for r in store.images() if r.name == "one.png")) for store in (filled, again))
    for a, b in zip(before, after, strict=True):
        assert (b.predicted_iou, b.stability_score, b.label) == (a.predicted_iou, a.stability_score, a.label)
        assert (b.point_coords, b.point_labels, b.object_id, b.origin) == (a.point_coords, a.point_labels, a.id, "imported")
        assert b.source == "assisted"


def test_shards_come_back_and_are_sound(filled: Store, opened, tmp_path: Path) -> None:
    (exported,) = export_store(filled, tmp_path / "out", ["shards"])
    found = list(records([str(path) for path in sorted(exported.path.glob("*.tar"))]))
    assert [record.key for record in found] == ["one", "below__two", "three"]
    assert found[0].image_bytes == (tmp_path / "images" / "one.png").read_bytes(), "images are stored byte by byte"
    faults = [fault for fault in validate(str(exported.path)).faults if not fault.of_stage_3]
    assert [str(fault) for fault in faults if "predicted_iou" not in fault.detail] == []
    again = opened("again")
    assert import_shards(again, str(exported.path)).masks == 6
    assert import_shards(again, str(exported.path)).images == 3, "importing again adds nothing"
    assert_same({key.removeprefix("below__"): masks for key, masks in contents(again).items()}, WANTED)


def test_label_maps_come_back(filled: Store, opened, tmp_path: Path) -> None:
    (exported,) = export_store(filled, tmp_path / "images" / "out", ["label_maps"])
    assert exported.overlapping_masks == 0
    with Image.open(exported.path / "one.png") as image:
        labels = np.asarray(image)
        assert labels.dtype == np.uint16 or image.mode.startswith("I")
    for number, mask in enumerate(masks_of(0), start=1):
        np.testing.assert_array_equal(labels == number, mask)
    again = opened("again")
    config = PrepareConfig(root=str(tmp_path / "images"), form="label_maps", masks="out/label_maps")
    assert import_masks(again, config).masks == 6
    assert_same(contents(again), WANTED)


def test_overlapping_masks_are_counted_in_label_maps(opened, tmp_path: Path) -> None:
    store = opened()
    path = tmp_path / "a.png"
    Image.new("RGB", (10, 10)).save(path)
    (row,) = store.add_images([NewImage(key="a", name="a.png", source=str(path), width=10, height=10)])
    for side in (2, 8, 2):  # the second small one hides the first
        mask = np.zeros((10, 10), dtype=bool)
        mask[:side, :side] = True
        store.accept(row.id, "ann", NewMask(segmentation=encode_mask(mask)))
    (exported,) = export_store(store, tmp_path / "out", ["label_maps"])
    assert (exported.overlapping_masks, exported.overlapping_pixels, exported.hidden_masks) == (2, 8, 1)
    assert "2 masks lost 8 pixels" in str(exported)
    with Image.open(tmp_path / "out" / "label_maps" / "a.png") as image:
        assert np.bincount(np.asarray(image).ravel()).tolist() == [36, 0, 60, 4]


def test_equal_stores_give_equal_bytes_and_an_export_replaces_the_earlier_one(filled: Store, tmp_path: Path) -> None:
    def files() -> dict[str, bytes]:
        return {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}

    export_store(filled, tmp_path / "out", list(FORMATS))
    first = files()
    export_store(filled, tmp_path / "out", list(FORMATS))
    assert files() == first
    assert json.loads(coco_text(filled)) == json.loads(first["coco.json"])
    row = filled.images()[0]
    filled.delete(filled.masks(row.id)[0].id, "ann")
    export_store(filled, tmp_path / "out", ["shards"])
    assert files()["shards/annotated_000000.tar"] != first["shards/annotated_000000.tar"]


def test_an_export_that_fails_leaves_the_earlier_one(filled: Store, tmp_path: Path) -> None:
    export_store(filled, tmp_path / "out", ["sa1b"])
    before = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    (tmp_path / "images" / "three.png").unlink()
    with pytest.raises(ValueError, match="image three.png cannot be exported.*put its file .*three.png back"):
        export_store(filled, tmp_path / "out", ["sa1b"])
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == before
    # what no export has written is never replaced
    for name, form in (("shards/mine.tar", "shards"), ("label_maps/mine.png", "label_maps"), ("coco.json", "coco")):
        mine = tmp_path / "other" / name
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text("{}")
        with pytest.raises(ValueError, match="was not written by an export: give annotate.output another folder"):
            export_store(filled, tmp_path / "other", [form])
        assert mine.read_text() == "{}"
    with pytest.raises(ValueError, match="annotate.export holds voc: choose from coco"):
        export_store(filled, tmp_path / "out", ["voc"])


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/etc/evil.png", "a\\..\\evil.png", "..", ".", "/", "é ü.png", "x" * 300, "a\nb.png"]
)
def test_no_name_leads_out_of_the_folder(opened, tmp_path: Path, name: str) -> None:
    store = opened()
    path = tmp_path / "source.png"
    Image.new("RGB", (8, 6)).save(path)
    other = NewImage(key="other", name=name.upper(), source=str(path), width=8, height=6)
    for image in (NewImage(key="k", name=name, source=str(path), width=8, height=6), other):
        (row,) = store.add_images([image])
        store.accept(row.id, "ann", NewMask(segmentation=encode_mask(np.ones((6, 8), dtype=bool))))
    before = {each for each in tmp_path.rglob("*") if "out" not in each.parts}
    out = tmp_path / "deep" / "er" / "out"
    export_store(store, out, list(FORMATS))
    assert len(list((out / "label_maps").rglob("*.png"))) == 2, "two images share a file"
    assert len(list((out / "sa1b").glob("[!.]*"))) == 4
    made = {each for each in tmp_path.rglob("*")} - before
    assert all(out in each.parents or each in (out, *out.parents) for each in made)


def test_what_cannot_be_imported_is_counted(opened, tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "b.png")
    good = encode_mask(np.ones((6, 8), dtype=bool))
    objects = [{"id": 7, "segmentation": good}, {"id": 8, "segmentation": {"size": [3, 3], "counts": "09"}}]
    (tmp_path / "a.json").write_text(json.dumps({"image": {"width": 8, "height": 6}, "annotations": objects}))
    store = opened()
    found = import_masks(store, PrepareConfig(root=str(tmp_path)))
    assert (found.images, found.masks) == (1, 1)
    assert dict(found.refused) == {"RLE of the wrong size": 1, "no JSON beside the image": 1}
    assert "1 images with 1 masks" in str(found)
    (row,) = store.images()
    assert store.masks(row.id)[0].object_id == 7
    with pytest.raises(ValueError, match="no JSON beside the image.*data.strict=false"):
        import_masks(store, PrepareConfig(root=str(tmp_path), strict=True))


def test_ids_that_are_text_and_odd_scores_are_imported(opened, write_tar, tmp_path: Path, making) -> None:
    annotation = making.annotate([making.rectangle((6, 8), (0, 0, 3, 3))], (6, 8))
    annotation["annotations"][0] |= {"id": "cell-1", "predicted_iou": None, "point_coords": [["x", 1]]}
    members = [("a.png", making.encode_png(np.zeros((6, 8, 3), np.uint8))), ("a.json", json.dumps(annotation).encode())]
    store = opened()
    import_shards(store, str(write_tar(tmp_path / "a.tar", members)))
    (mask,) = store.masks(store.images()[0].id)
    assert mask.object_id is None and mask.story == [{"id": "cell-1"}] and mask.point_coords == []
    with pytest.raises(ValueError, match="has the key 'a', which"):
        import_shards(store, str(write_tar(tmp_path / "b.tar", members)))
    with pytest.raises(ValueError, match="copy the tars to a disk"):
        import_shards(store, "https://example.org/a.tar")
