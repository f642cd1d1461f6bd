"""A look at a handful of samples before training: what is wrong with them, in plain words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samtrain.data.datasets import SamDataset
from samtrain.data.transforms import Sample, mask_area

SMALL_SIDE = 8  # input pixels: with patch 16 the decoder's grid gives such an object 2 x 2 cells
LARGE_SHARE = 0.9  # of the image; what the transforms drop (paper, appendix A)
ENLARGED = 2.0  # times; beyond that most input pixels are interpolated
EMPTY_SHARE = 0.25  # of the square input; an image that fills less leaves most of the encoder's work to padding
DARK = 16  # of 255, mean of an image


@dataclass
class _Look:
    """What is known of one record: its key, the areas of its masks as shares of the image, and its sample."""

    key: str
    shares: np.ndarray
    sample: Sample


def check_samples(dataset: SamDataset, n: int = 16) -> list[str]:
    """Findings about n records spread evenly over the set, one sentence each with what to do; none for a sound set."""
    looks, findings = [], []
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(n, len(dataset))).astype(int)).tolist():
        try:
            looks.append(_look(dataset, index))
        except ValueError as error:
            name = dataset.name(index)
            findings.append(f"unreadable: {'' if str(error).startswith(name) else f'{name}: '}{error}")
    if dataset.num_skipped:
        findings.append(f"{dataset.num_skipped} faults in the shards were skipped; the log names each")
    if looks:
        findings += [text for check in _CHECKS if (text := check(looks))]
    return findings


def _look(dataset: SamDataset, index: int) -> _Look:
    record = dataset.record(index)
    pixels = record.annotation["image"]["width"] * record.annotation["image"]["height"]
    sample = dataset.get(0, index)
    areas = [mask_area(annotation) for annotation in record.annotation["annotations"]]
    return _Look(record.key, np.array(areas) / pixels, sample)


def _check_annotated(looks: list[_Look]) -> str:
    """Images without masks."""
    bare = [look.key for look in looks if len(look.shares) == 0]
    return _some(bare, looks, "have no masks: they teach nothing, annotate them or leave them out") if bare else ""


def _check_left(looks: list[_Look]) -> str:
    """Images whose masks were all dropped by the transform."""
    lost = [look.key for look in looks if len(look.shares) and len(look.sample.masks) == 0]
    cure = "have masks, but the transform keeps none: too large, too small or outside the crop; see task=preview"
    return _some(lost, looks, cure) if len(lost) * 2 > len(looks) else ""


def _check_large(looks: list[_Look]) -> str:
    """Masks that are the image."""
    large = [look.key for look in looks if (look.shares > LARGE_SHARE).any()]
    cure = f"have masks over {LARGE_SHARE:.0%} of the image, which are dropped: is the background labelled?"
    return _some(large, looks, cure) if large else ""


def _check_small(looks: list[_Look]) -> str:
    """Objects that vanish in the input."""
    areas = np.concatenate([look.sample.masks.sum((1, 2)).numpy() for look in looks])
    if len(areas) == 0 or (median := float(np.median(np.sqrt(areas)))) >= SMALL_SIDE:
        return ""
    side = looks[0].sample.image.shape[-1]
    return (
        f"the median object side is {median:.1f} input pixels at image_size {side}: too small to be told apart; "
        "use native crops for training and tiles for prediction (data.frame=native) or a larger image_size"
    )


def _check_enlarged(looks: list[_Look]) -> str:
    """Images that are much smaller than the input."""
    scales = [max(look.sample.input_size) / max(look.sample.original_size) for look in looks]
    enlarged = [look.key for look, scale in zip(looks, scales, strict=True) if scale > ENLARGED]
    if len(enlarged) * 2 <= len(looks):
        return ""
    cure = f"are enlarged, by {np.median(scales):.1f} in the median: a smaller image_size sees as much and is faster"
    return _some(enlarged, looks, cure)


def _check_padding(looks: list[_Look]) -> str:
    """Inputs that are mostly padding."""
    square = looks[0].sample.image.shape[-1] ** 2
    empty = [look.key for look in looks if np.prod(look.sample.input_size) < EMPTY_SHARE * square]
    cure = f"fill less than {EMPTY_SHARE:.0%} of the input, the rest is padding: use a smaller image_size"
    return _some(empty, looks, cure) if len(empty) * 2 > len(looks) else ""


def _check_dark(looks: list[_Look]) -> str:
    """Images with little light, or with none at all; common in fluorescence, but also a sign of lost bits."""
    dark = []
    for look in looks:
        height, width = look.sample.input_size
        dark += [look.key] * (float(look.sample.image[:, :height, :width].float().mean()) < DARK)
    cure = f"are very dark (mean under {DARK} of 255): if they were made from 16-bit images, give those, we stretch"
    return _some(dark, looks, cure) if len(dark) * 2 > len(looks) else ""


def _some(keys: list[str], looks: list[_Look], text: str) -> str:
    """A finding with how many images it is about, and the first by name."""
    return f"{len(keys)} of {len(looks)} images (as {keys[0]}) {text}"


_CHECKS = (
    _check_annotated,
    _check_left,
    _check_large,
    _check_small,
    _check_enlarged,
    _check_padding,
    _check_dark,
)
