from __future__ import annotations

import errno
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from samtrain.data.shards import ShardWriter, expand_urls, is_remote, parse_annotation, read_record, safe_key
from samtrain.data.tar_index import index_tar
from samtrain.files import digest

ANNOTATION = {"image": {"image_id": 7, "width": 4, "height": 3, "file_name": "?"}, "annotations": []}
JSON = json.dumps(ANNOTATION).encode()


def keys(path: Path, **kwargs) -> list[str]:
    index = index_tar(path, **kwargs)
    return [index.key(i) for i in range(len(index))]


def cut(path: Path, length: int) -> Path:
    path.write_bytes(path.read_bytes()[:length])
    return path


def test_expand_urls_accepts_paths_folders_globs_braces_and_urls(tmp_path):
    for i in range(13):
        (tmp_path / f"a_{i:06d}.tar").touch()
    both = [str(tmp_path / f"a_{i:06d}.tar") for i in range(13)]
    assert expand_urls(str(tmp_path / "a_{000000..000012}.tar")) == both
    assert expand_urls(tmp_path) == expand_urls(f"{tmp_path}/*.tar") == both
    assert expand_urls([both[3], f"{tmp_path}/*.tar"]) == [both[3], *both[:3], *both[4:]]
    assert expand_urls("https://host/a_{00..01}.tar") == ["https://host/a_00.tar", "https://host/a_01.tar"]
    assert expand_urls(f"file://{both[0]}") == both[:1]


def test_a_glob_that_matches_folders_reads_their_tars(tmp_path):
    """The rounds of the data engine lie in RUN/rounds/*/shards; beside tars lie their indices and lists."""
    tars = [tmp_path / "rounds" / number / "shards" / f"a_{number}.tar" for number in ("1", "2")]
    for tar in tars:
        tar.parent.mkdir(parents=True)
        for path in (tar, tar.with_name(f"{tar.name}.index.npz"), tar.with_name("contents.txt")):
            path.touch()
    for pattern in ("rounds/*/shards", "rounds/*/shards/*", "rounds/*/shards/*.tar", "rounds/{1,2}/shards"):
        assert expand_urls(str(tmp_path / pattern)) == [str(tar) for tar in tars]


def test_expand_urls_names_a_pattern_without_a_match(tmp_path):
    with pytest.raises(ValueError, match="gone_.* matches no shard.*brace pattern"):
        expand_urls(str(tmp_path / "gone_*.tar"))
    with pytest.raises(ValueError, match="list of shards is empty"):
        expand_urls([])


def test_a_url_with_a_scheme_is_remote():
    assert all(map(is_remote, ("https://a/b.tar", "s3://b/c.tar", "pipe:cat a.tar")))
    assert not any(map(is_remote, ("/a/b.tar", "b.tar", "a:b.tar")))


def test_meta_tar_with_dots_and_pairs_that_are_not_adjacent(tmp_path, write_tar):
    """SA-1B's own form: `./` in front, images and JSONs in any order."""
    members = [("./sa_1.jpg", b"one"), ("./sa_2.json", JSON), ("./a.b.png", b"dots"), ("./._sa_1.jpg", b"junk")]
    members += [("./sa_2.JPEG", b"two"), ("./LICENSE", b"text"), ("./sa_1.json", JSON), ("./a.b.json", JSON)]
    path = write_tar(tmp_path / "sa.tar", members)
    assert keys(path) == ["sa_1", "a.b", "sa_2"]
    record = read_record(index_tar(path), 2)
    assert (record.key, record.ext, record.image_bytes, record.annotation) == ("sa_2", "jpeg", b"two", ANNOTATION)
    assert str(path) in record.name and "sa_2" in record.name


def test_long_names_and_folders(tmp_path, write_tar):
    name = "deep/" * 30 + "x" * 120
    path = write_tar(tmp_path / "long.tar", [(f"{name}.png", b"1"), (f"{name}.json", JSON)])
    assert keys(path) == [name]


def test_names_that_are_not_utf_8(tmp_path, write_tar):
    name = os.fsdecode(b"\xe9t\xe9")
    path = write_tar(tmp_path / "a.tar", [(f"{name}.png", b"1"), (f"{name}.json", JSON)])
    assert keys(path) == keys(path) == [name]
    assert read_record(index_tar(path), 0).image_bytes == b"1" and safe_key(name) == "_t_"


