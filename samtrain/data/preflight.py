"""Checks a few samples before training and reports what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samtrain.data.datasets import SamDataset
from samtrain.data.stretch import FEW_LEVELS, shows_little
from samtrain.data.transforms import Sample, mask_extents

SMALL_SIDE = 8  # input pixels: with patch 16 such an object has 2 x 2 cells of the decoder's grid
LARGE_SHARE = 0.9  # of the image: the transforms drop larger masks (paper, appendix A)
ENLARGED = 2.0  # times: beyond that, most input pixels are interpolated
EMPTY_SHARE = 0.25  # of the square input: below that, the encoder mostly computes padding
DARK = 16  # of 255, the mean of an image


@dataclass
class _Probe:
    """Holds one record's key, the areas of its masks as shares of the image, and its sample."""

    key: str
    shares: np.ndarray
    sample: Sample


def check_samples(dataset: SamDataset, n: int = 16) -> list[str]:
    """Returns the problems of n records spread evenly over the set, each as a sentence that says what to do."""
    probes, findings = [], []
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(n, len(dataset))).astype(int)).tolist():
        try:
            probes.append(_probe(dataset, index))
        except ValueError as error:
            name = dataset.name(index)
            findings.append(f"cannot be read: {'' if str(error).startswith(name) else f'{name}: '}{error}")
    if dataset.num_skipped:
        findings.append(f"{dataset.num_skipped} faults in the shards were skipped: the log names each of them")
    if probes:
        findings += [text for check in _CHECKS if (text := check(probes))]
    return findings


def _probe(dataset: SamDataset, index: int) -> _Probe:
    record = dataset.record(index)
    height, width = record.annotation["image"]["height"], record.annotation["image"]["width"]
    sample = dataset.get(0, index)
    areas, _ = mask_extents(record.annotation["annotations"], (height, width))
    return _Probe(record.key, areas / (height * width), sample)


def _check_annotated(probes: list[_Probe]) -> str:
    """Reports images without masks."""
    bare = [probe.key for probe in probes if len(probe.shares) == 0]
    return _sentence(bare, probes, "have no masks and teach nothing: annotate them, or leave them out") if bare else ""


def _check_left(probes: list[_Probe]) -> str:
    """Reports images that lose all their masks in the transform."""
    lost = [probe.key for probe in probes if len(probe.shares) and len(probe.sample.masks) == 0]
    cure = "have masks, but all are too large, too small or outside the crop: check with task=preview"
    return _sentence(lost, probes, cure) if len(lost) * 2 > len(probes) else ""


def _check_large(probes: list[_Probe]) -> str:
    """Reports masks that cover almost the whole image."""
    large = [probe.key for probe in probes if (probe.shares > LARGE_SHARE).any()]
    cure = f"have masks over {LARGE_SHARE:.0%} of the image, which are dropped: check whether the background is labelled"
    return _sentence(large, probes, cure) if large else ""


def _check_small(probes: list[_Probe]) -> str:
    """Reports objects that are too small in the input."""
    areas = np.concatenate([probe.sample.masks.sum((1, 2)).numpy() for probe in probes])
    if len(areas) == 0 or (median := float(np.median(np.sqrt(areas)))) >= SMALL_SIDE:
        return ""
    side = probes[0].sample.image.shape[-1]
    return (
        f"the median object has a side of {median:.1f} input pixels at model.image_size={side}, which is too small to segment: "
        "set data.frame=native to train on crops and predict by tiles, or a larger model.image_size"
    )


def _check_enlarged(probes: list[_Probe]) -> str:
    """Reports images that are much smaller than the input."""
    scales = [max(probe.sample.input_size) / max(probe.sample.original_size) for probe in probes]
    enlarged = [probe.key for probe, scale in zip(probes, scales, strict=True) if scale > ENLARGED]
    if len(enlarged) * 2 <= len(probes):
        return ""
    cure = f"are enlarged {np.median(scales):.1f} times at the median: a smaller model.image_size shows as much and is faster"
    return _sentence(enlarged, probes, cure)


def _check_padding(probes: list[_Probe]) -> str:
    """Reports inputs that are mostly padding."""
    square = probes[0].sample.image.shape[-1] ** 2
    empty = [probe.key for probe in probes if np.prod(probe.sample.input_size) < EMPTY_SHARE * square]
    cure = f"fill less than {EMPTY_SHARE:.0%} of the input, and the rest is padding: use a smaller model.image_size"
    return _sentence(empty, probes, cure) if len(empty) * 2 > len(probes) else ""


def _check_dark(probes: list[_Probe]) -> str:
    """Reports very dark images: common in fluorescence microscopy, but also a sign that bits were lost."""
    dark = []
    for probe in probes:
        height, width = probe.sample.input_size
        dark += [probe.key] * (float(probe.sample.image[:, :height, :width].float().mean()) < DARK)
    cure = f"are very dark (mean below {DARK} of 255): if they come from 16-bit images, give those, because they are stretched"
    return _sentence(dark, probes, cure) if len(dark) * 2 > len(probes) else ""


def _check_flat(probes: list[_Probe]) -> str:
    """Reports images with next to no grey levels: one far value, such as -9999 for missing data, may have decided the scale."""
    flat = []
    for probe in probes:
        height, width = probe.sample.input_size
        flat += [probe.key] * shows_little(probe.sample.image[:, :height, :width].numpy())
    cure = f"have fewer than {FEW_LEVELS} grey levels: look for values that mean missing data, or give images of more contrast"
    return _sentence(flat, probes, cure) if flat else ""


def _sentence(keys: list[str], probes: list[_Probe], text: str) -> str:
    """Returns a finding with the number of images that it is about, and the key of the first one."""
    return f"{len(keys)} of {len(probes)} images (for example {keys[0]}) {text}"


_CHECKS = (
    _check_annotated,
    _check_left,
    _check_large,
    _check_small,
    _check_enlarged,
    _check_padding,
    _check_dark,
    _check_flat,
)
