"""What is taken for the input, in which order."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from samtrain.data_engine.automatic.inputs import digest_of, list_pictures
from tests.data_engine.automatic.pictures import as_jpeg, shapes, write_pictures


def test_a_folder_in_the_order_of_names(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", 12)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "x.PNG").write_bytes(b"any")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.jpg").write_bytes(b"any")
    names = [picture.source_name for picture in list_pictures(str(folder))]
    assert names == ["x.PNG", *(f"picture_{i}.jpg" for i in range(12))]


def test_a_glob_and_a_list(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", 3)
    one, two = str(folder / "picture_2.jpg"), str(folder / "picture_[01].jpg")
    assert [p.source_name for p in list_pictures([one, two])] == ["picture_2.jpg", "picture_0.jpg", "picture_1.jpg"]


def test_tars_with_and_without_jsons(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", 3)
    (folder / "picture_0.json").write_text("{}")
    for name, files in (("a.tar", ["picture_0.jpg", "picture_0.json"]), ("b.tar", ["picture_2.jpg", "picture_1.jpg"])):
        with tarfile.open(tmp_path / name, "w") as tar:
            for file in files:
                tar.add(folder / file, arcname=f"./{file}")
    pictures = list_pictures(str(tmp_path / "*.tar"))
    assert [p.source_name for p in pictures] == ["picture_0.jpg", "picture_2.jpg", "picture_1.jpg"]
    assert pictures[1].read() == as_jpeg(shapes(2))
    # a folder of nothing but tars
    (tmp_path / "tars").mkdir()
    (tmp_path / "a.tar").rename(tmp_path / "tars" / "a.tar")
    assert [p.source_name for p in list_pictures(str(tmp_path / "tars"))] == ["picture_0.jpg"]


def test_nothing_is_said_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="generator.input"):
        list_pictures(str(tmp_path))


def test_a_picture_that_went_or_shrank_is_named(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", 2)
    pictures = list_pictures(str(folder))
    (folder / "picture_0.jpg").unlink()
    (folder / "picture_1.jpg").write_bytes(b"short")
    for picture in pictures:
        with pytest.raises(ValueError, match=picture.source_name):
            picture.read()


def test_the_digest_tells_names_sizes_and_order(tmp_path: Path) -> None:
    pictures = list_pictures(str(write_pictures(tmp_path / "in", 3)))
    again = list_pictures(str(write_pictures(tmp_path / "elsewhere", 3)))
    assert digest_of(pictures) == digest_of(again) != digest_of(pictures[::-1])
    assert digest_of(pictures) != digest_of(pictures[:2])
