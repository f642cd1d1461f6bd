from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pretend_predictor import record_of
from torch.utils.data import DataLoader

from samtrain.data.datasets import SamDataset, Source, collate
from samtrain.data.order import EndlessBatchSampler
from samtrain.data.shards import ShardWriter, safe_key
from samtrain.data.transforms import LargeScaleJitter, NativeCrop, ResizeLongestSide
from samtrain.ops.rle import encode_mask

RESIZE = ResizeLongestSide(image_size=32)


def equal(one, two) -> bool:
    return bool((one.image == two.image).all()) and bool(torch.equal(one.masks, two.masks)) and one.key == two.key


def test_sample_of_a_record(tmp_path, write_set):
    write_set(tmp_path, n=5, max_count=2)
    dataset = SamDataset([tmp_path], RESIZE, max_masks=2)
    assert (len(dataset), dataset.shard_lengths, dataset.weights) == (5, [[2, 2, 1]], [1.0])
    sample = dataset[3]
    assert sample.key == "set_3" and (sample.image[:, :21] == 3).all()
    assert sample.image.shape == (3, 32, 32) and sample.image.dtype == torch.uint8
    assert sample.masks.shape == (2, 32, 32) and sample.masks.dtype == torch.bool
    assert (sample.input_size, sample.original_size) == ((21, 32), (40, 60))
    with pytest.raises(IndexError):
        dataset[5]


def test_a_sample_is_a_function_of_seed_epoch_and_index(tmp_path, write_set):
    write_set(tmp_path)
    for transform in (RESIZE, NativeCrop(image_size=16), LargeScaleJitter(image_size=32)):
        one, two = (SamDataset([tmp_path], transform, max_masks=2, seed=5) for _ in range(2))
        assert all(equal(one.get(e, i), two[e, i]) for e in (3, 0) for i in (4, 1))
        other = SamDataset([tmp_path], transform, max_masks=2, seed=6)
        draws = [one.get(e, 2) for e in range(8)]
        assert not all(equal(draw, draws[0]) for draw in draws)
        assert not all(equal(draw, other.get(e, 2)) for e, draw in enumerate(draws))


def test_a_source_has_its_own_transform(tmp_path, write_set):
    write_set(tmp_path / "a", n=2, max_count=1, prefix="a")
    write_set(tmp_path / "b", n=2, max_count=1, prefix="b")
    crop = NativeCrop(image_size=32)
    a, b = Source(str(tmp_path / "a")), Source(str(tmp_path / "b"))
    dataset = SamDataset([a, Source(b.urls, frame="native", transform=crop)], RESIZE)
    assert equal(dataset[1], SamDataset([a, b], RESIZE)[1])
    assert equal(dataset[3], SamDataset([a, b], crop)[3])
    assert (dataset[1].input_size, dataset[3].input_size) == ((21, 32), (32, 32))


def test_sources_and_weights(tmp_path, write_set):
    write_set(tmp_path / "a", n=2, prefix="a")
    write_set(tmp_path / "b", n=3, prefix="b")
    sources = [Source(str(tmp_path / "a")), {"urls": [f"{tmp_path}/b/*.tar"], "weight": 10}]
    dataset = SamDataset(sources, RESIZE)
    assert [dataset[i].key for i in range(5)] == ["a_0", "a_1", "b_0", "b_1", "b_2"]
    assert (dataset.shard_lengths, dataset.weights) == ([[2], [3]], [1.0, 10])
    with pytest.raises(ValueError, match="has the keys url: give urls, weight and frame"):
        SamDataset([{"url": "x"}], RESIZE)
    with pytest.raises(ValueError, match="has the frame 'tiles': give resize or native"):
        SamDataset([{"urls": f"{tmp_path}/b/*.tar", "frame": "tiles"}], RESIZE)
    with pytest.raises(ValueError, match="has to be streamed"):
        SamDataset(["https://host/a.tar"], RESIZE)


