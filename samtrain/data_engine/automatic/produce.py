"""Images in, finished pieces of shards out: one worker's part of the work, and several workers side by side."""

from __future__ import annotations

import json
import logging
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from samtrain.data.decode import decode_shown
from samtrain.data.prepare.mask_files import Refused
from samtrain.data.prepare.record_checks import storable_bytes
from samtrain.data_engine.automatic.fragments import Fragments
from samtrain.data_engine.automatic.inputs import InputImage
from samtrain.data_engine.automatic.release import ReleaseForm
from samtrain.data_engine.automatic.statistics import image_statistics
from samtrain.inference.generator import SamAutomaticMaskGenerator

log = logging.getLogger(__name__)

IDS_PER_IMAGE = 100_000  # annotation ids of an image: its own times this, and counted on
Report = Callable[[int, bool], None]  # masks, refused


@dataclass(frozen=True)
class Part:
    """Which images are a worker's: those whose number leaves `index` when divided by `count`."""

    index: int
    count: int

    def numbers(self, num_images: int) -> range:
        return range(self.index, num_images, self.count)


def produce(
    images: Sequence[InputImage],
    generator: SamAutomaticMaskGenerator,
    fragments: Fragments,
    part: Part,
    *,
    first_image_id: int,
    release: ReleaseForm | None,
    on_error: str,
    report: Report,
) -> None:
    """Finish each image of the part that is not finished, in order, and close the shards that this completes.

    An image that cannot be read is refused and counted, or with on_error="raise" ends the work with a ValueError. It
    ends early where the process that began it is gone.
    """
    parent = multiprocessing.parent_process()  # None in the process that was begun by hand
    for number in part.numbers(len(images)):
        if fragments.is_finished(number):
            continue
        image = images[number]
        try:
            members, outcome = make_record(image, generator, first_image_id + number, release)
        except (ValueError, Refused) as error:
            if on_error == "raise":
                raise ValueError(f"{error}; mend it, or set generate.on_error=skip to leave it out") from error
            log.warning("left out: %s", error)
            members, outcome = None, {"refused": [[image.name, str(error)]]}
        fragments.save(number, members, outcome)
        report(outcome.get("statistics", {}).get("masks", 0), members is None)
        fragments.close_shard(fragments.shard_of(number))
        if parent is not None and not parent.is_alive():
            raise SystemExit("the process that began this one is gone")


def make_record(
    source: InputImage, generator: SamAutomaticMaskGenerator, image_id: int, release: ReleaseForm | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The source and its JSON as members of a shard, and what came of it; raises ValueError or Refused."""
    data = source.read()
    image = decode_shown(data, source.name)
    H, W = size = release.size(image.shape[:2]) if release else image.shape[:2]
    outcome: dict[str, Any] = {}
    if release is None:
        stored, extension = storable_bytes(data, (W, H), source.name)
    else:
        (stored, outcome["blurred"]), extension = release.jpeg(image), "jpg"
    records = generator.generate(image, output_size=size)
    if len(records) >= IDS_PER_IMAGE:
        raise ValueError(f"{source.name}: {len(records)} masks, a source has ids for {IDS_PER_IMAGE}")
    annotations = [{"id": image_id * IDS_PER_IMAGE + i, **record} for i, record in enumerate(records)]
    key = f"sa_{image_id}"
    content = {
        "image": {
            "image_id": image_id, "width": W, "height": H, "file_name": f"{key}.{extension}",
            "source_name": source.source_name,
        },
        "annotations": annotations,
    }  # fmt: skip
    outcome["statistics"] = image_statistics(annotations, size)
    text = json.dumps(content, separators=(",", ":")).encode()
    return {"__key__": key, extension: stored, "json": text}, outcome


class Pace:
    """Images a second, masks an image and the time left, of those that were not finished at the beginning."""

    def __init__(self, todo: int) -> None:
        self.todo, self.done, self.masks, self.refused = todo, 0, 0, 0
        self._began = time.monotonic()

    def add(self, done: int, masks: int, refused: int) -> None:
        self.done, self.masks, self.refused = self.done + done, self.masks + masks, self.refused + refused

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def line(self) -> str:
        a_second = self.done / max(self.seconds, 1e-9)
        left = (self.todo - self.done) / a_second if a_second else 0
        per_image = self.masks / max(self.done - self.refused, 1)
        words = f"{self.done}/{self.todo} images  {a_second:.2f} images/s  {per_image:.0f} masks/image"
        return f"{words}  {self.refused} left out  left {int(left) // 60}:{int(left) % 60:02d}"