def test_sidecar_is_used_until_the_tar_changes(tmp_path, write_tar, monkeypatch):
    path = write_tar(tmp_path / "a.tar", [("a.png", b"1"), ("a.json", JSON)])
    assert keys(path) == ["a"]
    with monkeypatch.context() as patch:
        patch.setattr("samtrain.data.tar_index._scan_tar", lambda path: pytest.fail("scanned again"))
        assert keys(path) == ["a"]
    write_tar(path, [("b.png", b"22"), ("b.json", JSON)])
    os.utime(path, ns=(1, 1))
    assert keys(path) == ["b"]
    (tmp_path / "a.tar.index.npz").write_bytes(b"no index")
    assert keys(path) == ["b"]
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_a_sidecar_cut_anywhere_is_rebuilt(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("a.png", b"1"), ("a.json", JSON)])
    index_tar(path)
    sidecar = tmp_path / "a.tar.index.npz"
    whole = sidecar.read_bytes()
    for length in (0, 1, 30, 200, len(whole) // 2, len(whole) - 1):
        sidecar.write_bytes(whole[:length])
        assert keys(path) == ["a"]


def test_a_full_disk_loses_the_index_but_not_the_run(tmp_path, write_tar, monkeypatch, caplog):
    path = write_tar(tmp_path / "a.tar", [("a.png", b"1"), ("a.json", JSON)])

    def full(file, **arrays) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", full)
    assert keys(path, cache_dir=tmp_path / "cache") == ["a"]
    assert "No space left" in caplog.text and "scanned each time" in caplog.text
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.tar"]


def test_sidecar_of_a_read_only_folder_is_in_the_cache(tmp_path, write_tar, monkeypatch):
    path = write_tar(tmp_path / "a.tar", [("a.png", b"1"), ("a.json", JSON)])
    access = os.access
    monkeypatch.setattr(os, "access", lambda folder, mode: Path(folder) != tmp_path and access(folder, mode))
    cache = tmp_path / "x" / "cache"
    monkeypatch.setattr("samtrain.data.tar_index._make_writable", lambda folder: folder.mkdir(parents=True) or True)
    assert keys(path, cache_dir=cache) == ["a"]
    assert not (tmp_path / "a.tar.index.npz").exists()
    assert len(list(cache.glob("*.npz"))) == 1
    monkeypatch.setattr("samtrain.data.tar_index._scan_tar", lambda path: pytest.fail("scanned again"))
    assert keys(path, cache_dir=cache) == ["a"]


@pytest.mark.parametrize("length", [512, 700, 1024, 1536, 2048, 2600])
def test_cut_tar_is_noticed(tmp_path, write_tar, length, caplog):
    """The tar is cut in a header, in an image, between members, or before the end mark."""
    members = [("a.png", b"1"), ("a.json", JSON), ("b.png", b"2" * 600), ("b.json", JSON)]
    path = cut(write_tar(tmp_path / "a.tar", members), length)
    with pytest.raises(ValueError, match=r"a\.tar: this tar is cut.*copy or download it again"):
        index_tar(path)
    whole = 1 if length >= 2048 else 0
    assert len(index_tar(path, on_error="skip")) == whole
    assert f"Using its {whole} complete records" in caplog.text


def test_files_that_are_not_tars_are_refused(tmp_path):
    path = tmp_path / "a.tar"
    for content in (b"", b"<html>not found</html>", b"\x1f\x8b" + bytes(2000)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not an uncompressed tar|cut"):
            index_tar(path)
    with pytest.raises(ValueError, match="data.on_error is 'ignore': choose raise or skip"):
        index_tar(path, on_error="ignore")


def test_incomplete_records(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("a.png", b"1"), ("b.json", JSON), ("c.png", b"1"), ("c.json", JSON)])
    with pytest.raises(ValueError, match="record b has no image; record a has no JSON"):
        index_tar(path)
    index = index_tar(path, on_error="skip")
    assert [index.key(i) for i in range(len(index))] == ["c"]
    assert len(index.problems) == 2


def test_joined_tars_are_read_whole(tmp_path, write_tar):
    """`cat a.tar b.tar` puts b behind the end mark of a, where most readers do not look."""
    parts = [write_tar(tmp_path / f"{k}.tar", [(f"{k}.png", k.encode()), (f"{k}.json", JSON)]) for k in "abc"]
    joined = tmp_path / "joined.tar"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert keys(joined) == ["a", "b", "c"]
    assert [read_record(index_tar(joined), i).image_bytes for i in range(3)] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("garbage", [b"x" * 100, b"x" * 5000])
def test_data_after_the_end_mark_are_named(tmp_path, write_tar, garbage):
    path = write_tar(tmp_path / "a.tar", [("a.png", b"1"), ("a.json", JSON)])
    path.write_bytes(path.read_bytes() + garbage)
    with pytest.raises(ValueError, match="after its end mark.*holds data that are no tar"):
        index_tar(path)
    assert len(index_tar(path, on_error="skip")) == 1


def test_a_header_of_zeros_does_not_hide_the_records_behind_it(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("a.png", b"1"), ("a.json", JSON), ("b.png", b"2"), ("b.json", JSON)])
    content = bytearray(path.read_bytes())
    content[2048:2560] = bytes(512)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="holds data that are no tar"):
        index_tar(path)