def test_last_counts_shows_only_the_last_record_of_an_image(tmp_path, write_set):
    """The first tar has set_0 to set_2, the second set_2 to set_4 with other numbers of objects."""
    write_set(tmp_path / "a", n=3)
    write_set(tmp_path / "b", n=5)
    kept = ShardWriter(tmp_path / "c", "later")
    for i in (4, 2, 3):
        record = SamDataset([tmp_path / "b"], RESIZE).record(i)
        kept.write(
            record.key,
            record.image_bytes,
            record.ext,
            record.annotation | {"annotations": record.annotation["annotations"][:1]},
        )
    kept.close()
    urls = [str(tmp_path / "a"), str(tmp_path / "c")]
    both = SamDataset([Source(urls)], RESIZE)
    assert [both[i].key for i in range(6)] == ["set_0", "set_1", "set_2", "set_4", "set_2", "set_3"]
    last = SamDataset([Source(urls, last_counts=True)], RESIZE)
    assert (last.shard_lengths, [last[i].key for i in range(5)]) == ([[2, 3]], ["set_0", "set_1", "set_4", "set_2", "set_3"])
    assert len(last.record(3).annotation["annotations"]) == 1
    # only within one source
    assert len(SamDataset([Source(urls[0], last_counts=True), Source(urls[1], last_counts=True)], RESIZE)) == 6


def test_the_cache_holds_images_up_to_its_size(tmp_path, write_set, monkeypatch):
    write_set(tmp_path)
    plain, held = SamDataset([tmp_path], RESIZE), SamDataset([tmp_path], RESIZE, cache_images=True, cache_bytes=3 * 40 * 60 * 3)
    assert all(equal(plain.get(e, i), held.get(e, i)) for e in range(2) for i in range(6))
    reads = []
    monkeypatch.setattr(SamDataset, "record", lambda self, index: reads.append(index) or pytest.fail("read again"))
    for i in range(3):
        held.get(5, i)
    assert not reads


def broken_set(folder, write_tar, making, **changes):
    """Writes ten records, with the image, the JSON or the first mask of number 4 broken."""
    size = (40, 60)
    members = []
    for i in range(10):
        annotation = making.annotate([making.rectangle(size, (2, 3, 22, 13))], size)
        image = making.encode_png(np.full((*size, 3), i, dtype=np.uint8))
        if i == 4:
            annotation["annotations"][0].update(changes.get("mask", {}))
            image = changes.get("image", image)
        text = json.dumps(annotation).encode()
        members.append((f"./sa_{i}.json", changes.get("json", text) if i == 4 else text))
        members.append((f"./sa_{i}.png", image))
    folder.mkdir(exist_ok=True)
    return write_tar(folder / "a.tar", [m for m in members if m[1] is not None])


