"""Shards have the same bytes for any order of the work and after any interruption."""

from __future__ import annotations

import json
import random
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
import webdataset

from samtrain.data.shards import index_tar, read_record
from samtrain.data_engine.automatic import fragments as module
from samtrain.data_engine.automatic.fragments import Fragments


def outcome(number: int) -> dict:
    return {"statistics": {"images": 1, "masks": number}}


def members(number: int) -> dict:
    content = {"image": {"width": 1, "height": 1, "image_id": number}, "annotations": []}
    return {"__key__": f"sa_{number}", "jpg": bytes([number]) * (number + 1), "json": json.dumps(content).encode()}


def begun(output: Path, num_images: int, per_shard: int) -> Fragments:
    fragments = Fragments(output, num_images, per_shard)
    fragments.begin({"by": "test"})
    return fragments


def finish(fragments: Fragments, numbers: list[int], refused: tuple[int, ...] = ()) -> None:
    for number in numbers:
        if number in refused:
            fragments.save(number, None, {"refused": [[f"image {number}", "broken"]]})
        else:
            fragments.save(number, members(number), outcome(number))
        fragments.close_shard(fragments.shard_of(number))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".fragments.lock"}


def test_any_order_gives_the_same_bytes(tmp_path: Path) -> None:
    reference = begun(tmp_path / "reference", 11, 4)
    finish(reference, list(range(11)))
    total = reference.close_all({"by": "test"})
    assert total["images"] == 11 and total["masks"] == sum(range(11)) and total["by"] == "test"
    assert sorted(content(tmp_path / "reference")) == ["manifest.json", "sa_000000.tar", "sa_000001.tar", "sa_000002.tar"]
    for seed in range(5):
        order = list(range(11))
        random.Random(seed).shuffle(order)
        fragments = begun(tmp_path / str(seed), 11, 4)
        finish(fragments, order)
        fragments.close_all({"by": "test"})
        assert content(tmp_path / str(seed)) == content(tmp_path / "reference")


def test_shards_are_tars_that_other_programs_read(tmp_path: Path) -> None:
    fragments = begun(tmp_path, 3, 10)
    finish(fragments, [0, 1, 2])
    fragments.close_all({"by": "test"})
    path = tmp_path / "sa_000000.tar"
    with tarfile.open(path) as tar:
        assert tar.getnames() == [f"sa_{i}.{ext}" for i in range(3) for ext in ("jpg", "json")]
    assert [r["__key__"] for r in webdataset.WebDataset(str(path), shardshuffle=False)] == ["sa_0", "sa_1", "sa_2"]
    assert path.stat().st_size % tarfile.RECORDSIZE == 0
    index = index_tar(path)
    assert not index.problems and read_record(index, 2).image_bytes == bytes([2]) * 3


def test_refused_images_are_listed_and_leave_no_hole(tmp_path: Path) -> None:
    fragments = begun(tmp_path, 6, 2)
    finish(fragments, list(range(6)), refused=(1, 2, 3))
    total = fragments.close_all({"by": "test"})
    assert total["refused"] == [[f"image {i}", "broken"] for i in (1, 2, 3)] and total["images"] == 3
    # all images of the second shard were refused
    assert sorted(content(tmp_path)) == ["manifest.json", "sa_000000.tar", "sa_000002.tar"]


def test_unfinished_images_are_known(tmp_path: Path) -> None:
    fragments = begun(tmp_path, 5, 2)
    finish(fragments, [0, 1, 4])
    assert [fragments.is_finished(n) for n in range(5)] == [True, True, False, False, True]
    assert fragments.close_all({"by": "test"}) is None and not (tmp_path / "manifest.json").exists()
    assert fragments.so_far()["images"] == 3
    finish(fragments, [2, 3])
    assert fragments.close_all({"by": "test"})["images"] == 5


class Killed(BaseException):
    pass


@pytest.mark.parametrize("chosen", [1, 2, 3])
@pytest.mark.parametrize(
    ("folder", "suffix"),
    [("images", ".tar"), ("images", ".json"), ("shards", ".json"), ("cut", ".tar"), ("cut", ".json")],
    ids=["piece", "outcome", "summary", "shard", "manifest"],
)
def test_an_interruption_between_any_two_writes(tmp_path: Path, monkeypatch, folder: str, suffix: str, chosen: int) -> None:
    """The process ends before the n-th file of a kind gets its name; the next process resumes."""
    left = [chosen]

    def dying(real):
        def instead(path, *arguments):
            left[0] -= Path(path).parent.name == folder and Path(path).suffix == suffix
            if left[0] == 0:
                left[0] = -1
                raise Killed
            return real(path, *arguments)

        return instead

    reference = begun(tmp_path / "reference", 4, 2)
    finish(reference, list(range(4)))
    reference.close_all({"by": "test"})
    with monkeypatch.context() as patch, suppress(Killed):
        for name in ("atomic_path", "write_bytes", "write_text"):
            patch.setattr(module, name, dying(getattr(module, name)))
        fragments = begun(tmp_path / "cut", 4, 2)
        finish(fragments, list(range(4)))
        fragments.close_all({"by": "test"})

    again = begun(tmp_path / "cut", 4, 2)
    finish(again, [n for n in range(4) if not again.is_finished(n)])
    again.close_all({"by": "test"})
    assert content(tmp_path / "cut") == content(tmp_path / "reference")


def test_a_late_process_finds_everything_written(tmp_path: Path) -> None:
    """Another process writes the last shard and the manifest, and tidies up, before this one does."""
    mine, other = begun(tmp_path, 4, 2), begun(tmp_path, 4, 2)
    finish(mine, [0, 1, 2])
    finish(other, [3])
    other.close_all({"by": "test"})
    mine.close_shard(1)
    with mine._locked():
        mine._close(1)
    assert mine.so_far()["images"] == 4
    assert mine.close_all({"by": "test"})["images"] == 4
    assert all(mine.is_finished(n) for n in range(4))


def test_an_output_of_other_settings_is_refused(tmp_path: Path) -> None:
    begun(tmp_path, 4, 2)
    with pytest.raises(ValueError, match="by: test before, me now"):
        Fragments(tmp_path, 4, 2).begin({"by": "me"})
