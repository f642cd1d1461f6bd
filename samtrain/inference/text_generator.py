"""Finds what sentences describe: masks of any SAM, ranked by CLIP, or the masks of a model that takes text prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from samtrain.inference.generator import Record, SamAutomaticMaskGenerator
from samtrain.inference.transforms import as_rgb
from samtrain.modeling.sam import Sam
from samtrain.ops.boxes import masks_to_boxes_xyxy, xyxy_to_xywh
from samtrain.ops.rle import decode_rle, encode_mask
from samtrain.prompts import text_prompts
from samtrain.text.clip import Clip
from samtrain.text.names import embed_names, similarities

CANDIDATES = ("grid", "text")


class SamTextGenerator:
    """Generates masks of what sentences describe, with any SAM and any CLIP.

    Candidates are the automatic masks, or the three masks of a text prompt for each sentence. CLIP compares the crop of each
    candidate with the sentences. The image is encoded once, however many sentences there are.

    Args:
        model: the model, in evaluation mode.
        clip: the CLIP; for `candidates="text"` the one that the model was trained with.
        generator: makes the automatic masks; None: `SamAutomaticMaskGenerator(model)`.
        candidates: "grid" for the automatic masks, "text" for those of a trained text prompt.
        text_thresh: similarity (cosine) below which a mask does not show what the sentence says; the usual values depend on
            the CLIP.
        box_nms_thresh: box IoU above which the less similar of two masks is dropped, of whatever sentence.
        templates: the sentences that each text is put into; their embeddings are averaged.

    Raises:
        ValueError: for other candidates, and for a model without text prompts with `candidates="text"`.
    """

    def __init__(
        self,
        model: Sam,
        clip: Clip,
        *,
        generator: SamAutomaticMaskGenerator | None = None,
        candidates: str = "grid",
        text_thresh: float = 0.2,
        box_nms_thresh: float = 0.7,
        templates: Sequence[str] = ("{}",),
    ) -> None:
        if candidates not in CANDIDATES:
            raise ValueError(f"candidates is {candidates!r}: use {' or '.join(CANDIDATES)}")
        if candidates == "text" and not model.config.text_dim:
            raise ValueError("candidates is 'text', but this model takes no text prompts: use 'grid', or train it to")
        self.generator = generator or SamAutomaticMaskGenerator(model)
        self.clip, self.candidates = clip.to(model.device), candidates
        self.text_thresh, self.box_nms_thresh, self.templates = text_thresh, box_nms_thresh, list(templates)

    @torch.no_grad()
    def generate(self, image: np.ndarray, texts: Sequence[str]) -> list[Record]:
        """Generates the masks of one image that show what the texts say.

        Args:
            image: (H, W, 3) uint8 RGB.
            texts: sentences or names, such as ["wheel", "a red ellipse"].

        Returns:
            One record per mask, the most similar first, none if the image shows nothing of the kind: `text`, `text_score`,
            `segmentation` (in the generator's `output_mode`, binary masks or RLEs), `area`, `bbox` xywh and `predicted_iou`.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts is {texts!r}: give a list of sentences, [{texts!r}]")
        image = as_rgb(image)
        image_3HW = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(self.clip.device)
        text_TE = embed_names(self.clip, texts, self.templates)
        find = self._automatic if self.candidates == "grid" else self._prompted
        masks_AHW, ious_A, allowed_AT = find(image, text_TE)
        if not len(masks_AHW) or not len(texts):
            return []
        scores_AT = similarities(self.clip, image_3HW, masks_AHW, text_TE)
        if self.candidates == "text":
            # of the masks of a sentence, the one of highest predicted IoU plus similarity
            total_AT = (ious_A.clamp(0, 1)[:, None] + scores_AT).masked_fill(~allowed_AT, float("-inf"))
            allowed_AT = total_AT == total_AT.amax(dim=0, keepdim=True)
        pairs = ((scores_AT >= self.text_thresh) & allowed_AT).nonzero()
        return self._records(pairs, masks_AHW, ious_A, scores_AT, texts)

    def _automatic(self, image: np.ndarray, text_TE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the automatic masks, their predicted IoUs, and which of them each sentence may mean: any."""
        found, size = self.generator.generate(image), image.shape[:2]
        masks = [as_mask(record["segmentation"], size) for record in found]
        masks_AHW = torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, *size, dtype=torch.bool)
        ious_A = torch.tensor([record["predicted_iou"] for record in found])
        allowed = torch.ones(len(found), len(text_TE), dtype=torch.bool)
        return masks_AHW.to(text_TE.device), ious_A.to(text_TE.device), allowed.to(text_TE.device)

    def _prompted(self, image: np.ndarray, text_TE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the three masks of each sentence, their predicted IoUs, and which of them each sentence may mean: its own."""
        predictor = self.generator.predictor
        predictor.set_image(image)
        decoder = predictor.decoder()
        output = decoder.decode(text_prompts(text_TE), multimask_output=True)
        T, M = output.iou_predictions.shape
        masks = decoder.to_frame(output.low_res_logits.flatten(0, 1)[:, None])[:, 0] > predictor.model.mask_threshold
        own = torch.eye(T, dtype=torch.bool, device=text_TE.device).repeat_interleave(M, dim=0)
        return masks, output.iou_predictions.flatten(), own

    def _records(
        self, pairs_P2: Tensor, masks_AHW: Tensor, ious_A: Tensor, scores_AT: Tensor, texts: Sequence[str]
    ) -> list[Record]:
        """Returns the records of pairs of a mask and a sentence, after non-maximum suppression over all of them."""
        mask_P, text_P = pairs_P2.unbind(dim=1)
        scores_P, boxes_P4 = scores_AT[mask_P, text_P], masks_to_boxes_xyxy(masks_AHW[mask_P])
        kept = nms(boxes_P4, scores_P, self.box_nms_thresh).tolist()
        records = []
        for p in kept:
            mask = masks_AHW[mask_P[p]].cpu().numpy()
            records.append(
                {
                    "text": texts[int(text_P[p])],
                    "text_score": float(scores_P[p]),
                    "segmentation": mask if self.generator.output_mode == "binary_mask" else encode_mask(mask),
                    "area": int(mask.sum()),
                    "bbox": [int(edge) for edge in xyxy_to_xywh(boxes_P4[p])],
                    "predicted_iou": float(ious_A[mask_P[p]]),
                }
            )
        return records


def as_mask(segmentation: Any, size: Sequence[int]) -> np.ndarray:
    """Returns the (H, W) bool mask of a generator's record in any of its forms."""
    return segmentation if isinstance(segmentation, np.ndarray) else decode_rle(segmentation, (size[0], size[1]))
