from __future__ import annotations

import functools
import http.server
import json
import shutil
import tarfile
import threading
from itertools import islice

import pytest
from torch.utils.data import DataLoader

from samtrain.data.datasets import collate
from samtrain.data.remote import RemoteSamDataset, stream_pairs
from samtrain.data.transforms import ResizeLongestSide

RESIZE = ResizeLongestSide(image_size=32)
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset streams http with curl")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def served(tmp_path):
    """Returns the URL under which this machine serves `tmp_path`."""
    handler = functools.partial(Quiet, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def dataset(urls: list[str], **options) -> RemoteSamDataset:
    return RemoteSamDataset([(urls, options.pop("weight", 1.0))], RESIZE, max_masks=2, **options)


def keys(samples, count: int) -> list[str]:
    return [sample.key for sample in islice(samples, count)]


@needs_curl
def test_http_is_streamed_without_end(tmp_path, write_set, served):
    urls = [f"{served}/{path.name}" for path in write_set(tmp_path, n=6, max_count=2)]
    found = keys(dataset(urls), 18)
    for start in (0, 6, 12):
        assert sorted(found[start : start + 6]) == [f"set_{i}" for i in range(6)]
    assert keys(dataset(urls), 18) == found
    assert keys(dataset(urls, seed=1), 18) != found
    assert keys(dataset(urls, start_step=7), 18) != found, "a run that goes on begins elsewhere"


@needs_curl
def test_a_missing_shard_is_named(tmp_path, served):
    with pytest.raises(ValueError, match="gone.tar cannot be streamed as a tar"):
        next(iter(dataset([f"{served}/gone.tar"])))


def test_commands_run_only_when_allowed(tmp_path, write_set):
    (path,) = write_set(tmp_path)
    for url in (f"pipe:cat {path}", "s3://bucket/a.tar"):
        with pytest.raises(ValueError, match="runs a command .* data.allow_pipe=true"):
            dataset([url])
    with pytest.raises(ValueError, match="ftp.* cannot be streamed: use http"):
        dataset(["ftp://host/a.tar"])
    assert dataset(["s3://b/a b.tar"], allow_pipe=True).sources[0][0] == ["pipe:aws s3 cp 's3://b/a b.tar' -"]
    assert len(keys(dataset([f"pipe:cat {path}"], allow_pipe=True), 6)) == 6


def test_ranks_and_workers_read_different_shards(tmp_path, write_set):
    urls = [f"pipe:cat {path}" for path in write_set(tmp_path, n=8, max_count=2)]
    found = []
    for rank in range(2):
        remote = dataset(urls, rank=rank, world_size=2, allow_pipe=True)
        loader = DataLoader(remote, batch_size=2, collate_fn=collate, num_workers=2)
        found += [key for batch in islice(loader, 2) for key in batch.keys]
    assert sorted(found) == [f"set_{i}" for i in range(8)]
    with pytest.raises(ValueError, match="4 remote shards for 2 ranks with 3 workers each.*loader.num_workers to 2"):
        dataset(urls, world_size=2, allow_pipe=True).check_parts(num_workers=3)


def test_weights_repeat_shards(tmp_path, write_set):
    urls = [f"pipe:cat {path}" for path in write_set(tmp_path, n=4, max_count=1)]
    remote = RemoteSamDataset([(urls[:1], 3.0), (urls[1:], 1.5)], RESIZE, allow_pipe=True)
    orders = [remote._order(epoch) for epoch in range(20)]
    assert all(order.count(urls[0]) == 3 for order in orders)
    assert {order.count(urls[1]) for order in orders} == {1, 2}


def test_pairs_need_not_be_adjacent(tmp_path, write_tar):
    members = [("./a.png", b"a"), ("./b.c.json", b"{b}"), ("./x.txt", b""), ("./b.c.png", b"b"), ("./a.json", b"{a}")]
    path = write_tar(tmp_path / "a.tar", members)
    assert list(stream_pairs(str(path))) == [("b.c", "png", b"b", b"{b}"), ("a", "png", b"a", b"{a}")]


@pytest.mark.parametrize("length", [1024, 2048, 2600])
def test_a_cut_stream_is_noticed(tmp_path, write_tar, length):
    path = write_tar(tmp_path / "a.tar", [("a.png", b"a"), ("a.json", b"{}"), ("b.png", b"b"), ("b.json", b"{}")])
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="a.tar.*(is cut|cannot be streamed)"):
        list(stream_pairs(str(path)))


def test_a_second_tar_behind_the_end_mark_is_noticed(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("a.png", b"a"), ("a.json", b"{}")])
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(ValueError, match="a.tar holds data after its end-of-archive mark"):
        list(stream_pairs(str(path)))


def test_incomplete_records_are_noticed(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("a.png", b"a")])
    with pytest.raises(ValueError, match="1 incomplete records: a has no JSON"):
        list(stream_pairs(str(path)))


@pytest.mark.parametrize(("fault", "whole"), [("cut in the last", 5), ("half record", 6)])
def test_a_shard_that_breaks_off_yields_the_records_before(tmp_path, write_set, write_tar, fault, whole, caplog):
    """Records that wait in the shuffle buffer when the stream ends are not lost with it."""
    (path,) = write_set(tmp_path, n=6)
    if fault == "cut in the last":
        path.write_bytes(path.read_bytes()[:-10240])
    else:
        with tarfile.open(path, "a") as tar:
            tar.add(write_tar(tmp_path / "b.tar", []), "lonely.png")
    remote = dataset([f"pipe:cat {path}"], allow_pipe=True, on_error="skip")
    assert sorted(keys(remote, whole)) == [f"set_{i}" for i in range(whole)]
    assert keys(remote, whole + 1) and remote.num_skipped and "Skipped: " in caplog.text


def test_broken_records_are_named_or_skipped(tmp_path, write_tar, making, caplog):
    size = (8, 8)
    sound = making.annotate([making.rectangle(size, (2, 2, 6, 6))], size)
    image = making.encode_png(making.rectangle(size, (0, 0, 3, 3)).astype("uint8"))
    empty = making.annotate([making.rectangle(size, (2, 2, 2, 2))], size)
    texts = {"a": json.dumps(sound).encode(), "b": b"no", "c": json.dumps(empty).encode()}
    members = [part for key, text in texts.items() for part in ((f"{key}.png", image), (f"{key}.json", text))]
    url = f"pipe:cat {write_tar(tmp_path / 'a.tar', members)}"
    with pytest.raises(ValueError, match="a.tar, record (b: its JSON cannot|c: annotation 0: the mask is empty)"):
        keys(dataset([url], allow_pipe=True), 3)
    skipping = dataset([url], allow_pipe=True, on_error="skip")
    assert keys(skipping, 2) == ["a", "a"]
    assert skipping.num_skipped >= 2 and "Skipped: " in caplog.text


def test_a_set_without_usable_samples_is_an_error(tmp_path, write_tar):
    url = f"pipe:cat {write_tar(tmp_path / 'a.tar', [('a.png', b''), ('a.json', b'')])}"
    with pytest.raises(ValueError, match="contain no usable sample"):
        next(iter(dataset([url], allow_pipe=True, on_error="skip")))
