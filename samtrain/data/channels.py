"""The channels of an image that are taken for red, green and blue, where its file has more than three or does not name them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

# kept here because the processes that load data inherit the environment, however they are started
VARIABLE = "SAMTRAIN_IMAGE_CHANNELS"


def choose_channels(channels: Sequence[int] | None) -> None:
    """Sets the channels that are read, counted from 0, in this process and in those that it starts; None: as files say.

    Three become red, green and blue, and one becomes grey. Raises ValueError for another number of them, or one below 0.
    """
    if channels is None:
        os.environ.pop(VARIABLE, None)
        return
    check_channels(channels)
    os.environ[VARIABLE] = ",".join(map(str, channels))


def check_channels(channels: Sequence[int]) -> None:
    """Raises ValueError unless these are the numbers of one or three channels."""
    if len(channels) not in (1, 3) or min(channels) < 0:
        raise ValueError(
            f"image_channels is {list(channels)}: give the numbers of three channels, counted from 0, for red, green and blue, "
            "such as [3,2,1], or of one, such as [0]"
        )


def chosen_channels() -> tuple[int, ...] | None:
    """Returns the channels that `choose_channels` has set, or None."""
    text = os.environ.get(VARIABLE)
    return tuple(map(int, text.split(","))) if text else None


def take_channels(samples_HWC: np.ndarray, channels: Sequence[int]) -> np.ndarray:
    """Returns the (H, W, 3) or, for one channel, (H, W) samples of these channels; raises ValueError if one is not there."""
    count = samples_HWC.shape[2]
    if max(channels) >= count:
        raise ValueError(
            f"it has {count} channels, numbered from 0 to {count - 1}, and image_channels is {list(channels)}: give channels "
            "that it has"
        )
    taken = samples_HWC[..., list(channels)]
    return taken if len(channels) > 1 else taken[..., 0]