EMPTY = {"segmentation": encode_mask(np.zeros((40, 60))), "area": 0}
BROKEN = {
    "cut image": ({"image": b"\x89PNG\r\n"}, "its image cannot be read"),
    "no JSON": ({"json": b"{oops"}, "its JSON cannot be parsed"),
    "wrong size": ({"mask": {"segmentation": encode_mask(np.ones((3, 3)))}}, r"annotation 0: RLE has size \(3, 3\)"),
    "no area": ({"mask": EMPTY}, "annotation 0: the mask is empty"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_record_is_named(tmp_path, write_tar, making, kind):
    changes, complaint = BROKEN[kind]
    path = broken_set(tmp_path / "set", write_tar, making, **changes)
    dataset = SamDataset([path], RESIZE)
    with pytest.raises(ValueError, match=rf"a\.tar, record sa_4: {complaint}.*on_error=skip"):
        dataset[4]
    assert dataset[5].key == "sa_5"


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_record_is_skipped_counted_and_logged_once(tmp_path, write_tar, making, kind, caplog):
    changes, complaint = BROKEN[kind]
    path = broken_set(tmp_path / "set", write_tar, making, **changes)
    dataset, again = (SamDataset([path], RESIZE, on_error="skip") for _ in range(2))
    keys = [dataset.get(epoch, 4).key for epoch in range(8)]
    assert "sa_4" not in keys and len(set(keys)) > 2, "another record each epoch"
    assert keys == [again.get(epoch, 4).key for epoch in range(8)], "the same one each time"
    assert dataset.num_skipped >= 8
    assert caplog.text.count("record sa_4") == 2, "once for each of the two datasets"


def test_a_missing_image_and_a_cut_tar(tmp_path, write_tar, making, caplog):
    path = broken_set(tmp_path / "set", write_tar, making, image=None)
    with pytest.raises(ValueError, match=r"a\.tar: record sa_4 has no image"):
        SamDataset([path], RESIZE)
    dataset = SamDataset([path], RESIZE, on_error="skip")
    assert (len(dataset), dataset.num_skipped) == (9, 1)
    path.write_bytes(path.read_bytes()[:8000])
    with pytest.raises(ValueError, match=r"a\.tar: this tar is cut"):
        SamDataset([path], RESIZE)
    assert 0 < len(SamDataset([path], RESIZE, on_error="skip")) < 9


def test_a_set_of_broken_records_ends_in_an_error(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("a.png", b"no"), ("a.json", b"no")])
    with pytest.raises(ValueError, match="records in a row cannot be read or hold no object, the last one .*record a"):
        SamDataset([path], RESIZE, on_error="skip")[0]
    write_tar(path, [("a.png", b"no")])
    with pytest.raises(ValueError, match="hold no complete records"):
        SamDataset([path], RESIZE, on_error="skip")


def test_collate(tmp_path, write_set):
    write_set(tmp_path)
    dataset = SamDataset([tmp_path], RESIZE, max_masks=3)
    none = dataset[1]
    none.masks = none.masks[:0]
    batch = collate([dataset[0], none, dataset[2]])
    assert batch.images.shape == (3, 3, 32, 32) and batch.masks.shape == (6, 32, 32)
    assert batch.image_index.tolist() == [0, 0, 0, 2, 2, 2]
    assert batch.weights.tolist() == [1] * 6
    assert batch.input_sizes.tolist() == [[21, 32]] * 3 and batch.original_sizes.tolist() == [[40, 60]] * 3
    assert batch.keys == ["set_0", "set_1", "set_2"]
    assert batch.valid().sum() == 3 * 21 * 32


def test_a_batch_without_objects_gets_an_empty_one_of_weight_0(tmp_path, write_set):
    write_set(tmp_path)
    sample = SamDataset([tmp_path], RESIZE)[0]
    sample.masks = sample.masks[:0]
    batch = collate([sample, sample])
    assert (batch.masks.shape, batch.masks.sum(), batch.weights.tolist()) == ((1, 32, 32), 0, [0])
    assert batch.image_index.tolist() == [0]


def test_the_number_of_workers_changes_nothing(tmp_path, write_set):
    write_set(tmp_path, n=7, max_count=3)
    batches = []
    for workers in (0, 2):
        dataset = SamDataset([tmp_path], LargeScaleJitter(image_size=32), max_masks=2)
        order = EndlessBatchSampler(shard_lengths=dataset.shard_lengths, batch_size=3, seed=1)
        loader = iter(DataLoader(dataset, batch_sampler=order, collate_fn=collate, num_workers=workers))
        batches.append([next(loader) for _ in range(5)])
    for one, two in zip(*batches, strict=True):
        assert one.keys == two.keys and torch.equal(one.images, two.images) and torch.equal(one.masks, two.masks)


def test_skips_are_counted_over_all_workers(tmp_path, write_tar, making):
    path = broken_set(tmp_path / "set", write_tar, making, json=b"no")
    dataset = SamDataset([path], RESIZE, on_error="skip")
    for _ in DataLoader(dataset, batch_size=2, collate_fn=collate, num_workers=2):
        pass
    assert dataset.num_skipped == 1


def test_real_images_in_batches(tmp_path, shared_data):
    """Nuclei in grey and in colour, as native crops that each contain an object."""
    with ShardWriter(tmp_path, "nuclei") as writer:
        for path in sorted((shared_data / "dsb2018-cc0" / "images").glob("*.json"))[:8]:
            image = path.with_suffix(".png").read_bytes()
            writer.write(safe_key(path.stem), image, "png", json.loads(path.read_text()))
    dataset = SamDataset([tmp_path], NativeCrop(image_size=128), max_masks=16)
    batch = collate([dataset.get(epoch, index) for epoch in range(2) for index in range(8)])
    assert set(batch.image_index.tolist()) == set(range(16))
    assert (batch.masks.sum((1, 2)) > 0).all() and len(batch.masks) > 50
    assert not (batch.masks & ~batch.valid()[batch.image_index]).any()


def test_images_without_objects_are_replaced_and_counted(tmp_path):
    """The rule is the same for tars as for prepared folders: only with empty_images=True they are trained on."""
    with ShardWriter(tmp_path, "s") as writer:
        for number in range(6):
            data, ext, annotation = record_of(number, 2)
            writer.write(f"r{number}", data, ext, {**annotation, "annotations": annotation["annotations"] if number else []})
    without = SamDataset([tmp_path], RESIZE, empty_images=False)
    keys = [without.get(0, index).key for index in range(6)]
    assert keys[1:] == [f"r{n}" for n in range(1, 6)] and keys[0] in keys[1:] and without.num_empty >= 1
    assert without.get(0, 0).key == keys[0]  # always the same one
    kept = SamDataset([tmp_path], RESIZE)
    assert kept.get(0, 0).key == "r0" and len(kept.get(0, 0).masks) == 0 and kept.num_empty == 0
