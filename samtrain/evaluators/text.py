"""Masks from words (section 7.5): a trained text prompt, automatic masks that CLIP ranks, and what wrong words would give.

Of each image the objects with a caption or category name of their own take part. Everything that is measured of an object is in
its row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samtrain.data.shards import Record
from samtrain.evaluators.clicks import choose_objects, image_size, read_image
from samtrain.evaluators.config import ZeroShotConfig
from samtrain.evaluators.evaluator import Part, PredictorEvaluator, Row
from samtrain.files import digest
from samtrain.inference.generator import SamAutomaticMaskGenerator
from samtrain.inference.text_generator import as_mask
from samtrain.interact import Decoder
from samtrain.metrics.summaries import mean_with_interval
from samtrain.modeling.sam import Sam
from samtrain.ops.masks import mask_iou
from samtrain.ops.rle import decode_rle
from samtrain.panels import draw_panel
from samtrain.prompts import CentreSampler, text_prompts
from samtrain.text import Clip
from samtrain.text.names import embed_names, similarities, unique_names
from samtrain.types import Prompts, SamOutput

RECALL_IOU = 0.5


class Text(PredictorEvaluator):
    """Prompts each object with its name, and ranks the automatic masks by it.

    make_clip:  loads the CLIP, before the first image is measured
    clip_files: its files, which decide the rows
    templates:  the sentences that category names are put into; captions are taken as they are
    """

    def __init__(
        self,
        config: ZeroShotConfig | None = None,
        *,
        make_clip: Callable[[], Clip],
        clip_files: Sequence[str] = (),
        templates: Sequence[str] = ("a photo of a {}",),
        **settings: Any,
    ) -> None:
        super().__init__(config, **settings)
        self.make_clip, self.clip_files, self.templates = make_clip, list(clip_files), list(templates)
        self.clip: Clip | None = None
        self.generator: SamAutomaticMaskGenerator | None = None
        self.foreign: dict[str, None] = {}  # names of earlier images, in their order

    def load(self, sam: Sam) -> None:
        super().load(sam)
        self.generator = self.make_generator(sam)
        self.clip = self.clip or self.make_clip().to(sam.device)
        self.foreign = {}

    def inputs(self, parts: Sequence[Part]) -> dict[str, str]:
        return super().inputs(parts) | {file: digest(file) for file in self.clip_files}

    def check(self, part: Part) -> None:
        """Raises ValueError if no object of the set has a name of its own."""
        if not any(unique_names(record.annotation["annotations"]) for record in super().open(part)):
            raise ValueError(
                f"no object of the set {part.name} has a caption or a category_name that no other object of its image has: "
                "text prompts need such names (data.form=coco writes them)"
            )

    @torch.no_grad()
    def rows(self, image: Record) -> list[Row]:
        """Returns one row per object with a name of its own.

        key, object, id, area, name, alone  alone: there is no other object with a name
        iou, head_iou, oracle_iou  of the text alone: the mask of highest predicted IoU plus similarity with it, that
                                   of highest predicted IoU, and the best of the three
        other_iou                  for the name of another object of the image
        foreign_iou, foreign_oracle_iou  for a name of another image; the mask is still chosen by the right name
        click_iou, with_click_iou  for a click in the middle of the object, alone and together with the text
        ranked_iou, ranked_oracle_iou    of the automatic masks: the one most similar to the text, and the best

        A model without text prompts has the ranked masks only.
        """
        assert self.clip is not None
        objects = image.annotation["annotations"]
        names = unique_names(objects)
        chosen = [i for i in choose_objects(image, self.config.max_masks, self.seed) if i in names]
        if not chosen:
            return []
        pixels, image_3HW, masks_NHW = self._decoded(image, chosen)
        words = [names[i] for i in chosen]
        foreign = self._foreign(words)
        text_NE, foreign_NE = self._embed(words, objects[chosen[0]]), self._embed(foreign, objects[chosen[0]])

        scores = self._ranked(pixels, image_3HW, masks_NHW, text_NE)
        if self.predictor.model.config.text_dim:
            self.predictor.set_image(pixels)
            scores |= self._prompted(image_3HW, masks_NHW, text_NE, foreign_NE)
        return [
            {
                "key": image.key, "object": i, "id": objects[i].get("id"), "area": int(masks_NHW[n].sum()), "name": names[i],
                "alone": len(chosen) == 1, **{name: float(values[n]) for name, values in scores.items()},
            }
            for n, i in enumerate(chosen)
        ]  # fmt: skip

    def _decoded(self, image: Record, chosen: Sequence[int]) -> tuple[np.ndarray, Tensor, Tensor]:
        """Returns (H, W, 3) pixels, the same (3, H, W) on the device, and (N, H, W) the masks of the chosen objects there."""
        objects, pixels, size = image.annotation["annotations"], read_image(image), image_size(image)
        image_3HW = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        masks_NHW = torch.from_numpy(np.stack([decode_rle(objects[i]["segmentation"], size) for i in chosen]))
        return pixels, image_3HW.to(self.predictor.device), masks_NHW.to(self.predictor.device)

    def _embed(self, names: Sequence[str], example: Row) -> Tensor:
        assert self.clip is not None
        return embed_names(self.clip, names, ["{}"] if example.get("caption") else self.templates)

    def _foreign(self, words: Sequence[str]) -> list[str]:
        """Returns, for each of the names, one that an earlier image had and this one has not; else a name that says nothing."""
        known = [name for name in self.foreign if name not in words] or ["something else"]
        found = [known[(7 * len(known) // 11 + n) % len(known)] for n in range(len(words))]
        self.foreign |= dict.fromkeys(words)
        return found

    def _ranked(self, pixels: np.ndarray, image_3HW: Tensor, masks_NHW: Tensor, text_NE: Tensor) -> dict[str, Tensor]:
        """Returns the IoUs of the automatic mask most similar to each text, and of the best automatic mask."""
        assert self.generator is not None and self.clip is not None
        size = masks_NHW.shape[-2:]
        found = [as_mask(record["segmentation"], size) for record in self.generator.generate(pixels)]
        if not found:
            nothing = torch.zeros(len(masks_NHW))
            return {"ranked_iou": nothing, "ranked_oracle_iou": nothing}
        found_AHW = torch.from_numpy(np.stack(found)).bool().to(masks_NHW.device)
        best_N = similarities(self.clip, image_3HW, found_AHW, text_NE).argmax(dim=0)
        ious_AN = torch.stack([mask_iou(each[None].expand_as(masks_NHW), masks_NHW) for each in found_AHW])
        return {"ranked_iou": ious_AN.gather(0, best_N[None])[0], "ranked_oracle_iou": ious_AN.amax(dim=0)}

    def _prompted(self, image_3HW: Tensor, masks_NHW: Tensor, text_NE: Tensor, foreign_NE: Tensor) -> dict[str, Tensor]:
        """Returns the IoUs of the masks that the model predicts for texts and clicks."""
        decoder = self.predictor.decoder()
        right = _Answer(decoder, text_prompts(text_NE), masks_NHW)
        foreign = _Answer(decoder, text_prompts(foreign_NE), masks_NHW)
        chosen_N = self._choose(right, image_3HW, text_NE)
        # the name of the next object of the image, and what it chooses, measured against this object
        other_masks = right.rolled(masks_NHW)
        other_N = self._choose(other_masks, image_3HW, text_NE.roll(-1, dims=0))
        clicks = CentreSampler(num_points=1).first(masks_NHW, torch.ones_like(masks_NHW))
        click = _Answer(decoder, clicks, masks_NHW)
        both = _Answer(decoder, clicks.with_text(text_NE), masks_NHW)
        return {
            "iou": right.of(chosen_N),
            "head_iou": right.of(right.output.best()),
            "oracle_iou": right.ious_NM.amax(dim=1),
            "other_iou": other_masks.of(other_N),
            "foreign_iou": foreign.of(self._choose(foreign, image_3HW, text_NE)),
            "foreign_oracle_iou": foreign.ious_NM.amax(dim=1),
            "click_iou": click.of(click.output.best()),
            "with_click_iou": both.of(both.output.best()),
        }

    def _choose(self, answer: _Answer, image_3HW: Tensor, text_NE: Tensor) -> Tensor:
        """Returns (N,), the mask of highest predicted IoU plus similarity with the text."""
        assert self.clip is not None
        N, M = answer.masks_NMHW.shape[:2]
        cosines = similarities(self.clip, image_3HW, answer.masks_NMHW.flatten(0, 1), text_NE).view(N, M, N)
        own_NM = cosines[torch.arange(N), :, torch.arange(N)]
        return (answer.output.iou_predictions.clamp(0, 1) + own_NM).argmax(dim=1)

    @torch.no_grad()
    def panels(self, image: Record) -> list[list[np.ndarray]]:
        """Returns a row of tiles per object with a name of its own: the object, the mask for its name, that for a wrong one."""
        objects, names = image.annotation["annotations"], unique_names(image.annotation["annotations"])
        if not names or not self.predictor.model.config.text_dim:
            return []
        chosen = list(names)
        pixels, image_3HW, masks_NHW = self._decoded(image, chosen)
        text_NE = self._embed(list(names.values()), objects[chosen[0]])
        self.predictor.set_image(pixels)
        right = _Answer(self.predictor.decoder(), text_prompts(text_NE), masks_NHW)
        best_N = self._choose(right, image_3HW, text_NE).tolist()
        rows = []
        for n, i in enumerate(chosen):
            truth, other = masks_NHW[n].cpu().numpy(), (n + 1) % len(chosen)
            tiles = [draw_panel(pixels, truth[None][:0], truth_HW=truth, caption=names[i], side=192)]
            for k in (n, other):
                mask = right.masks_NMHW[k, best_N[k]].cpu().numpy()
                tiles.append(draw_panel(pixels, mask[None], truth_HW=truth, caption=f"prompt: {names[chosen[k]]}", side=192))
            rows.append(tiles)
        return rows

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns the metrics of one set; raises ValueError without rows.

        text_miou, text_head_miou, text_oracle_miou, text_other_miou, text_foreign_miou, text_foreign_oracle_miou,
        text_click_miou, text_with_click_miou, text_ranked_miou, text_ranked_oracle_miou: the means of the rows' IoUs; each
                              also with `_low` and `_high`, the ends of its 95 % interval over images
        text_recall, text_ranked_recall  share of the objects with a mask of IoU 0.5
        objects, images       how many there are
        """
        keys = [row["key"] for row in rows]
        found: dict[str, float] = {"objects": float(len(rows)), "images": float(len(set(keys)))}
        for name in [name for name in rows[0] if name == "iou" or name.endswith("_iou")]:
            # an object that is alone in its image has no other object's name
            kept = [row for row in rows if name != "other_iou" or not row["alone"]]
            if not kept:
                continue
            mean = f"text_{name.replace('iou', 'miou')}"
            values = [row[name] for row in kept]
            of_images = [row["key"] for row in kept]
            found[mean], found[f"{mean}_low"], found[f"{mean}_high"] = mean_with_interval(values, of_images, self.seed)
        for name, recall in (("iou", "text_recall"), ("ranked_iou", "text_ranked_recall")):
            if name in rows[0]:
                found[recall] = float(np.mean([row[name] >= RECALL_IOU for row in rows]))
        return found


