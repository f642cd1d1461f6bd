"""Tests the samplers: uniform and reproducible draws, and unusual objects and errors."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_cdt, distance_transform_edt
from scipy.stats import chisquare, kstest
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from samtrain.prompts import FIRST, MASK, POINT, CentreSampler, PromptSampler, seeded_generator
from samtrain.types import PointLabel, Prompts

SIDE = 24


def rng(*numbers: int) -> torch.Generator:
    return seeded_generator("cpu", *numbers)


def block(y0: int, y1: int, x0: int, x1: int, side: int = SIDE) -> Tensor:
    """(1, side, side) bool, a rectangle without its last row and column."""
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[:, y0:y1, x0:x1] = True
    return mask


def full(like: Tensor) -> Tensor:
    return torch.ones_like(like)


def logits_of(masks: Tensor) -> Tensor:
    return torch.where(masks, 10.0, -10.0)


def after(sampler: PromptSampler | CentreSampler, masks: Tensor, predicted: Tensor, valid: Tensor | None = None) -> Prompts:
    """Returns the prompts with the click that follows a prediction."""
    valid = full(masks) if valid is None else valid
    first = sampler.first(masks, valid, rng(0))
    return sampler.next(first, masks, logits_of(predicted), valid, rng(1))


SAMPLERS = [PromptSampler(box_probability=0.0), CentreSampler()]


# ---- the edge cases


@pytest.mark.parametrize("sampler", [*SAMPLERS, PromptSampler(box_probability=1.0), CentreSampler(first="box")])
def test_an_empty_object_gets_padding(sampler: PromptSampler | CentreSampler) -> None:
    empty = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    prompts = sampler.first(empty, full(empty), rng(0))
    assert (prompts.labels == PointLabel.PADDING).all()
    again = sampler.next(prompts, empty, logits_of(empty), full(empty), rng(1))
    assert (again.labels == PointLabel.PADDING).all()
    assert torch.isfinite(again.coords).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_object_of_one_pixel_is_hit(sampler: PromptSampler | CentreSampler) -> None:
    prompts = sampler.first(block(5, 6, 7, 8), full(block(5, 6, 7, 8)), rng(0))
    assert prompts.coords[0, 0].tolist() == [7, 5]
    assert prompts.labels[0].tolist() == [PointLabel.FOREGROUND, PointLabel.PADDING]


def test_a_box_around_one_pixel_is_that_pixel() -> None:
    pixel = block(5, 6, 7, 8)
    for seed in range(20):
        box = PromptSampler(box_probability=1.0).first(pixel, full(pixel), rng(seed))
        assert box.coords[0].tolist() == [[7, 5], [7, 5]]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_object_that_fills_the_image(sampler: PromptSampler | CentreSampler) -> None:
    """If nothing is wrong and there is no background, the click is on the object."""
    everything = full(block(0, 1, 0, 1))
    prompts = after(sampler, everything, everything)
    assert prompts.labels[0].tolist() == [PointLabel.FOREGROUND, PointLabel.FOREGROUND, PointLabel.PADDING]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_perfect_prediction_gets_a_background_click(sampler: PromptSampler | CentreSampler) -> None:
    masks = block(4, 12, 4, 12)
    prompts = after(sampler, masks, masks)
    x, y = prompts.coords[0, 0].long().tolist()
    assert prompts.labels[0, 0] == PointLabel.BACKGROUND and not masks[0, y, x]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_completely_wrong_prediction(sampler: PromptSampler | CentreSampler) -> None:
    """Every pixel is wrong: missing ones get a foreground click, surplus ones a background click."""
    masks = block(2, 22, 2, 22)
    missing = after(sampler, masks, torch.zeros_like(masks))
    assert missing.labels[0, 0] == PointLabel.FOREGROUND
    small = block(0, 2, 0, 2)
    surplus = after(sampler, small, ~small)
    x, y = surplus.coords[0, 0].long().tolist()
    assert surplus.labels[0, 0] == (PointLabel.FOREGROUND if small[0, y, x] else PointLabel.BACKGROUND)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_padding_is_never_clicked(sampler: PromptSampler | CentreSampler) -> None:
    """Neither the object nor the prediction nor the background is clicked in the padding."""
    valid = block(0, 10, 0, SIDE)
    masks = block(8, 20, 3, 9)
    for predicted in (masks, ~masks, torch.zeros_like(masks), full(masks)):
        prompts = after(sampler, masks, predicted, valid)
        assert (prompts.coords[0, :2, 1] < 10).all()


# ---- uniform


def test_first_clicks_are_uniform_over_the_object() -> None:
    mask = block(3, 8, 2, 6) | block(12, 14, 10, 20)
    N = 4000
    masks = mask.expand(N, -1, -1)
    coords = PromptSampler(box_probability=0.0).first(masks, full(masks), rng(3)).coords[:, 0].long()
    counts = Counter(map(tuple, coords.tolist()))
    assert len(counts) == int(mask.sum()) == 40
    assert all(mask[0, y, x] for x, y in counts)
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_later_clicks_are_uniform_over_missing_and_surplus_together() -> None:
    mask, predicted = block(4, 10, 4, 10), block(4, 10, 7, 15)
    error = mask ^ predicted
    N = 4000
    masks = mask.expand(N, -1, -1)
    prompts = after(PromptSampler(box_probability=0.0), masks, predicted.expand(N, -1, -1))
    counts = Counter(map(tuple, prompts.coords[:, 0].long().tolist()))
    assert len(counts) == int(error.sum())
    assert chisquare(list(counts.values())).pvalue > 1e-3
    x, y = prompts.coords[:, 0].long().unbind(1)
    assert torch.equal(prompts.labels[:, 0] == PointLabel.FOREGROUND, mask[0, y, x])


def test_a_click_is_added_before_the_others() -> None:
    masks = block(4, 12, 4, 12)
    prompts = after(PromptSampler(box_probability=1.0), masks, torch.zeros_like(masks))
    assert prompts.labels[0].tolist() == [1, PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT]


# ---- boxes


def noise_of(mask: Tensor, N: int, **settings: float) -> Tensor:
    """(N, 4) what was added to the coordinates of the box."""
    masks = mask.expand(N, -1, -1)
    boxes = PromptSampler(box_probability=1.0, **settings).first(masks, full(masks), rng(4)).coords.flatten(1)
    ys, xs = torch.nonzero(mask[0], as_tuple=True)
    return boxes - torch.tensor([xs.min(), ys.min(), xs.max(), ys.max()])


def test_box_noise_is_gaussian_with_a_tenth_of_the_side() -> None:
    mask = block(50, 81, 40, 101, side=160)  # sides of 30 and 60 between the outermost pixels
    noise = noise_of(mask, 3000, box_noise_max=1.0)
    assert noise.std(dim=0).tolist() == pytest.approx([6, 3, 6, 3], rel=0.05)
    assert noise.mean(dim=0).abs().max() < 0.4
    for column, std in zip(noise.T, (6, 3, 6, 3), strict=True):
        assert kstest(column.numpy() / std, "norm").pvalue > 1e-3
    assert np.corrcoef(noise.T.numpy())[~np.eye(4, dtype=bool)].__abs__().max() < 0.08, "each coordinate has its own"


def test_box_noise_is_capped_in_input_pixels() -> None:
    """20 of 1024: here 4 of 204.8, against a standard deviation of 10."""
    side = 1024 // 5
    noise = noise_of(block(50, 151, 50, 151, side=side), 500)
    limit = 20 / 1024 * side
    assert noise.abs().max() == pytest.approx(limit)
    assert ((noise.abs() - limit).abs() < 1e-3).float().mean() > 0.5


def test_boxes_stay_in_the_image() -> None:
    masks, valid = block(0, 10, 0, SIDE), block(0, 10, 0, SIDE)
    many = masks.expand(300, -1, -1)
    coords = PromptSampler(box_probability=1.0, box_noise_max=1.0).first(many, valid.expand(300, -1, -1), rng(5)).coords
    assert coords.min() >= 0 and coords[..., 0].max() <= SIDE - 1 and coords[..., 1].max() <= 9


def test_a_box_that_would_vanish_stays_without_noise() -> None:
    thin = block(10, 12, 10, 12, side=64)
    N = 2000
    masks = thin.expand(N, -1, -1)
    boxes = PromptSampler(box_probability=1.0, box_noise=2.0, box_noise_max=1.0).first(masks, full(masks), rng(6)).coords
    sides = boxes[:, 1] - boxes[:, 0]
    assert (sides > 0).all()
    assert ((boxes == torch.tensor([[10.0, 10.0], [11.0, 11.0]])).flatten(1).all(1)).float().mean() > 0.3


def test_clicks_and_boxes_mix_object_by_object() -> None:
    masks = block(4, 12, 4, 12).expand(2000, -1, -1)
    labels = PromptSampler(box_probability=0.3).first(masks, full(masks), rng(7)).labels
    kinds = Counter(map(tuple, labels.tolist()))
    assert set(kinds) == {(1, -1), (2, 3)}
    assert kinds[2, 3] / 2000 == pytest.approx(0.3, abs=0.04)


# ---- the order of things


def test_the_papers_eleven_interactions() -> None:
    for seed in range(50):
        schedule = PromptSampler().schedule(rng(seed))
        assert len(schedule) == 11
        assert schedule[0] == FIRST and schedule[-1] == MASK
        assert Counter(schedule) == {FIRST: 1, POINT: 8, MASK: 2}


def test_the_random_turn_without_a_click_is_uniform_over_the_gaps() -> None:
    places = Counter(PromptSampler().schedule(rng(8, seed)).index(MASK) for seed in range(1800))
    assert set(places) == set(range(1, 10))
    assert chisquare(list(places.values())).pvalue > 1e-3


def test_variants_by_settings() -> None:
    assert PromptSampler(num_points=4, num_mask_only=0).schedule(rng(0)) == [FIRST] + [POINT] * 4
    assert PromptSampler(num_points=3, num_mask_only=1).schedule(rng(0)) == [FIRST] + [POINT] * 3 + [MASK]
    assert CentreSampler(num_points=5).schedule() == [FIRST] + [POINT] * 4
    assert CentreSampler(num_points=1, first="box").schedule() == [FIRST]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_points": -1}, "prompts.num_points is -1"),
        ({"num_mask_only": 3}, "num_mask_only is 3"),
        ({"box_probability": 1.5}, "prompts.box_probability is 1.5"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptSampler(**settings)


# ---- draws repeat


def test_equal_generators_give_equal_prompts() -> None:
    masks = torch.cat([block(4, 12, 4, 12), block(1, 20, 3, 5), block(0, 0, 0, 0)])
    sampler = PromptSampler()
    once, twice, other = (sampler.first(masks, full(masks), rng(9, step)) for step in (0, 0, 1))
    assert torch.equal(once.coords, twice.coords) and torch.equal(once.labels, twice.labels)
    assert not torch.equal(once.coords, other.coords)


def test_prompts_of_an_object_do_not_depend_on_the_others() -> None:
    """The masks of other objects do not change an object's draw, so that batches stay comparable."""
    a, b, c = block(4, 12, 4, 12), block(1, 20, 3, 5), block(2, 3, 2, 3)
    sampler = PromptSampler()
    one, two = (sampler.first(torch.cat([a, x]), full(torch.cat([a, x])), rng(10)) for x in (b, c))
    assert torch.equal(one.coords[0], two.coords[0])


