"""What is finished, on disk: an image is a piece of a tar until its shard is complete, and nothing half-written counts.

    <output>/sa_000000.tar              a shard, which gets its name when it is whole
    <output>/.work/images/0000007.tar a finished image: its two members, without a tar's end
    <output>/.work/images/0000007.json what came of it; written last, so it says that the image is finished
    <output>/.work/shards/000000.json   the sum of a shard's; written before its tar
    <output>/manifest.json              the sum of all, written when the last shard is whole; then .work goes

Pieces do not depend on who made them or when, so a set that was interrupted has the same bytes as one that was not.
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
from samtrain.files import atomic_path, explain_full_disk, locked, write_text

Outcome = dict[str, Any]  # of an image: `statistics`, `blurred`, and `refused` with the reason where there are no masks
MANIFEST = "manifest.json"
LOCK = ".fragments.lock"  # not the run directory's .lock: the output may be the run directory itself
CURE = "free some disk space, then run the same command again: finished work is kept"


class Fragments:
    """The output folder of `num_images`, `per_shard` in each tar; several processes and machines may work in it."""

    def __init__(self, output: Path, num_images: int, per_shard: int, prefix: str = "sa") -> None:
        self.output, self.num_images, self.per_shard, self.prefix = output, num_images, per_shard, prefix
        self.work = output / ".work"

    def begin(self, facts: dict[str, Any]) -> None:
        """Make the folders, and say what the work was begun with; raises ValueError where that was something else."""
        self.output.mkdir(parents=True, exist_ok=True)
        with self._alone():
            begun = self.work / "begun.json"
            there = next((p for p in (self.output / MANIFEST, begun) if p.is_file()), None)
            if there is not None:
                _check_same(json.loads(there.read_text()), facts, self.output)
                return
            if sorted(self.output.glob("*.tar")):
                raise ValueError(f"{self.output} holds tars that were not begun here: take an empty generate.output")
            for folder in (self.work / "images", self.work / "shards"):
                folder.mkdir(parents=True, exist_ok=True)
            write_text(begun, json.dumps(facts, indent=1) + "\n")

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.per_shard)

    def shard_of(self, number: int) -> int:
        return number // self.per_shard

    def shard_path(self, shard: int) -> Path:
        return self.output / f"{self.prefix}_{shard:06d}.tar"

    def is_finished(self, number: int) -> bool:
        """Whether image `number`, counted in the order of the input from 0, has its masks, or was refused."""
        if self._outcome_path(number).is_file() or self.is_whole(self.shard_of(number)):
            return True
        return (self.output / MANIFEST).is_file()

    def is_whole(self, shard: int) -> bool:
        """Whether the shard has its name; one whose images were all refused has no file."""
        summary = self._summary_path(shard)
        if not summary.is_file():
            return False
        return self.shard_path(shard).is_file() or not json.loads(summary.read_text())["images"]

    def save(self, number: int, members: dict[str, bytes] | None, outcome: Outcome) -> None:
        """Finish an image: its members by name (None for a refused one), and what came of it."""
        if members is not None:
            path = self._piece_path(number)
            with explain_full_disk(path, CURE), atomic_path(path) as temporary:
                temporary.write_bytes(_piece(members))
        path = self._outcome_path(number)
        with explain_full_disk(path, CURE), atomic_path(path) as temporary:
            temporary.write_text(json.dumps(outcome))

    def close_shard(self, shard: int) -> None:
        """Make the shard's tar if all its images are finished and nobody else has made it."""
        if self._is_ready(shard):
            with self._alone():
                self._close(shard)

    def _is_ready(self, shard: int) -> bool:
        return all(self._outcome_path(number).is_file() for number in self._numbers(shard))

    def _numbers(self, shard: int) -> range:
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, self.num_images))

    def _close(self, shard: int) -> None:
        """`close_shard` by the one who holds the folder: another may have been faster."""
        numbers = self._numbers(shard)
        if not self.is_whole(shard):
            if not self._is_ready(shard):
                return
            outcomes = [json.loads(self._outcome_path(number).read_text()) for number in numbers]
            pieces = [self._piece_path(n) for n, each in zip(numbers, outcomes, strict=True) if "refused" not in each]
            write_text(self._summary_path(shard), json.dumps(_sum(outcomes)))
            if pieces:
                self._join(shard, pieces)
        for number in numbers:
            self._piece_path(number).unlink(missing_ok=True)
            self._outcome_path(number).unlink(missing_ok=True)

    def close_all(self, facts: dict[str, Any]) -> dict[str, Any] | None:
        """Write the manifest, `facts` and the sum of all shards, and tidy up; None where some shard is not whole yet."""
        manifest = self.output / MANIFEST
        with self._alone():
            if not manifest.is_file():
                for shard in range(self.num_shards):
                    self._close(shard)  # one whose maker died between the last image and the tar
                if not all(self.is_whole(shard) for shard in range(self.num_shards)):
                    return None
                summaries = [json.loads(self._summary_path(shard).read_text()) for shard in range(self.num_shards)]
                with atomic_path(manifest) as temporary:
                    temporary.write_text(json.dumps({**facts, **_sum(summaries)}, indent=1) + "\n")
            shutil.rmtree(self.work, ignore_errors=True)
            for left in self.output.glob(f".{self.prefix}_*.tar.*.tmp"):  # of a maker that was killed
                left.unlink(missing_ok=True)
            return json.loads(manifest.read_text())

    def so_far(self) -> dict[str, Any]:
        """The sum of what is finished, while others are still at work."""
        with self._alone():
            if (manifest := self.output / MANIFEST).is_file():
                return json.loads(manifest.read_text())
            shards = sorted((self.work / "shards").glob("*.json"))
            whole = {int(path.stem) for path in shards}
            images = sorted((self.work / "images").glob("*.json"))
            others = [path for path in images if self.shard_of(int(path.stem)) not in whole]
            return _sum([json.loads(path.read_text()) for path in (*shards, *others)])

    def _join(self, shard: int, pieces: Sequence[Path]) -> None:
        """The pieces one after the other, and a tar's end."""
        path = self.shard_path(shard)
        with explain_full_disk(path, CURE), atomic_path(path) as temporary, open(temporary, "wb") as file:
            for piece in pieces:
                with open(piece, "rb") as source:
                    shutil.copyfileobj(source, file)
            length = file.tell() + 2 * tarfile.BLOCKSIZE
            file.write(bytes(2 * tarfile.BLOCKSIZE + -length % tarfile.RECORDSIZE))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process of this folder at a time; the lock ends with its holder."""
        with locked(self.output / LOCK):
            yield

    def _piece_path(self, number: int) -> Path:
        return self.work / "images" / f"{number:07d}.tar"

    def _outcome_path(self, number: int) -> Path:
        return self.work / "images" / f"{number:07d}.json"

    def _summary_path(self, shard: int) -> Path:
        return self.work / "shards" / f"{shard:06d}.json"


def _check_same(there: dict[str, Any], facts: dict[str, Any], output: Path) -> None:
    if different := [key for key in facts if there.get(key) != facts[key]]:
        told = "\n".join(f"  {key}: {there.get(key)} there, {facts[key]} now" for key in different)
        cure = "Take another generate.output, or the same settings"
        raise ValueError(f"{output} was begun with something else:\n{told}\n{cure}")


def _piece(members: dict[str, bytes]) -> bytes:
    """Members as they lie in a tar that webdataset writes, without its end."""
    stream = io.BytesIO()
    writer = TarWriter(stream, encoder=False, mtime=0)
    writer.write(members)
    length = writer.tarstream.offset
    writer.close()
    return stream.getvalue()[:length]


def _sum(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts, statistics and refusals of images or of shards."""
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
