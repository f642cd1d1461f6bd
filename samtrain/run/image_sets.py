"""From the `data` node of the config to its dataclass, and to shards."""

from __future__ import annotations

from typing import Any

from samtrain.data.image_set import DataConfig, ImageSet, uses_native_pixels
from samtrain.data.kinds import DATA_KINDS
from samtrain.modeling.sam import SamConfig
from samtrain.plain import from_plain
from samtrain.run.targets import build


def data_config(node: dict[str, Any], name: str = "data") -> DataConfig:
    """Returns the data set that a config node describes: one of `data.kind`, or your own class named by `data._target_`."""
    if "_target_" in node:
        return build(node, name, of=DataConfig)
    kind = node.get("kind")
    if kind not in DATA_KINDS:
        raise ValueError(f"{name}.kind is {kind!r}: choose one of {', '.join(DATA_KINDS)}, or give {name}._target_")
    return from_plain(DATA_KINDS[kind], node, name)


def open_set(node: dict[str, Any], data_dir: str) -> ImageSet:
    """Returns the shards of a data node, after preparing them below `data_dir` if they do not exist yet."""
    return data_config(node).open(data_dir)


def pool_of_stage_2(node: dict[str, Any], data_dir: str, images: ImageSet) -> list[str]:
    """Returns the tars that the semi-automatic rounds annotate."""
    return data_config(node).semi_automatic_pool(data_dir, images)


def asked_frame(node: dict[str, Any]) -> str | None:
    """Returns native if `data.frame` asks for tiles whatever the checkpoint says, or else None for the checkpoint's frame.

    The other values, auto and resize, are defaults of conf/data and decide about trainings alone.
    """
    return "native" if data_config(node).frame == "native" else None


def is_native(node: dict[str, Any], images: ImageSet, sam: SamConfig) -> bool:
    """Returns whether this model sees the images in their own pixels; see `uses_native_pixels`."""
    frame = data_config(node).frame
    return uses_native_pixels(frame, images, image_size=sam.image_size, mask_size=sam.mask_size)