def test_streams_of_seed_step_and_rank_differ() -> None:
    states = {rng(*numbers).initial_seed() for numbers in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 1, 0), (2, 0, 1)]}
    assert len(states) == 6


@pytest.mark.parametrize("box_probability", [0.0, 0.5, 1.0])
def test_training_prompts_do_not_synchronise_with_the_device(box_probability: float) -> None:
    """Fake tensors have no values, so anything that waits for one (`item`, `if tensor`, `nonzero`) raises."""
    sampler = PromptSampler(box_probability=box_probability)
    with FakeTensorMode():
        masks = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
        prompts = sampler.first(masks, full(masks), torch.Generator())
        prompts = sampler.next(prompts, masks, masks.float(), full(masks), torch.Generator())
        assert prompts.coords.shape == (3, 3, 2)
        with pytest.raises(DataDependentOutputException):
            bool(prompts.labels.any())


# ---- the centre of the error


def centre_by_force(mask_HW: np.ndarray) -> tuple[float, set[tuple[int, int]]]:
    """Returns the largest distance to a pixel outside the mask or the image, and the pixels with this distance."""
    H, W = mask_HW.shape
    outside = [(y, x) for y in range(-1, H + 1) for x in range(-1, W + 1) if not (0 <= y < H and 0 <= x < W and mask_HW[y, x])]
    best, where = 0.0, set()
    for y, x in zip(*np.nonzero(mask_HW), strict=True):
        distance = min(math.hypot(y - v, x - u) for v, u in outside)
        if distance > best + 1e-9:
            best, where = distance, set()
        if distance > best - 1e-9:
            where.add((int(x), int(y)))
    return best, where