def test_a_name_that_occurs_twice_is_named(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("a.png", b"1"), ("a.json", JSON), ("a.png", b"2"), ("a.json", JSON)])
    with pytest.raises(ValueError, match="record a has two images, .png and .png.*record a has two JSONs"):
        index_tar(path)


def test_two_images_of_one_name(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("a.png", b"1"), ("a.jpg", b"2"), ("a.json", JSON)])
    with pytest.raises(ValueError, match="record a has two images, .png and .jpg"):
        index_tar(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{'no': json}", "its JSON cannot be parsed"),
        (b"\xff\xfe", "its JSON cannot be parsed"),
        (b"[]", "its JSON has no 'image'"),
        (b'{"image": {"width": 4}, "annotations": []}', r"gives \[4, None\] as width and height"),
        (b'{"image": {"width": 4, "height": 3}}', "no list of annotations"),
        (b'{"image": {"width": 4, "height": 3}, "annotations": [{}]}', "each have a segmentation"),
    ],
)
def test_bad_json_names_tar_and_record(tmp_path, write_tar, content, complaint):
    path = write_tar(tmp_path / "a.tar", [("sa_1.png", b"1"), ("sa_1.json", content)])
    with pytest.raises(ValueError, match=rf"a\.tar, record sa_1: .*{complaint}"):
        read_record(index_tar(path), 0)


def test_tar_cut_after_it_was_indexed(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("a.json", JSON), ("a.png", b"1" * 5000)])
    index = index_tar(path)
    cut(path, 3000)
    with pytest.raises(ValueError, match="ends at byte 3000, so it was cut while in use"):
        read_record(index, 0)


def test_writer_round_trip_and_equal_bytes(tmp_path):
    for folder in ("one", "two"):
        with ShardWriter(tmp_path / folder, "x", max_count=2) as writer:
            for i in range(5):
                objects = [{"id": np.int64(i), "bbox": np.arange(4.0), "segmentation": {}}]
                writer.write(f"sa_{i}", bytes([i]), ".PNG", {**ANNOTATION, "annotations": objects})
    names = ["x_000000.tar", "x_000001.tar", "x_000002.tar"]
    assert [path.name for path in writer.paths] == names
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    assert [digest(tmp_path / "one" / name) for name in names] == [digest(tmp_path / "two" / name) for name in names]
    record = read_record(index_tar(writer.paths[1]), 1)
    assert (record.key, record.ext, record.image_bytes) == ("sa_3", "png", b"\x03")
    assert record.annotation["image"] == {**ANNOTATION["image"], "file_name": "sa_3.png"}
    assert record.annotation["annotations"] == [{"id": 3, "bbox": [0, 1, 2, 3], "segmentation": {}}]


def test_webdataset_reads_the_written_shards(tmp_path):
    with ShardWriter(tmp_path, "x") as writer:
        writer.write(safe_key("a.b c"), b"image", "jpg", ANNOTATION)
    samples = list(webdataset.WebDataset(str(writer.paths[0]), shardshuffle=False))
    assert [(s["__key__"], s["jpg"]) for s in samples] == [("a_b_c", b"image")]
    assert json.loads(samples[0]["json"])["image"]["file_name"] == "a_b_c.jpg"
    with tarfile.open(writer.paths[0]) as tar:
        assert {(member.mtime, member.uid, member.gid) for member in tar} == {(0, 0, 0)}


