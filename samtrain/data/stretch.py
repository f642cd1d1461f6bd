"""Turns samples of more than 8 bits to 8 bits: the same way for an image that is prepared and one that is read as it is."""

from __future__ import annotations

import logging
from functools import lru_cache

import numpy as np

logger = logging.getLogger(__name__)

STRETCH_PERCENTILES = (0.175, 99.825)  # 0.35 % of the pixels saturate: ImageJ's default of "Enhance Contrast"
LARGEST = 1e30  # larger samples mean "no data": GDAL's default is the lowest float32, netCDF's is 9.97e36
# a constant far from all other samples does not decide the scale if the gap is this many times their own range: a gap of 10
# would leave 23 of 256 grey levels. Constants below zero, such as -9999, mean "no data" in most files, and so do those above
# with a gap of 1000. All others may be saturated pixels or a background, so they keep a MARGIN of the scale for themselves.
GAP, GAP_BELOW_ZERO, GAP_OF_NO_DATA = 10, 2, 1000
MARGIN = 0.25
MOST_FAR = 4  # constants on each side that may be far away, such as -9999 beside -32768
FEW_LEVELS = 8  # grey levels of 256: an image with fewer shows next to nothing


def shows_little(pixels: np.ndarray) -> bool:
    """Returns whether 8-bit pixels of any shape have next to no grey levels: one far value may have decided the scale."""
    return len(np.unique(pixels)) < FEW_LEVELS


def stretch(samples: np.ndarray, name: str) -> np.ndarray:
    """Returns uint8 samples with the percentiles at 0 and 255, the same for all channels so that hues stay; no data is 0.

    samples: (H, W) or (H, W, 3), integers or floats; NaN and infinity are no data
    name:    begins the log line that says which values were stretched
    """
    values = samples.astype(np.float64 if samples.dtype.itemsize > 2 and samples.dtype != np.float32 else np.float32)
    valid, scale = _with_data(values)
    low, high = np.percentile(values[scale], STRETCH_PERCENTILES) if scale.any() else (0.0, 0.0)
    apart = values[valid & ~scale]
    margin = (high - low) * MARGIN / (1 - MARGIN)
    low, high = low - margin * (apart < low).any(), high + margin * (apart > high).any()
    _log_stretched(name, float(low), float(high), 1 - float(valid.mean()) if valid.size else 0.0)
    scaled = (np.where(valid, values, low) - low) * (255 / max(high - low, 1e-12))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _with_data(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the samples are measurements, and where they decide the scale: not where a constant is far from others."""
    valid = np.isfinite(values) & (np.abs(values) < LARGEST)
    scale = valid.copy()
    for _ in range(MOST_FAR):
        rest = values[scale]
        lowest, highest = (rest.min(), rest.max()) if rest.size else (0, 0)
        inner = rest[(rest != lowest) & (rest != highest)]
        if not inner.size or not (span := float(np.ptp(inner))) > 0:
            break
        below, above = (inner.min() - lowest) / span, (highest - inner.max()) / span
        is_far_below, is_far_above = below > (GAP_BELOW_ZERO if lowest < 0 else GAP), above > GAP
        if not (is_far_below or is_far_above):
            break
        far = (values == lowest) & is_far_below | (values == highest) & is_far_above
        no_data = (values == lowest) & (is_far_below and lowest < 0) | (values == highest) & (above > GAP_OF_NO_DATA)
        scale &= ~far
        valid &= ~no_data
    return valid, scale


@lru_cache(maxsize=4096)
def _log_stretched(name: str, low: float, high: float, without_data: float) -> None:
    """Logs once per image, not once per read."""
    logger.info("%s has more than 8 bits per sample: [%g, %g] is stretched to [0, 255].", name, low, high)
    if without_data:
        logger.info("%s: %.1f %% of its samples hold no data and become black.", name, 100 * without_data)