@pytest.mark.parametrize("seed", range(6))
def test_the_centre_is_the_farthest_from_every_border(seed: int) -> None:
    generator = np.random.default_rng(seed)
    noise = generator.random((14, 14))
    smooth = distance_transform_cdt(noise > 0.12) > 1
    masks = torch.from_numpy(smooth)[None]
    if not smooth.any():
        pytest.skip("this seed drew nothing")
    prompts = CentreSampler().first(masks, full(masks))
    _, where = centre_by_force(smooth)
    assert tuple(prompts.coords[0, 0].long().tolist()) in where
    assert prompts.labels[0].tolist() == [1, -1]


@pytest.mark.parametrize("seed", range(6))
def test_the_next_click_is_the_centre_of_the_larger_error(seed: int) -> None:
    generator = np.random.default_rng(100 + seed)
    blobs = [distance_transform_edt(generator.random((14, 14)) > 0.1) > 1.2 for _ in range(2)]
    masks, predicted = (torch.from_numpy(blob)[None] for blob in blobs)
    if not masks.any():
        pytest.skip("this seed drew nothing")
    prompts = after(CentreSampler(), masks, predicted)
    missing = centre_by_force((masks & ~predicted)[0].numpy())
    surplus = centre_by_force((predicted & ~masks)[0].numpy())
    deeper = missing if missing[0] > surplus[0] else surplus
    click, label = tuple(prompts.coords[0, 0].long().tolist()), int(prompts.labels[0, 0])
    assert click in deeper[1]
    assert label == (PointLabel.FOREGROUND if deeper is missing else PointLabel.BACKGROUND)