class _Answer:
    """The masks that a model predicts for prompts, and their IoUs with the true objects."""

    def __init__(self, decoder: Decoder, prompts: Prompts, masks_NHW: Tensor) -> None:
        self.output: SamOutput = decoder.decode(prompts, multimask_output=True)
        frames = [decoder.to_frame(logits[:, None])[:, 0] > 0 for logits in self.output.low_res_logits.unbind(dim=1)]
        self.masks_NMHW = torch.stack(frames, dim=1)
        self._measure(masks_NHW)

    def _measure(self, masks_NHW: Tensor) -> None:
        self.ious_NM = torch.stack([mask_iou(each, masks_NHW) for each in self.masks_NMHW.unbind(dim=1)], dim=1)

    def rolled(self, masks_NHW: Tensor) -> _Answer:
        """Returns the answers to the prompts of the next objects, measured against these objects."""
        other = object.__new__(_Answer)
        other.output = SamOutput(self.output.low_res_logits.roll(-1, dims=0), self.output.iou_predictions.roll(-1, dims=0))
        other.masks_NMHW = self.masks_NMHW.roll(-1, dims=0)
        other._measure(masks_NHW)
        return other

    def of(self, index_N: Tensor) -> Tensor:
        """Returns (N,) IoUs of the masks with these indices."""
        return self.ious_NM.gather(1, index_N[:, None])[:, 0]
