"""Recognises the weights of SAM's relatives: what is left out of those that hold a SAM, and why others cannot be read."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from torch import Tensor

from samtrain.modeling.tiny_vit_encoder import CLASSIFIER

log = logging.getLogger(__name__)

# tensors beside a complete SAM, and what it means that they are left out
_EXTRAS = [
    (
        re.compile(
            r"mask_decoder\.(hf_token|hf_mlp|compress_vit_feat|embedding_encoder|embedding_maskfeature"  # SAM-HQ's own files
            r"|hq_token|hq_mask_mlp|compress_vit_(conv\d|norm)|encoder_(conv\d|norm)|mask_(conv\d|norm))\."  # transformers
        ),
        "the branch of SAM-HQ, so that masks are those of the SAM that it was built on",
    ),
    (CLASSIFIER, "the classifier of MobileSAM's encoder, which no mask needs"),
]
# tensors that only other models have
_OTHERS = [
    (r"(^|\.)(image_encoder\.trunk\.|sam_mask_decoder\.|memory_attention\.|obj_ptr_proj\.)", "SAM 2 or SAM 3, another model"),
    (r"(^|\.)detector\.(backbone|transformer)\.", "SAM 3, another model"),
    (r"\.lora_[AB]\.|\.base_layer\.|\.linear_[ab]_q\.", "a SAM with LoRA layers that are not merged: merge them first"),
    (r"\.[Aa]dapter|prompt_generator\.", "a SAM with adapters between its layers, which samtrain does not have"),
    (r"image_encoder\.backbone\.", "EfficientViT-SAM, which has another encoder"),
    (r"image_encoder\.(stage\d|features)\.|\.rep_?vit|fuse_stage", "EdgeSAM or RepViT-SAM, another encoder"),
    (r"^model\.\d+\.(conv|cv\d|m)\.", "a YOLO such as FastSAM, which is no SAM"),
]


def without_extras(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Returns the tensors of the SAM in a file of a relative; what is left out is logged."""
    for pattern, meaning in _EXTRAS:
        extra = [key for key in state if pattern.search(key)]
        if extra:
            log.warning("%s holds more than a SAM. Left out: %s (%d tensors).", source, meaning, len(extra))
            state = {key: value for key, value in state.items() if key not in extra}
    return state


def relative(keys: Iterable[str]) -> str:
    """Returns what kind of model has tensors of these names, in words, or "" if it is none that is known."""
    keys = list(keys)
    return next((what for pattern, what in _OTHERS if any(re.search(pattern, key) for key in keys)), "")
