"""Asks a model a few questions about one image, and compares the answers of two programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from samtrain.data.scenes import generate_scene
from samtrain.inference.predictor import SamPredictor
from samtrain.modeling.sam import Sam

SCENE = (150, 200)  # (H, W) of the painted scene: wider than high, and resized by factors that differ in the axes
SCENE_SEED = 18


@dataclass(frozen=True)
class Probe:
    """Holds an image and three objects that are asked for in it, in pixels of the image.

    image:   (H, W, 3) uint8 RGB
    points:  (3, 2, 2) float64, two clicks (x, y) per object
    labels:  (3, 2) int64, 1 on the object and 0 off it
    boxes:   (3, 4) float64 xyxy
    """

    image: np.ndarray
    points: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Answer:
    """Holds three masks for each of N objects.

    low_res:  (N, 3, h, w) float32 logits of the decoder
    ious:     (N, 3) float32 predicted IoUs
    masks:    (N, 3, H, W) float32 logits in the image's frame, or None for programs that leave the upscaling to the user
    """

    low_res: np.ndarray
    ious: np.ndarray
    masks: np.ndarray | None = None


@dataclass(frozen=True)
class Reading:
    """Holds the answers of one program, by question, and the seconds that it took for the image and for all questions.

    end_to_end:  answers for which the program has prepared the image by its own, slightly different rules
    """

    answers: Mapping[str, Answer]
    image_seconds: float = 0.0
    prompt_seconds: float = 0.0
    end_to_end: Mapping[str, Answer] = field(default_factory=dict)


@dataclass(frozen=True)
class Agreement:
    """Says how far two programs' answers are apart.

    logit_error:  largest difference of logits, as a share of the largest logit (or of 1, if that is larger)
    iou_error:    largest difference of predicted IoUs
    mask_iou:     smallest IoU of two masks, at the image's size where both programs upscale
    """

    logit_error: float
    iou_error: float
    mask_iou: float


def make_probe(image: np.ndarray | None = None) -> Probe:
    """Returns three objects to ask for in an image (H, W, 3), or in a painted scene."""
    image = generate_scene(SCENE_SEED, SCENE).image if image is None else image
    height, width = image.shape[:2]
    # in the middle, on the left above and on the right below, as shares of the image's sides
    centres = np.array([[0.5, 0.5], [0.3, 0.25], [0.75, 0.7]])
    spread = np.array([0.2, 0.15])
    scale = np.array([width, height], np.float64)
    points = np.stack([centres, centres + spread * [1, -1]], axis=1) * scale
    boxes = np.concatenate([centres - spread, centres + spread], axis=1) * np.tile(scale, 2)
    return Probe(image, points.round(), np.array([[1, 0]] * 3), boxes.round())


def ask(set_image: Callable[[], object], questions: Mapping[str, Callable[[], Answer]]) -> Reading:
    """Returns what a program answers after it has encoded the image, and how long it took."""
    begin = time.perf_counter()
    set_image()
    middle = time.perf_counter()
    answers = {name: question() for name, question in questions.items()}
    end = time.perf_counter()
    return Reading(answers, middle - begin, end - middle)


def ask_samtrain(sam: Sam, probe: Probe) -> Reading:
    """Returns the answers of samtrain's own predictor to clicks and boxes, with the image resized.

    "single clicks" is the mask for several prompts, "single boxes" the best of the three masks, as Meta's ONNX decoder chooses.
    """
    predictor = object.__new__(SamPredictor)  # other programs always resize, whatever frame the model was trained with
    SamPredictor.__init__(predictor, sam)

    def answer(points: np.ndarray | None, labels: np.ndarray | None, boxes: np.ndarray | None, three: bool = True) -> Answer:
        masks, ious, low_res = predictor.predict_many(points, labels, boxes, multimask_output=three, return_logits=True)
        return Answer(low_res, ious, masks)

    return ask(
        lambda: predictor.set_image(probe.image),
        {
            "clicks": lambda: answer(probe.points, probe.labels, None),
            "boxes": lambda: answer(None, None, probe.boxes),
            "one object": lambda: answer(probe.points[:1], probe.labels[:1], None),
            "single clicks": lambda: answer(probe.points, probe.labels, None, three=False),
            "single boxes": lambda: _best(answer(None, None, probe.boxes)),
        },
    )


def _best(three: Answer) -> Answer:
    """Returns the mask with the highest predicted IoU of each object."""
    rows, best = np.arange(len(three.ious)), three.ious.argmax(axis=1)
    low_res, ious = three.low_res[rows, best][:, None], three.ious[rows, best][:, None]
    return Answer(low_res, ious, None if three.masks is None else three.masks[rows, best][:, None])


def compare(expected: Mapping[str, Answer], found: Mapping[str, Answer]) -> Agreement:
    """Returns how far the answers are apart from those of samtrain; `found` may lack some of the questions."""
    pairs = [(expected[name], answer) for name, answer in found.items()]
    return Agreement(
        logit_error=max(_logit_error(a, b) for a, b in pairs),
        iou_error=max(float(np.abs(a.ious - b.ious).max()) for a, b in pairs),
        mask_iou=min(_mask_iou(a, b) for a, b in pairs),
    )


def _logit_error(a: Answer, b: Answer) -> float:
    largest = max(1.0, float(np.abs(a.low_res).max()))
    errors = [float(np.abs(x - y).max()) for x, y in _frames(a, b)]
    return float(np.nan_to_num(max(errors) / largest, nan=np.inf))


def _mask_iou(a: Answer, b: Answer) -> float:
    """Returns the smallest IoU of two masks; two empty masks are equal."""
    *_, (x, y) = _frames(a, b)  # at the image's size if there is one
    x, y = (logits.reshape(-1, logits.shape[-2] * logits.shape[-1]) > 0 for logits in (x, y))
    union = (x | y).sum(axis=1)
    return float(np.where(union == 0, 1.0, (x & y).sum(axis=1) / np.maximum(union, 1)).min())


def _frames(a: Answer, b: Answer) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yields the logits of both answers at the decoder's size, and at the image's if both have them."""
    yield a.low_res, b.low_res
    if a.masks is not None and b.masks is not None:
        yield a.masks, b.masks
