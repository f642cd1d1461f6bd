"""Panels of a validation: the image, the object, and the predicted mask after each click."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from samtrain.interact import Interaction
from samtrain.ops.masks import mask_iou
from samtrain.panels import ClickedObject, draw_panel, save_image, tile_panels
from samtrain.types import Batch


class MaskPanels(pl.Callback):
    """Draws some objects of the first validation batch, one per row: `panels/step_<step>.png`, W&B, TensorBoard.

    The white line is the object, the filled area the prediction; green clicks are on the object, red ones off it.
    """

    def __init__(self, *, directory: str | Path, num_objects: int = 6, side: int = 192) -> None:
        self.directory = Path(directory)
        self.num_objects = num_objects
        self.side = side

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: list[Interaction],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx > 0 or trainer.sanity_checking or not trainer.is_global_zero:
            return
        rows = _spread(batch.weights, self.num_objects)
        if not rows:
            return
        sheet = self.draw(batch, outputs, rows)
        save_image(self.directory / f"step_{trainer.global_step:06d}.png", sheet)
        for logger in trainer.loggers:
            if hasattr(logger, "log_interactions"):  # SamWandbLogger
                objects = _Masks(batch, outputs, rows).clicked(outputs, rows)
                logger.log_interactions(sheet, objects, step=trainer.global_step, images_seen=pl_module.images_seen)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("panels", sheet, trainer.global_step, dataformats="HWC")

    def draw(self, batch: Batch, turns: list[Interaction], rows: list[int]) -> np.ndarray:
        """Returns a (H, W, 3) uint8 sheet with one row per object; `rows` are indices of objects in the batch."""
        masks = _Masks(batch, turns, rows)
        sheet = []
        for i, row in enumerate(rows):
            image, truth = masks.image(i), masks.truth(i)
            tiles = [draw_panel(image, truth[None][:0], truth_HW=truth, caption=masks.key(i), side=self.side)]
            for turn, predicted, ious in zip(turns, masks.predicted, masks.ious, strict=True):
                tiles.append(
                    draw_panel(
                        image,
                        masks.crop(predicted[i], i)[None],
                        turn.prompts.select(slice(row, row + 1)),
                        truth_HW=truth,
                        caption=f"{turn.index + 1} {'click' if turn.index == 0 else 'clicks'}: {ious[i]:.2f}",
                        side=self.side,
                    )
                )
            sheet.append(tiles)
        return tile_panels(sheet)


class _Masks:
    """Holds some objects of a batch with their predictions, in NumPy; `crop`, `image` and `truth` cut the padding off."""

    def __init__(self, batch: Batch, turns: list[Interaction], rows: list[int]) -> None:
        self.batch = batch
        self.images = batch.image_index[rows].tolist()
        truths, valid = batch.masks[rows], batch.valid()[self.images]
        logits = [turn.logits()[rows] > 0 for turn in turns]
        self.ious = [mask_iou(predicted, truths, valid).tolist() for predicted in logits]
        self.predicted = [predicted.cpu().numpy() for predicted in logits]
        self.truths = truths.cpu().numpy()

    def key(self, i: int) -> str:
        return self.batch.keys[self.images[i]]

    def crop(self, array_HW: np.ndarray, i: int) -> np.ndarray:
        height, width = self.batch.input_sizes[self.images[i]].tolist()
        return array_HW[:height, :width]

    def image(self, i: int) -> np.ndarray:
        return self.crop(self.batch.images[self.images[i]].permute(1, 2, 0).cpu().numpy(), i)

    def truth(self, i: int) -> np.ndarray:
        return self.crop(self.truths[i], i)

    def clicked(self, turns: list[Interaction], rows: list[int]) -> list[ClickedObject]:
        """Returns the objects with the padding, because W&B wants equal sizes."""
        newest = [(turn.prompts.coords[rows, 0].tolist(), turn.prompts.labels[rows, 0].tolist()) for turn in turns]
        return [
            ClickedObject(
                key=self.key(i),
                number=row,
                image=self.batch.images[self.images[i]].permute(1, 2, 0).cpu().numpy(),
                truth=self.truths[i],
                predicted=[predicted[i] for predicted in self.predicted],
                clicks=[(*coords[i], labels[i]) for coords, labels in newest],
                ious=[ious[i] for ious in self.ious],
            )
            for i, row in enumerate(rows)
        ]


def _spread(weights_N: Tensor, num: int) -> list[int]:
    """Returns indices of up to `num` real objects, evenly spread over the batch and so over its images."""
    real = torch.nonzero(weights_N > 0).flatten().tolist()
    if len(real) <= num:
        return real
    return [real[i * len(real) // num] for i in range(num)]
