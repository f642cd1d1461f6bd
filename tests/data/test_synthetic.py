"""The synthetic scenes: how their masks are related, how hard they are, and that a set is made once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial as partial_
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from samtrain.data.difficulty import best_single_mask_miou, decoded_images, flood_fill_miou
from samtrain.data.scenes import CROWDED, SPARSE
from samtrain.data.scenes.shapes import REACH, SHAPES, draw_shape
from samtrain.data.scenes.synthetic import SPLITS as SPLITS_OF_SETS
from samtrain.data.scenes.synthetic import Scene, generate_scene, make_synthetic
from samtrain.data.shards import expand_urls, index_tar, read_record
from samtrain.files import digest

LAYOUTS = {"val": SPARSE, "crowded": CROWDED}
SPLITS = {"public": 3, "pool": 2, "val": 2, "test": 2}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [generate_scene(seed) for seed in range(60)]


def test_a_seed_determines_a_scene() -> None:
    first, again, other = generate_scene((3, 1)), generate_scene((3, 1)), generate_scene((3, 2))
    assert np.array_equal(first.image, again.image) and first.parents == again.parents
    assert all(np.array_equal(a, b) for a, b in zip(first.masks, again.masks, strict=True))
    assert not np.array_equal(first.image, other.image)


def test_a_part_is_inside_its_whole(scenes: list[Scene]) -> None:
    for scene in scenes:
        for mask, parent, level in zip(scene.masks, scene.parents, scene.levels, strict=True):
            assert level == (scene.levels[parent] + 1 if parent >= 0 else 0) <= 2
            if parent >= 0:
                assert not (mask & ~scene.masks[parent]).any()
                assert mask.sum() < 0.81 * scene.masks[parent].sum()


def test_objects_that_are_not_nested_share_no_pixel(scenes: list[Scene]) -> None:
    for scene in scenes:
        for parent in set(scene.parents):
            siblings = [mask for mask, p in zip(scene.masks, scene.parents, strict=True) if p == parent]
            assert np.sum(siblings, axis=0).max() <= 1


def test_sizes_counts_and_nesting_are_as_documented(scenes: list[Scene]) -> None:
    areas = [mask.sum() for scene in scenes for mask in scene.masks]
    nested = np.concatenate([scene.parents for scene in scenes]) >= 0
    assert min(areas) >= 400  # canvas.MIN_AREA
    assert 3.5 <= np.mean([len(scene.masks) for scene in scenes]) <= 6
    assert nested.mean() >= 0.40  # the issue: one click is ambiguous


def test_some_objects_are_partly_hidden(scenes: list[Scene]) -> None:
    """Masks that touch each other without being nested show an occlusion."""
    touching = 0
    for scene in scenes:
        wholes = [mask for mask, level in zip(scene.masks, scene.levels, strict=True) if level == 0]
        grown = [np.pad(m, 1)[2:, 1:-1] | np.pad(m, 1)[:-2, 1:-1] for m in wholes]
        touching += any((grown[i] & wholes[j]).any() for i in range(len(wholes)) for j in range(i))
    assert touching > len(scenes) / 3


@pytest.mark.parametrize("size", [(96, 160), (256, 256), (64, 64), (33, 200)])
def test_any_size(size: tuple[int, int]) -> None:
    scene = generate_scene(5, size)
    assert scene.image.shape == (*size, 3) and scene.image.dtype == np.uint8
    assert scene.masks and all(mask.shape == size and mask.any() for mask in scene.masks)
    smallest = 40 * (min(size) / 128) ** 2
    assert min(mask.sum() for mask in scene.masks) >= smallest


@pytest.mark.parametrize("kind", SHAPES)
def test_no_shape_exceeds_its_reach(kind: str) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-60:61, -60:61].astype(np.float32)
    for _ in range(20):
        inside = draw_shape(rng, kind, x, y, 20, angle=rng.uniform(0, 6), stretch=rng.uniform(1, 1.8)) < 0
        assert inside.any() and np.hypot(x, y)[inside].max() < REACH * 20


def test_neither_a_flood_fill_nor_one_mask_per_click_solves_the_scenes() -> None:
    """At the size of the embedded default, conf/scale/laptop.yaml."""
    for start in (0, 1000):
        scenes = [generate_scene(seed, (96, 96)) for seed in range(start, start + 60)]
        images = [(scene.image, scene.masks) for scene in scenes]
        assert flood_fill_miou(images) < 0.40  # the issue: at 0.40 the images are too easy
        assert 0.74 < best_single_mask_miou(images) < 0.86  # of clicks that say nothing about the level
        assert best_single_mask_miou(images, reach=4) > 0.9  # most centres lie apart: a model can know better


def test_flood_fill_solves_flat_colours() -> None:
    image, mask = np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), bool)
    mask[4:9, 5:15] = True
    image[mask] = 200
    assert flood_fill_miou([(image, [mask])]) == 1.0


def test_the_ceiling_of_one_mask() -> None:
    outer, inner, apart = np.zeros((3, 30, 30), bool)
    outer[2:14, 2:14], inner[5:11, 5:11], apart[20:25, 20:25] = True, True, True
    image = np.zeros((30, 30, 3), np.uint8)
    # concentric: either guess is right for one and 36 / 144 for the other
    assert best_single_mask_miou([(image, [outer, inner])]) == pytest.approx((1 + 0.25) / 2)
    assert best_single_mask_miou([(image, [outer, apart])]) == 1.0
    # off the centre: only the part's click is in doubt, and only for who cannot tell the two places apart
    corner = np.zeros((30, 30), bool)
    corner[2:8, 2:5] = True
    assert best_single_mask_miou([(image, [outer, corner])]) == pytest.approx((1 + (1 + 18 / 144) / 2) / 2)
    assert best_single_mask_miou([(image, [outer, corner])], reach=1) == 1.0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("set"), splits=SPLITS, size=(64, 64), seed=1, max_count=2)


def test_a_set_reads_back_as_scenes(prepared: Path) -> None:
    index = index_tar(expand_urls(prepared / "val")[0])
    assert len(index) == 2
    record = read_record(index, 1)
    scene = generate_scene((1, 2, 1), (64, 64))
    image, masks = next(decoded_images([record]))
    assert np.array_equal(image, scene.image) and np.array_equal(masks, scene.masks)
    ids = [each["id"] for each in record.annotation["annotations"]]
    for each, parent, level in zip(record.annotation["annotations"], scene.parents, scene.levels, strict=True):
        assert each["parent_id"] == (ids[parent] if parent >= 0 else -1) and each["level"] == level


def test_no_scene_is_in_two_splits(prepared: Path) -> None:
    images, ids = [], []
    for url in expand_urls([prepared / split for split in SPLITS]):
        index = index_tar(url)
        records = [read_record(index, i) for i in range(len(index))]
        images += [record.image_bytes for record in records]
        ids += [record.annotation["image"]["image_id"] for record in records]
    assert len(set(images)) == len(set(ids)) == len(images) == sum(SPLITS.values())


def test_the_same_parameters_make_nothing_again(prepared: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*.tar")}
    assert make_synthetic(prepared.parent, splits=SPLITS, size=(64, 64), seed=1, max_count=2) == prepared
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*.tar")} == before
    assert make_synthetic(prepared.parent, splits={"val": 1}, size=(64, 64), seed=2) != prepared


def test_an_interrupted_set_is_completed_and_equal(prepared: Path, tmp_path: Path) -> None:
    partial = tmp_path / f"{prepared.name}.partial" / "public"
    partial.mkdir(parents=True)
    (partial / "synthetic_000007.tar").write_bytes(b"left over")
    # three at a time, as the ranks of a run: one makes, the others find it made
    with ThreadPoolExecutor(3) as pool:
        submit = partial_(pool.submit, make_synthetic, tmp_path, splits=SPLITS, size=(64, 64), seed=1, max_count=2)
        jobs = [submit() for _ in range(3)]
        made = {job.result() for job in jobs}
    assert made == {tmp_path / prepared.name}
    assert _digests(tmp_path / prepared.name) == _digests(prepared)
    assert not list(tmp_path.glob("*.partial"))
    assert json.loads((prepared / "synthetic.json").read_text())["splits"] == SPLITS


def _digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): digest(path) for path in folder.rglob("*.tar")}


@pytest.mark.slow
def test_workers_change_nothing(prepared: Path, tmp_path: Path) -> None:
    made = make_synthetic(tmp_path, splits=SPLITS, size=(64, 64), seed=1, max_count=2, num_workers=1)
    assert _digests(made) == _digests(prepared)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"splits": {"train": 3}}, "data.splits has train: choose from"),
        ({"splits": {"pool": -1}}, "0 scenes or more"),
        ({"splits": {}}, "0 scenes or more"),
        ({"size": (8, 8)}, "at least 32"),
        ({"seed": -1}, "data.seed"),
    ],
)
def test_wrong_parameters_are_refused(tmp_path: Path, changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_synthetic(tmp_path, **{"splits": SPLITS, **changed})


def test_the_crowded_split_has_more_and_smaller_objects_apart_from_each_other(tmp_path: Path) -> None:
    folder = make_synthetic(tmp_path, splits={"val": 12, "crowded": 12}, size=(96, 96), seed=3)
    counts, areas, hidden = {}, {}, {}
    for split in ("val", "crowded"):
        index = index_tar(expand_urls(folder / split)[0])
        scenes = [generate_scene((3, SPLITS_OF_SETS.index(split), i), (96, 96), layout=LAYOUTS[split]) for i in range(12)]
        for i, (image, masks) in enumerate(decoded_images([read_record(index, i) for i in range(12)])):
            assert np.array_equal(image, scenes[i].image) and np.array_equal(masks, scenes[i].masks)
        counts[split] = np.mean([len(scene.masks) for scene in scenes])
        areas[split] = np.median([mask.sum() for scene in scenes for mask in scene.masks])
        hidden[split] = np.mean([_touch(scene) for scene in scenes])
    assert counts["crowded"] > 1.3 * counts["val"] and areas["crowded"] < 0.6 * areas["val"]
    assert hidden["crowded"] < 0.5


def _touch(scene: Scene) -> float:
    """Returns the share of the wholes that touch another one."""
    wholes = [mask for mask, level in zip(scene.masks, scene.levels, strict=True) if level == 0]
    grown = [binary_dilation(mask) for mask in wholes]
    return float(np.mean([any((a & b).any() for j, b in enumerate(grown) if j != i) for i, a in enumerate(grown)] or [0.0]))