def test_writer_leaves_only_complete_shards(tmp_path):
    (tmp_path / "x_000004.tar.partial").write_bytes(b"half")
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, "x", max_count=2) as writer:
        assert not (tmp_path / "x_000004.tar.partial").exists()
        for i in range(3):
            writer.write(f"sa_{i}", b"1", "png", ANNOTATION)
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["x_000000.tar"]
    with ShardWriter(tmp_path, "x", start_index=1) as writer:
        writer.write("sa_2", b"1", "png", ANNOTATION)
    assert [path.name for path in writer.paths] == ["x_000001.tar"]


@pytest.mark.parametrize("room", [0, 6000, 10239])
@pytest.mark.parametrize("max_count", [1, 2])
def test_a_full_disk_leaves_complete_shards_and_frees_the_rest(tmp_path, monkeypatch, room, max_count):
    """The disk fills up in an image or in the end mark; buffered bytes cannot be written either."""

    class Full(io.FileIO):
        left = room

        def write(self, data) -> int:
            if self.left < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.left -= len(data)
            return super().write(data)

    with ShardWriter(tmp_path, "x") as writer:
        writer.write("sa_0", b"1", "png", ANNOTATION)
    monkeypatch.setattr("builtins.open", lambda path, mode: io.BufferedWriter(Full(path, mode)))
    complaint = "No space left on device .free some disk space.* resumes.: '.*x_000001.tar'"
    with pytest.raises(OSError, match=complaint), ShardWriter(tmp_path, "x", max_count=max_count, start_index=1) as writer:
        writer.write("sa_1", b"1" * (20000 if room == 6000 else 10), "png", ANNOTATION)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["x_000000.tar"]
    with ShardWriter(tmp_path, "x", start_index=1) as writer:
        writer.write("sa_1", b"1", "png", ANNOTATION)
    assert keys(tmp_path / "x_000001.tar") == ["sa_1"]


def test_rewritten_shard_forgets_its_index(tmp_path):
    for key in ("a", "b"):
        with ShardWriter(tmp_path, "x") as writer:
            writer.write(key, b"1", "png", ANNOTATION)
        os.utime(writer.paths[0], ns=(1, 1))
        assert keys(writer.paths[0]) == [key]


@pytest.mark.parametrize("key", ["a.b", "", "a b", "x" * 95])
def test_writer_refuses_keys_that_readers_split(tmp_path, key):
    with pytest.raises(ValueError, match="not every reader of shards accepts"), ShardWriter(tmp_path, "x") as writer:
        writer.write(key, b"", "png", ANNOTATION)
    assert safe_key(key) == safe_key(safe_key(key))


def test_writer_refuses_a_second_image_of_one_name_and_other_files(tmp_path):
    with ShardWriter(tmp_path, "x") as writer:
        writer.write("a", b"", "png", ANNOTATION)
        with pytest.raises(ValueError, match="written before"):
            writer.write("a", b"", "png", ANNOTATION)
        with pytest.raises(ValueError, match="extension 'gif': use one of jpg"):
            writer.write("b", b"", "gif", ANNOTATION)


def test_crowds_in_foreign_shards_are_set_apart() -> None:
    """Everything that trains reads `annotations`, so a crowd region must not be there."""
    mask = {"segmentation": {"size": [3, 4], "counts": [0, 12]}}
    several = [mask | {"iscrowd": flag} for flag in (0, 1, "0", "1")] + [mask]
    found = parse_annotation(json.dumps(ANNOTATION | {"annotations": several}).encode(), "r")
    assert [each.get("iscrowd") for each in found["annotations"]] == [0, "0", None]
    assert [each["iscrowd"] for each in found["evaluation_only"]] == [1, "1"]
    with pytest.raises(ValueError, match="r: iscrowd is 'x': give 0 or 1"):
        parse_annotation(json.dumps(ANNOTATION | {"annotations": [mask | {"iscrowd": "x"}]}).encode(), "r")
    with pytest.raises(ValueError, match="evaluation_only"):
        parse_annotation(json.dumps(ANNOTATION | {"evaluation_only": 3}).encode(), "r")
