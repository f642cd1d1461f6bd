"""Compares ViT-B at 1024 px in float32 with segment_anything and transformers, on real images.

Three encoders of 1024 px stand here, each run once an image: about a minute on 2 cores, 5 GB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from samtrain.inference.predictor import SamPredictor
from samtrain.modeling import SAM_CONFIGS

pytestmark = [pytest.mark.slow, pytest.mark.parity]

CONFIG = SAM_CONFIGS["vit_b"]
TOLERANCE = 1e-4  # logits: of the largest |logit|; IoU predictions: absolute
PROMPTS = {
    "point": {"points": [[151, 120, 1]]},
    "points": {"points": [[151, 120, 1], [211.5, 43.25, 1], [20, 280, 0]]},
    "box": {"box": [31, 42, 260, 217]},
    "box and points": {"box": [31, 42, 260, 217], "points": [[151, 120, 1], [20, 280, 0]]},
    "mask": {"mask": True},
    "mask and points": {"mask": True, "points": [[151, 120, 1], [20, 280, 0]]},
    "mask, box and point": {"mask": True, "box": [31, 42, 260, 217], "points": [[151, 120, 1]]},
}
MULTIMASK = [True, False]


@dataclass
class Answers:
    """Holds what one package predicts for an image: its embedding, and (logits, IoUs, low-res logits) by prompt."""

    embedding: torch.Tensor
    by_prompt: dict


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    """Returns photographs of scikit-image, of odd sizes, wide and high."""
    data = pytest.importorskip("skimage.data", reason="needs images: pip install scikit-image")
    return {"chelsea 300x451": data.chelsea(), "coffee 397x299": data.coffee()[:397, 150:449]}


@pytest.fixture(scope="module")
def state(random_official_state):
    return random_official_state(CONFIG, 2304)


@pytest.fixture(scope="module")
def low_res_mask() -> np.ndarray:
    """Returns logits like those of an earlier prediction: smooth, with both signs."""
    noise = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(noise * 8, (256, 256), mode="bicubic")[0].numpy()


def _prompt_arguments(prompt: dict, low_res_mask: np.ndarray) -> dict:
    points = np.array(prompt["points"], dtype=np.float64) if "points" in prompt else None
    return {
        "point_coords": None if points is None else points[:, :2],
        "point_labels": None if points is None else points[:, 2].astype(np.int64),
        "box": np.array(prompt["box"], dtype=np.float64) if "box" in prompt else None,
        "mask_input": low_res_mask if "mask" in prompt else None,
    }


def _ask(predictor, image: np.ndarray, low_res_mask: np.ndarray) -> Answers:
    predictor.set_image(image)
    answers: dict = {}
    for name, prompt in PROMPTS.items():
        for multimask in MULTIMASK:
            arguments = _prompt_arguments(prompt, low_res_mask) | {"multimask_output": multimask}
            answers[name, multimask] = predictor.predict(**arguments, return_logits=True)
    answers["thresholded"] = predictor.predict(**arguments)
    return Answers(predictor.get_image_embedding(), answers)


@pytest.fixture(scope="module")
def ours(our_sam, state, images, low_res_mask) -> dict[str, Answers]:
    predictor = SamPredictor(our_sam(CONFIG, state))
    return {name: _ask(predictor, image, low_res_mask) for name, image in images.items()}


@pytest.fixture(scope="module")
def official(official_sam, state, images, low_res_mask) -> dict[str, Answers]:
    from segment_anything import SamPredictor as OfficialPredictor

    predictor = OfficialPredictor(official_sam(CONFIG, state))
    return {name: _ask(predictor, image, low_res_mask) for name, image in images.items()}


@pytest.fixture(params=["chelsea 300x451", "coffee 397x299"])
def image(request) -> str:
    return request.param


def test_embeddings_agree(ours, official, image):
    a, b = ours[image].embedding, official[image].embedding
    assert a.shape == b.shape == (1, 256, 64, 64)
    assert (a - b).abs().max() <= TOLERANCE * b.abs().max()


@pytest.mark.parametrize("multimask", MULTIMASK)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_masks_agree(ours, official, image, prompt, multimask):
    logits, ious, low_res = ours[image].by_prompt[prompt, multimask]
    their_logits, their_ious, their_low_res = official[image].by_prompt[prompt, multimask]
    largest = np.abs(their_low_res).max()

    assert np.abs(low_res - their_low_res).max() <= TOLERANCE * largest
    assert np.abs(logits - their_logits).max() <= TOLERANCE * largest
    assert np.abs(ious - their_ious).max() <= TOLERANCE
    masks, their_masks = logits > 0, their_logits > 0
    assert (np.abs(their_logits[masks != their_masks]) <= TOLERANCE * largest).all()
    assert 0.02 < their_masks.mean() < 0.98  # masks that a mistake could have changed


def test_predict_returns_the_same_types(ours, official, image):
    mine, theirs = ours[image].by_prompt["thresholded"], official[image].by_prompt["thresholded"]
    assert [(a.shape, a.dtype) for a in mine] == [(b.shape, b.dtype) for b in theirs]
    assert (mine[0] != theirs[0]).mean() < 1e-4


def test_transformers_agrees(our_sam, transformers_sam, state, images, low_res_mask):
    """Compares embeddings of equal pixel values, then prompts on the embedding."""
    sam, theirs = our_sam(CONFIG, state), transformers_sam(CONFIG, state)
    predictor = SamPredictor(sam)
    original = images["chelsea 300x451"]
    resized = torch.as_tensor(predictor.transform.apply_image(original)).permute(2, 0, 1)[None]
    predictor.set_torch_image(resized, original.shape[:2])
    height, width = predictor.input_size
    padded = torch.nn.functional.pad(resized, (0, 1024 - width, 0, 1024 - height))
    pixel_values = sam.preprocess(padded, torch.tensor([predictor.input_size]))

    with torch.no_grad():
        embedding = theirs.get_image_embeddings(pixel_values)
    assert (embedding - predictor.features).abs().max() <= TOLERANCE * embedding.abs().max()
    for prompt in PROMPTS.values():
        if "mask" in prompt and "points" not in prompt:
            continue  # transformers takes no mask alone
        _compare_with_transformers(predictor, theirs, embedding, _prompt_arguments(prompt, low_res_mask))


def _compare_with_transformers(predictor: SamPredictor, theirs, embedding: torch.Tensor, arguments: dict) -> None:
    transform, size = predictor.transform, predictor.original_size
    coords, labels, box, mask = arguments.values()
    points = None if coords is None else torch.tensor(transform.apply_coords(coords, size), dtype=torch.float32)[None]
    kinds = None if labels is None else torch.tensor(labels)[None]
    boxes = None if box is None else torch.tensor(transform.apply_boxes(box, size), dtype=torch.float32)
    masks = None if mask is None else torch.tensor(mask)[None]
    for multimask in MULTIMASK:
        _, ious, low_res = predictor.predict_torch(points, kinds, boxes, masks, multimask, return_logits=True)
        with torch.no_grad():
            answer = theirs(
                image_embeddings=embedding,
                input_points=None if points is None else points[None],
                input_labels=None if kinds is None else kinds[None],
                input_boxes=None if boxes is None else boxes[None],
                input_masks=masks,
                multimask_output=multimask,
            )
        largest = answer.pred_masks.abs().max()
        assert answer.pred_masks.shape[1:] == low_res.shape
        assert (answer.pred_masks[0] - low_res).abs().max() <= TOLERANCE * largest
        assert (answer.iou_scores[0] - ious).abs().max() <= TOLERANCE
