"""Prefilling: which boxes prompt the model, which masks are kept, and what counts as a duplicate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pretend_engine import PretendDetector, box_of
from pretend_predictor import PretendPredictor, disc, scene
from torch import Tensor

from samtrain.data_engine.prefill import AutomaticMask, PrefillConfig, Prefiller
from samtrain.inference.predictor import SamPredictor
from samtrain.modeling.build import build_sam
from samtrain.ops.rle import decode_rle, encode_mask
from samtrain.types import Prompts, SamOutput

CONFIDENT = PrefillConfig(pred_iou_thresh=0.7, stability_score_thresh=0.9)
SIZE = (40, 60)


class OneLogits:
    """A predictor that answers every box with the same three masks; prompts are kept."""

    device = torch.device("cpu")

    def __init__(self, logits_3HW: Tensor, ious: list[float]) -> None:
        self.logits, self.ious, self.prompts = logits_3HW, torch.tensor(ious), []

    def decoder(self) -> OneLogits:
        return self

    def decode(self, prompts: Prompts, multimask_output: bool) -> SamOutput:
        assert multimask_output, "a lone box is one prompt: three masks"
        self.prompts.append(prompts)
        N = len(prompts)
        return SamOutput(self.logits.expand(N, -1, -1, -1), self.ious.expand(N, -1))

    def to_frame(self, low_res_logits_N1hw: Tensor) -> Tensor:
        return low_res_logits_N1hw


def prefiller(config: PrefillConfig = CONFIDENT, finds: str = "all") -> Prefiller:
    return Prefiller(PretendDetector(finds), config)


def automatic(mask: np.ndarray, predicted_iou: float = 0.9) -> AutomaticMask:
    return AutomaticMask(encode_mask(mask), [0.0, 0.0, 1.0, 1.0], predicted_iou, 1.0, 1.0)


def test_every_disc_is_prefilled_once() -> None:
    image, masks = scene(3, num=4)
    predictor = PretendPredictor(lambda whole, clicks: whole)
    predictor.set_image(image)
    found = prefiller().prefill(image, predictor)
    shown = {next(i for i, mask in enumerate(masks) if (decode_rle(each.segmentation) == mask).all()) for each in found}
    assert shown == {0, 1, 2, 3} and predictor.encoded == 1
    there = [encode_mask(masks[0]), encode_mask(masks[2])]
    assert len(prefiller().prefill(image, predictor, there)) == 2
    assert prefiller(finds="nothing").prefill(image, predictor) == []


def test_the_mask_of_the_highest_predicted_iou_is_taken_and_judged() -> None:
    """Stability is the IoU of the cuts at +1 and -1: 8 x 10 pixels surely in the mask, 4 x 10 about its edge."""
    logits = torch.full((3, *SIZE), -9.0)
    logits[1, :8, :10] = 5.0
    logits[1, 8:12, :10] = -0.5
    logits[2, :, :] = 9.0
    predictor = OneLogits(logits, [0.3, 0.8, 0.7])
    (found,) = prefiller().propose(SIZE, np.array([[2.0, 3.0, 12.0, 9.0]]), np.array([0.6]), predictor)
    assert found.predicted_iou == pytest.approx(0.8) and found.stability_score == pytest.approx(80 / 120)
    assert found.detector_score == pytest.approx(0.6)
    assert (decode_rle(found.segmentation) == (logits[1] > 0).numpy()).all()
    assert found.box_xyxy == [2, 3, 11, 8], "a prompt ends on the last pixel, a detection behind it"
    assert predictor.prompts[0].coords.tolist() == [[[2, 3], [11, 8]]] and predictor.prompts[0].labels.tolist() == [[2, 3]]


def test_boxes_beyond_the_image_are_cut_to_it() -> None:
    predictor = OneLogits(torch.zeros(3, *SIZE), [0.1, 0.2, 0.3])
    boxes = np.array([[-5.0, -1.0, 90.0, 50.0], [10.0, 10.0, 10.2, 10.1]])
    found = prefiller().propose(SIZE, boxes, np.array([1.0, 1.0]), predictor)
    assert [each.box_xyxy for each in found] == [[0, 0, 59, 39], [10, 10, 10, 10]]


@pytest.mark.parametrize(
    ("changes", "stays"),
    [
        ({}, True),
        ({"predicted_iou": 0.69}, False),
        ({"stability_score": 0.89}, False),
        ({"segmentation": encode_mask(np.zeros(SIZE, bool))}, False),
        ({"segmentation": encode_mask(np.ones(SIZE, bool))}, False),
    ],
)
def test_masks_below_a_threshold_are_left_out(changes: dict, stays: bool) -> None:
    mask = replace(automatic(disc(*SIZE, 20, 20, 9)), **changes)
    assert prefiller().is_confident(mask, SIZE) == stays


def test_the_area_is_below_the_limit_and_not_at_it() -> None:
    mask = np.zeros((10, 20), bool)
    mask[:, :19] = True
    assert not prefiller().is_confident(automatic(mask), (10, 20)), "95 % of the image"
    mask[0, 0] = False
    assert prefiller().is_confident(automatic(mask), (10, 20))


def test_nested_objects_are_kept_and_near_duplicates_are_not() -> None:
    whole, nearly, part = disc(*SIZE, 20, 30, 15), disc(*SIZE, 20, 31, 15), disc(*SIZE, 20, 30, 8)
    found = [automatic(nearly, 0.8), automatic(whole, 0.9), automatic(part, 0.7)]
    assert prefiller().remove_duplicates(found, []) == [found[1], found[2]], "the best first, the near-duplicate gone"
    assert prefiller().remove_duplicates(found, [encode_mask(nearly)]) == [found[2]]
    everything = PrefillConfig(nms_thresh=1.0, duplicate_thresh=1.0)
    assert len(prefiller(everything).remove_duplicates(found, [])) == 3


def test_many_boxes_on_a_large_image_are_prompted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    image, masks = scene(5, num=6)
    boxes, scores = np.array([box_of(mask) for mask in masks]), np.linspace(1, 0.5, 6)
    answers = []
    for limit in (1 << 24, 64 * 80 * 4, 1):
        monkeypatch.setattr("samtrain.data_engine.prefill.MAX_PIXELS", limit)
        predictor = PretendPredictor(lambda whole, clicks: whole)
        predictor.set_image(image)
        answers.append(prefiller().propose(image.shape[:2], boxes, scores, predictor))
        assert predictor.decoded == {1 << 24: 1, 64 * 80 * 4: 2, 1: 6}[limit]
    assert answers[0] == answers[1] == answers[2]


def test_a_real_predictor_gives_what_predict_gives() -> None:
    """On SamPredictor, random weights: the best of the three masks of the same box."""
    image, masks = scene(2, size=(64, 80), num=3)
    predictor = SamPredictor(build_sam("vit_tiny", image_size=64).eval())
    predictor.set_image(image)
    boxes = np.array([box_of(mask) for mask in masks])
    found = prefiller().propose(image.shape[:2], boxes, np.ones(3), predictor)
    for each, box in zip(found, boxes, strict=True):
        three, ious, _ = predictor.predict(box=box - [0, 0, 1, 1])
        assert each.predicted_iou == pytest.approx(float(ious.max()), abs=1e-5)
        assert (decode_rle(each.segmentation) != three[ious.argmax()]).mean() < 0.01


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"pred_iou_thresh": 1.5}, "prefill.pred_iou_thresh is 1.5: give 0 to 1"),
        ({"max_detections": 0}, "prefill.max_detections is 0: give 1 or more"),
        ({"stability_score_offset": 0.0}, "prefill.stability_score_offset is 0.0: give more than 0"),
    ],
)
def test_wrong_settings_are_refused(setting: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PrefillConfig(**setting)
