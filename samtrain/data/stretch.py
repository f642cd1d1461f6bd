"""Turns samples of more than 8 bits to 8 bits: the same way for an image that is prepared and one that is read as it is."""

from __future__ import annotations

import logging
from functools import lru_cache

import numpy as np

logger = logging.getLogger(__name__)

STRETCH_PERCENTILES = (0.175, 99.825)  # 0.35 % of the pixels saturate: ImageJ's default of "Enhance Contrast"
LARGEST = 1e30  # larger samples mean "no data": GDAL's default is the lowest float32, netCDF's is 9.97e36
# a constant such as -9999 means "no data" if the gap to all other samples is this many times their own range. A gap of 2 leaves
# at least 85 of 256 grey levels when it is not taken for one. Above, saturated pixels look alike, so only a huge gap counts.
GAP_BELOW, GAP_ABOVE = 2, 1000
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
    valid = _with_data(samples, values)
    low, high = np.percentile(values[valid], STRETCH_PERCENTILES) if valid.any() else (0.0, 0.0)
    _log_stretched(name, float(low), float(high), 1 - float(valid.mean()) if valid.size else 0.0)
    scaled = (np.where(valid, values, low) - low) * (255 / max(high - low, 1e-12))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _with_data(samples: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns where the samples are measurements: finite, not huge, and not a constant far from all others."""
    if samples.dtype in (np.uint8, np.uint16):  # these formats have no room for a value that is far away
        return np.ones(samples.shape, bool)
    valid = np.isfinite(values) & (np.abs(values) < LARGEST)
    if not valid.any():
        return valid
    lowest, highest = values[valid].min(), values[valid].max()
    inner = values[valid & (values != lowest) & (values != highest)]
    if inner.size and (span := np.ptp(inner)) > 0:
        if lowest < 0 and inner.min() - lowest > GAP_BELOW * span:
            valid &= values != lowest
        if highest - inner.max() > GAP_ABOVE * span:
            valid &= values != highest
    return valid


@lru_cache(maxsize=4096)
def _log_stretched(name: str, low: float, high: float, without_data: float) -> None:
    """Logs once per image, not once per read."""
    logger.info("%s has more than 8 bits per sample: [%g, %g] is stretched to [0, 255].", name, low, high)
    if without_data:
        logger.info("%s: %.1f %% of its samples hold no data and become black.", name, 100 * without_data)
