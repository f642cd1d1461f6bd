"""Trains a Sam on text prompts without text: CLIP's embedding of an object's crop stands for the text (appendix D.5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samtrain.interact import BatchDecoder, Interaction
from samtrain.prompts import Sampler, TextSampler, seeded_generator, text_prompts
from samtrain.text.crops import Crops
from samtrain.training.lit_sam import METRICS, LitSam
from samtrain.types import Batch

TEXT, TEXT_ORACLE = "val/text_miou", "val/text_oracle_miou"
TEXT_METRICS = (*METRICS, TEXT, TEXT_ORACLE)
CROPS = 5  # random stream of a step: how the crops are cut


class LitTextSam(LitSam):
    """A `LitSam` with prompts that stand for texts; validation also measures the masks for the embeddings of crops.

    val/text_miou takes the mask of highest predicted IoU, val/text_oracle_miou the best of the three. Sentences are only used
    when the trained model is tested.
    """

    metrics = TEXT_METRICS

    def __init__(self, *, prompts: TextSampler, crops: Crops, **settings: Any) -> None:
        super().__init__(prompts=prompts, **settings)
        self.crops = crops

    def sampler_of(self, batch: Batch, step: int) -> Sampler:
        """Returns the sampler with the embeddings of the batch's objects."""
        generator = seeded_generator(self.device, self.seed, CROPS, step, self.global_rank)
        embeddings = self.crops(batch, generator)
        assert isinstance(self.prompts, TextSampler)
        return self.prompts.with_text(embeddings)

    def measure(self, decoder: BatchDecoder, batch: Batch, valid: Tensor) -> list[Interaction]:
        """Adds up the IoUs of clicks, boxes and embeddings of crops, and returns the interactions by clicks."""
        clicks = super().measure(decoder, batch, valid)
        iou = self._iou_with(decoder, batch.masks, valid)
        output = decoder.decode(text_prompts(self.crops(batch)), multimask_output=True)
        each_NM = torch.stack([iou(logits[:, None]) for logits in output.low_res_logits.unbind(dim=1)], dim=1)
        self._add(TEXT, each_NM.gather(1, output.best()[:, None])[:, 0], batch)
        self._add(TEXT_ORACLE, each_NM.amax(dim=1), batch)
        return clicks