def test_the_evaluation_is_deterministic() -> None:
    masks = torch.cat([block(4, 12, 4, 12), block(1, 20, 3, 9)])
    a, b = (CentreSampler(first="box").first(masks, full(masks), rng(seed)) for seed in (0, 1))
    assert torch.equal(a.coords, b.coords)
    assert a.coords[0].tolist() == [[4, 4], [11, 11]], "the clean box"


# ---- counting the clicks that a good mask needs


def twenty_clicks(sampler: CentreSampler, masks: Tensor, predicted: Tensor) -> list[tuple[int, int]]:
    """Returns the clicks on the first object if the prediction never changes."""
    prompts = sampler.first(masks, full(masks))
    for _ in range(19):
        prompts = sampler.next(prompts, masks, logits_of(predicted), full(masks))
    clicks = prompts.coords[0][prompts.labels[0] != PointLabel.PADDING]
    return [(int(x), int(y)) for x, y in clicks][::-1]  # the newest click is the first token


@pytest.mark.parametrize("predicted", ["nothing", "all", "the object"])
def test_no_pixel_is_clicked_twice(predicted: str) -> None:
    """RITM takes clicked pixels out of the distance map; the paper's protocol of 1 to 9 clicks does not."""
    masks = torch.cat([block(2, 8, 2, 9), block(4, 20, 3, 22)])
    wrong = {"nothing": torch.zeros_like(masks), "all": full(masks), "the object": masks}[predicted]
    without = CentreSampler(num_points=20, repeat=False)
    assert len(set(twenty_clicks(without, masks, wrong))) == 20
    assert without.moved_at == (2 if predicted == "nothing" else 3)
    assert len(set(twenty_clicks(CentreSampler(num_points=20), masks, wrong))) <= 2


def test_of_the_pixels_that_are_left_the_one_farthest_from_the_border_is_clicked() -> None:
    masks = block(5, 10, 5, 10)  # its middle is (7, 7); the eight pixels around it are as far from the border
    first, second, *_ = twenty_clicks(CentreSampler(num_points=20, repeat=False), masks, torch.zeros_like(masks))
    around = {(x, y) for x in (6, 7, 8) for y in (6, 7, 8)} - {(7, 7)}
    clicks = twenty_clicks(CentreSampler(num_points=20, repeat=False), masks, torch.zeros_like(masks))
    assert {first, second} == {(7, 7), (6, 6)} and set(clicks[:9]) == around | {(7, 7)}
