"""Keeps the finished images of stage 3 on disk: each image is a piece of a tar until all images of its shard are finished.

    <output>/sa_000000.tar              a shard, which gets this name when it is complete
    <output>/.work/images/0000007.tar   a finished image: its two members, without the end of a tar
    <output>/.work/images/0000007.json  the image's statistics, or why it was refused; written last, so the image is finished
    <output>/.work/shards/000000.json   the sum over a shard; written before its tar
    <output>/manifest.json              the sum over all shards, written when all are complete; then .work is removed

The pieces do not depend on which process makes them or when, so an interrupted run ends with the same bytes as any other.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

from samtrain.data_engine.automatic.statistics import add_statistics
from samtrain.files import atomic_path, explain_full_disk, locked, write_bytes, write_text
from samtrain.plain import differences

Outcome = dict[str, Any]  # of an image: `statistics` and `blurred`, or `refused` with the reason if it gets no masks
MANIFEST = "manifest.json"
LOCK = ".fragments.lock"  # not .lock, which the run directory uses: the output may be the run directory itself
CURE = "free some disk space, then run the same command again: it keeps the finished images"


class Fragments:
    """The output folder for `num_images` images, `per_shard` in each tar; processes and machines may share it."""

    def __init__(self, output: Path, num_images: int, per_shard: int, prefix: str = "sa") -> None:
        self.output, self.num_images, self.per_shard, self.prefix = output, num_images, per_shard, prefix
        self.work = output / ".work"

    def begin(self, facts: dict[str, Any]) -> None:
        """Makes the folders and records the facts that decide every byte; raises ValueError if they were different before."""
        self.output.mkdir(parents=True, exist_ok=True)
        with self._locked():
            begun = self.work / "begun.json"
            existing = next((path for path in (self.output / MANIFEST, begun) if path.is_file()), None)
            if existing is not None:
                _check_same(json.loads(existing.read_text()), facts, self.output)
                return
            if sorted(self.output.glob("*.tar")):
                raise ValueError(f"{self.output} holds tars of something else: set generate.output to an empty folder")
            for folder in (self.work / "images", self.work / "shards"):
                folder.mkdir(parents=True, exist_ok=True)
            write_text(begun, json.dumps(facts, indent=1) + "\n", CURE)

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.per_shard)

    def shard_of(self, number: int) -> int:
        """Returns the shard of image `number`; images are counted from 0 in the order of the input."""
        return number // self.per_shard

    def shard_path(self, shard: int) -> Path:
        return self.output / f"{self.prefix}_{shard:06d}.tar"

    def is_finished(self, number: int) -> bool:
        """Returns whether image `number` has its masks or was refused."""
        if self._outcome_path(number).is_file() or self.is_complete(self.shard_of(number)):
            return True
        return (self.output / MANIFEST).is_file()

    def is_complete(self, shard: int) -> bool:
        """Returns whether the shard has its final name; a shard in which all images were refused has no file."""
        summary = self._summary_path(shard)
        if not summary.is_file():
            return False
        return self.shard_path(shard).is_file() or not json.loads(summary.read_text())["images"]

    def save(self, number: int, members: dict[str, bytes] | None, outcome: Outcome) -> None:
        """Stores a finished image: its members by name, or None if it was refused, and its outcome."""
        if members is not None:
            write_bytes(self._piece_path(number), _piece(members), CURE)
        write_text(self._outcome_path(number), json.dumps(outcome), CURE)

    def close_shard(self, shard: int) -> None:
        """Writes the shard's tar if all its images are finished and no other process has written it."""
        if self._is_ready(shard):
            with self._locked():
                self._close(shard)

    def close_all(self, facts: dict[str, Any]) -> dict[str, Any] | None:
        """Writes the manifest with `facts` and the sum over all shards, and returns it; None if a shard is not complete yet."""
        manifest = self.output / MANIFEST
        with self._locked():
            if not manifest.is_file():
                # a process may have been killed between the last image of a shard and its tar
                for shard in range(self.num_shards):
                    self._close(shard)
                if not all(self.is_complete(shard) for shard in range(self.num_shards)):
                    return None
                summaries = [json.loads(self._summary_path(shard).read_text()) for shard in range(self.num_shards)]
                write_text(manifest, json.dumps({**facts, **_sum(summaries)}, indent=1) + "\n", CURE)

            # remove the work folder, and temporary files of processes that were killed
            shutil.rmtree(self.work, ignore_errors=True)
            for temporary in self.output.glob(f".{self.prefix}_*.tar.*.tmp"):
                temporary.unlink(missing_ok=True)
            return json.loads(manifest.read_text())

    def so_far(self) -> dict[str, Any]:
        """Returns the sum over the finished images while other processes are still working."""
        with self._locked():
            if (manifest := self.output / MANIFEST).is_file():
                return json.loads(manifest.read_text())
            shards = sorted((self.work / "shards").glob("*.json"))
            summed = {int(path.stem) for path in shards}
            images = sorted((self.work / "images").glob("*.json"))
            others = [path for path in images if self.shard_of(int(path.stem)) not in summed]
            return _sum([json.loads(path.read_text()) for path in (*shards, *others)])

    def _is_ready(self, shard: int) -> bool:
        return all(self._outcome_path(number).is_file() for number in self._numbers(shard))

    def _numbers(self, shard: int) -> range:
        """Returns the numbers of the shard's images."""
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, self.num_images))

    def _close(self, shard: int) -> None:
        """Writes a shard while this process holds the lock; another process may have written it before."""
        numbers = self._numbers(shard)
        if not self.is_complete(shard):
            if not self._is_ready(shard):
                return
            outcomes = [json.loads(self._outcome_path(number).read_text()) for number in numbers]
            pieces = [self._piece_path(n) for n, each in zip(numbers, outcomes, strict=True) if "refused" not in each]
            write_text(self._summary_path(shard), json.dumps(_sum(outcomes)), CURE)
            if pieces:
                self._join(shard, pieces)
        for number in numbers:
            self._piece_path(number).unlink(missing_ok=True)
            self._outcome_path(number).unlink(missing_ok=True)

    def _join(self, shard: int, pieces: Sequence[Path]) -> None:
        """Writes the pieces one after the other and ends the tar: two empty blocks, then padding to a full record."""
        path = self.shard_path(shard)
        with explain_full_disk(path, CURE), atomic_path(path) as temporary, open(temporary, "wb") as file:
            for piece in pieces:
                with open(piece, "rb") as source:
                    shutil.copyfileobj(source, file)
            length = file.tell() + 2 * tarfile.BLOCKSIZE
            file.write(bytes(2 * tarfile.BLOCKSIZE + -length % tarfile.RECORDSIZE))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lets one process at a time change the folder; the system frees the lock when its holder ends."""
        with locked(self.output / LOCK):
            yield

    def _piece_path(self, number: int) -> Path:
        return self.work / "images" / f"{number:07d}.tar"

    def _outcome_path(self, number: int) -> Path:
        return self.work / "images" / f"{number:07d}.json"

    def _summary_path(self, shard: int) -> Path:
        return self.work / "shards" / f"{shard:06d}.json"


def _check_same(existing: dict[str, Any], facts: dict[str, Any], output: Path) -> None:
    """Raises ValueError that lists the facts in which an existing output differs from this run."""
    before = {key: existing.get(key) for key in facts}  # a manifest has counts beside the facts
    if different := differences(facts, before):
        listed = "\n".join(f"  {key}: {there} before, {here} now" for key, here, there in different)
        raise ValueError(
            f"{output} was begun with other settings or images:\n{listed}\nSet another generate.output, or use the "
            "same settings and the same images (generate.input)"
        )


def _piece(members: dict[str, bytes]) -> bytes:
    """Returns the members as webdataset writes them into a tar, without the tar's end."""
    stream = io.BytesIO()
    writer = TarWriter(stream, encoder=False, mtime=0)  # a fixed time, so that the bytes do not depend on when they are written
    writer.write(members)
    length = writer.tarstream.offset
    writer.close()
    return stream.getvalue()[:length]


def _sum(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns the sums of counts and statistics, and all refusals, of several images or shards."""
    statistics: dict[str, Any] = {}
    refused: list[list[str]] = []
    blurred: dict[str, int] = {}
    for each in outcomes:
        statistics = add_statistics(statistics, each.get("statistics") or {})
        refused += each["refused"] if isinstance(each.get("refused"), list) else []
        for kind, count in (each.get("blurred") or {}).items():
            blurred[kind] = blurred.get(kind, 0) + count
    return {
        "images": statistics.get("images", 0),
        "masks": statistics.get("masks", 0),
        "refused": refused,
        "blurred": blurred,
        "statistics": statistics,
    }
