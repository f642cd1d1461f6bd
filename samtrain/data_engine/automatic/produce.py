"""Makes the masks of images and stores them as pieces of shards: one worker's share of stage 3."""

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

IDS_PER_IMAGE = 100_000  # an annotation's id is the image's id times this, plus its number in the image
Report = Callable[[int, bool], None]  # called per image with the number of masks and whether it was refused


@dataclass(frozen=True)
class Part:
    """The share of one worker: the images with a number of remainder `index` after division by `count`."""

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
    """Finishes every image of the part that is not finished yet, in order, and closes the shards that this completes.

    An image that cannot be read is refused and counted; with on_error="raise" it raises ValueError. The work ends early if
    the process that started this one has ended.
    """
    parent = multiprocessing.parent_process()  # None in the process that the user started
    for number in part.numbers(len(images)):
        if fragments.is_finished(number):
            continue
        image = images[number]
        try:
            members, outcome = make_record(image, generator, first_image_id + number, release)
        except (ValueError, Refused) as error:
            if on_error == "raise":
                raise ValueError(f"{error}; repair the image, or set generate.on_error=skip to leave it out") from error
            log.warning("An image is left out: %s", error)
            members, outcome = None, {"refused": [[image.name, str(error)]]}
        fragments.save(number, members, outcome)
        report(outcome.get("statistics", {}).get("masks", 0), members is None)
        fragments.close_shard(fragments.shard_of(number))
        if parent is not None and not parent.is_alive():
            raise SystemExit("The process that started this one has ended.")


def make_record(
    source: InputImage, generator: SamAutomaticMaskGenerator, image_id: int, release: ReleaseForm | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns an image and its JSON as members of a shard, and its outcome; raises ValueError or Refused if that fails."""
    # read the image, and store its own bytes or those of its release form
    data = source.read()
    image = decode_shown(data, source.name)
    H, W = size = release.size(image.shape[:2]) if release else image.shape[:2]
    outcome: dict[str, Any] = {}
    if release is None:
        stored, extension = storable_bytes(data, (W, H), source.name)
    else:
        (stored, outcome["blurred"]), extension = release.jpeg(image), "jpg"

    # make its masks, at the size that is stored
    records = generator.generate(image, output_size=size)
    if len(records) >= IDS_PER_IMAGE:
        raise ValueError(
            f"{source.name} has {len(records)} masks, but there are ids for {IDS_PER_IMAGE} per image: raise "
            "generator.pred_iou_thresh or generator.stability_score_thresh"
        )
    annotations = [{"id": image_id * IDS_PER_IMAGE + i, **record} for i, record in enumerate(records)]

    # write its JSON in SA-1B's form
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
    """Measures images per second, masks per image and the time left, over the `todo` images that were not finished before."""

    def __init__(self, todo: int) -> None:
        self.todo, self.done, self.masks, self.refused = todo, 0, 0, 0
        self._began = time.monotonic()

    def add(self, done: int, masks: int, refused: int) -> None:
        self.done, self.masks, self.refused = self.done + done, self.masks + masks, self.refused + refused

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def line(self) -> str:
        """Returns the progress as one line."""
        per_second = self.done / max(self.seconds, 1e-9)
        left = (self.todo - self.done) / per_second if per_second else 0
        per_image = self.masks / max(self.done - self.refused, 1)
        words = f"{self.done}/{self.todo} images  {per_second:.2f} images/s  {per_image:.0f} masks/image"
        return f"{words}  {self.refused} left out  {int(left) // 60}:{int(left) % 60:02d} left"
