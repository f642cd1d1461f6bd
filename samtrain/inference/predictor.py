"""Predicts masks from prompts: `set_image` once, `predict` often, with segment_anything's signatures, dtypes and frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samtrain.inference.prompt_arrays import as_array, as_labels, make_prompts
from samtrain.inference.transforms import ResizeLongestSide, as_rgb
from samtrain.modeling.image_tokens import ProjectionCache
from samtrain.modeling.sam import Sam
from samtrain.prompts import text_prompts
from samtrain.text.clip import Clip
from samtrain.types import Prompts, SamOutput, Size

OBJECTS_AT_A_TIME = 64  # objects decoded together, as in segment_anything's generator
LOGITS_AT_A_TIME = 2**24  # upscaled together: 64 MiB of float32, 3 objects of 1500 x 1000 pixels; more is slower on a CPU


class SamPredictor:
    """Encodes one image and predicts masks for prompts on it; a drop-in replacement for `segment_anything.SamPredictor`.

    Images are shown to the model as in its training. A model that was trained on crops of native pixels
    (`sam.config.frame` is "native") gets a `TiledPredictor`, which has the same methods.

    Args:
        sam_model: the model, in evaluation mode, on any device.
        clip: the CLIP that turns sentences into prompts, for a model that was trained to take them.
    """

    takes_text = True

    def __new__(cls, sam_model: Sam | None = None, **_: Any) -> SamPredictor:
        """Returns an object without content; its class follows from the model's frame. Copies are made without a model."""
        if cls is SamPredictor and sam_model is not None and sam_model.config.frame == "native":
            from samtrain.inference.tiled import TiledPredictor  # it imports this module

            return super().__new__(TiledPredictor)
        return super().__new__(cls)

    def __init__(self, sam_model: Sam, *, clip: Clip | None = None) -> None:
        self.model, self.clip = sam_model, clip
        self.transform = ResizeLongestSide(sam_model.config.image_size)
        self.original_size: Size = (0, 0)
        self.input_size: Size = (0, 0)
        self.features: Any = None
        self._cache: ProjectionCache | None = None
        self._cache_dtype: torch.dtype | None = None  # of autocast when the cache was made
        self.reset_image()

    @property
    def device(self) -> torch.device:
        return self.model.device

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Encodes an image, on which `predict` then works.

        Args:
            image: (H, W, 3) uint8, of any size.
            image_format: "RGB" or "BGR".

        Raises:
            ValueError: for another array or format.
        """
        image = as_rgb(image, image_format)
        resized = torch.as_tensor(self.transform.apply_image(image), device=self.device)
        self.set_torch_image(resized.permute(2, 0, 1)[None], image.shape[:2])

    @torch.no_grad()
    def set_torch_image(self, transformed_image: Tensor, original_image_size: Size) -> None:
        """Encodes an image that is already in the input frame.

        Args:
            transformed_image: (1, 3, H, W) RGB of 0 to 255, not normalised; its longest side is the model's image size.
            original_image_size: (H, W) of the image as stored.

        Raises:
            ValueError: for another shape.
        """
        side = self.model.config.image_size
        shape = tuple(transformed_image.shape)
        if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) != side:
            raise ValueError(f"set_torch_image takes a (1, 3, H, W) image; its longest side is {side}, got {shape}")
        self.reset_image()
        padded = F.pad(transformed_image.to(self.device), (0, side - shape[3], 0, side - shape[2]))
        sizes = torch.tensor([shape[2:]], device=self.device)
        embedding = self.model.encode(self.model.preprocess(padded, sizes))
        self.set_image_embedding(embedding, original_image_size, shape[2:])

    def set_image_embedding(self, embedding: Tensor, original_size: Size, input_size: Size | None = None) -> None:
        """Sets an image by its embedding, without encoding anything.

        Args:
            embedding: (1, C, g, g) from `get_image_embedding`.
            original_size: (H, W) of the image as stored.
            input_size: (H, W) in the input frame, without padding; None for the size that `set_image` resizes to.

        Raises:
            ValueError: for an embedding of another shape than this model's.
        """
        if embedding.shape != (shape := self.embedding_shape(original_size)):
            raise ValueError(f"an image embedding of this model is {shape}, got {tuple(embedding.shape)}")
        self.reset_image()
        self.original_size = (int(original_size[0]), int(original_size[1]))
        height, width = input_size or self.transform.size(self.original_size)
        self.input_size = (int(height), int(width))
        self.features = embedding.to(self.device, self.model.pixel_mean.dtype)
        self.is_image_set = True

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        text: str | Any | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predicts masks of one object; prompts are in the original frame.

        Prompts may be arrays, tensors or lists.

        Args:
            point_coords: (K, 2) clicks (x, y).
            point_labels: (K,) 1 for foreground, 0 for background.
            box: (4,) xyxy.
            mask_input: (1, h, w) low-resolution logits of an earlier prediction.
            multimask_output: three masks, for an ambiguous prompt such as one click (paper, section 3), or one mask.
            return_logits: float32 logits instead of bool masks.
            text: a sentence, or its (E,) embedding by CLIP, alone or beside clicks or a box.

        Returns:
            Masks (M, H, W) bool or float32 in the original frame, IoU predictions (M,) float32, and low-resolution logits
            (M, h, w) float32. M is 3 with `multimask_output`, else 1.

        Raises:
            RuntimeError: before `set_image`.
            ValueError: for prompts of another shape, for NaN, and for unknown labels; for a text if the model takes none, and
                for a sentence if the predictor has no CLIP.
        """
        self._check_image_set()
        corners = as_array(box, "box")
        if corners is not None and corners.size != 4:
            raise ValueError(f"box is one box of 4 numbers, xyxy, got shape {corners.shape}; predict_many takes several boxes")
        prompts = self._tensors(
            _one(as_array(point_coords, "point_coords")),
            _one(as_labels(point_labels)),
            None if corners is None else corners.reshape(1, 4),
            _one(as_array(mask_input, "mask_input")),
        )
        answers = self.predict_torch(*prompts, multimask_output, return_logits, text=self._embedding(text))
        found, ious, low_res = (answer[0].cpu().numpy() for answer in answers)
        return found, ious, low_res

    @torch.no_grad()
    def predict_many(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        boxes: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predicts masks of N objects in one call, as `predict` does for one; prompts are in the original frame.

        Prompts may be arrays, tensors or lists. Apart from what is returned, memory does not grow with N: a few objects at a
        time are upscaled to the image's size.

        Args:
            point_coords: (N, K, 2) clicks (x, y).
            point_labels: (N, K) 1 for foreground, 0 for background. An object with fewer clicks than the others may be filled
                up with -1, padding, a token that the model does see.
            boxes: (N, 4) xyxy.
            mask_input: (N, 1, h, w) low-resolution logits of an earlier prediction.
            multimask_output: three masks per object instead of one.
            return_logits: float32 logits instead of bool masks.

        Returns:
            Masks (N, M, H, W) bool or float32 in the original frame, IoU predictions (N, M) float32, and low-resolution logits
            (N, M, h, w) float32. M is 3 with `multimask_output`, else 1.

        Raises:
            RuntimeError: before `set_image`.
            ValueError: for prompts of another shape, for NaN, and for unknown labels.
        """
        self._check_image_set()
        corners = as_array(boxes, "boxes")
        if corners is not None and (corners.ndim != 2 or corners.shape[1] != 4):
            raise ValueError(f"boxes are (N, 4) xyxy, got {corners.shape}")
        points, masks = as_array(point_coords, "point_coords"), as_array(mask_input, "mask_input")
        prompts = self._prompts(*self._tensors(points, as_labels(point_labels), corners, masks))
        N, M, (H, W) = len(prompts), 3 if multimask_output else 1, self.original_size
        found = np.empty((N, M, H, W), np.float32 if return_logits else bool)
        outputs = []
        for chunk in chunks(N, min(max(LOGITS_AT_A_TIME // (M * H * W), 1), OBJECTS_AT_A_TIME)):
            logits, output = self.answer_in_frame(prompts.select(chunk), multimask_output)
            found[chunk] = (logits if return_logits else logits > self.model.mask_threshold).cpu().numpy()
            outputs.append(output)
        output = concatenated(outputs)
        return found, output.iou_predictions.cpu().numpy(), output.low_res_logits.cpu().numpy()

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        text: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predicts masks of N objects from tensors; prompts are in the input frame, where `transform` brings them.

        Args:
            point_coords: (N, K, 2) clicks (x, y).
            point_labels: (N, K) 1 for foreground, 0 for background, -1 for padding.
            boxes: (N, 4) xyxy.
            mask_input: (N, 1, h, w) low-resolution logits of an earlier prediction.
            multimask_output: three masks per object instead of one.
            return_logits: logits instead of bool masks.
            text: (N, E) embeddings of CLIP.

        Returns:
            Masks (N, M, H, W) bool or logits in the original frame, IoU predictions (N, M), and low-resolution logits
            (N, M, h, w), in float32 on the model's device.

        Raises:
            RuntimeError: before `set_image`.
            ValueError: for prompts of another shape, for NaN, and for unknown labels.
        """
        self._check_image_set()
        prompts = self._prompts(point_coords, point_labels, boxes, mask_input)
        if text is not None:
            alone = prompts.labels.shape[1] == 0
            prompts = text_prompts(text).with_mask(prompts.mask_logits) if alone else prompts.with_text(text)
        logits, output = self.answer_in_frame(prompts, multimask_output)
        masks = logits if return_logits else logits > self.model.mask_threshold
        return masks, output.iou_predictions, output.low_res_logits

    def decoder(self, *, points_per_batch: int = OBJECTS_AT_A_TIME) -> ImageDecoder:
        """Returns the decoder that `interact` takes, with prompts and masks in the original frame."""
        return ImageDecoder(self, points_per_batch=points_per_batch)

    def answer_in_frame(self, prompts: Prompts, multimask_output: bool) -> tuple[Tensor, SamOutput]:
        """Returns (N, M, H, W) logits in the original frame for prompts in the input frame, and the decoder's output."""
        output = self.answer(prompts, multimask_output)
        return self.to_original(output.low_res_logits), output

    @torch.no_grad()
    def answer(self, prompts: Prompts, multimask_output: bool) -> SamOutput:
        """Returns the decoder's output for prompts in the input frame, in float32 whatever the model's type is."""
        self._check_image_set()
        owner = torch.zeros(len(prompts), dtype=torch.int64, device=self.device)
        # a caller may assign `features`, as with segment_anything, or turn autocast on or off; then the cache is made again
        kind = self.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if self._cache is None or self._cache.source is not self.features or self._cache_dtype != autocast:
            self._cache, self._cache_dtype = self.model.projection_cache(self.features), autocast
        return as_float32(self.model.decode(self._cache, owner, prompts, multimask_output))

    @torch.no_grad()
    def to_original(self, low_res_logits_NMhw: Tensor) -> Tensor:
        """Returns (N, M, H, W) logits in the original frame."""
        return self.model.postprocess_masks(low_res_logits_NMhw, self.input_size, self.original_size)

    def get_image_embedding(self) -> Tensor:
        """Returns the embedding (1, C, g, g) of the image that is set; raises RuntimeError before `set_image`."""
        self._check_image_set()
        return self.features

    def embedding_shape(self, original_size: Size) -> tuple[int, int, int, int]:
        """Returns the shape that the embedding of an image of this size (H, W) has."""
        config = self.model.config
        return 1, config.prompt_dim, config.grid, config.grid

    def reset_image(self) -> None:
        """Forgets the image; its sizes can still be read, as in segment_anything."""
        self.is_image_set = False
        self.features = None
        self._cache = None

    def _check_image_set(self) -> None:
        if not self.is_image_set:
            raise RuntimeError("no image is set: call set_image(image) first")

    def _tensors(
        self,
        points: np.ndarray | None,
        labels: np.ndarray | None,
        boxes: np.ndarray | None,
        masks: np.ndarray | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Returns the arguments of `predict_torch` for arrays in the original frame."""
        size = self.original_size
        points = None if points is None else self.transform.apply_coords(points, size)
        boxes = None if boxes is None else self.transform.apply_boxes(boxes, size)
        return (
            self._tensor(points, torch.float32),
            self._tensor(labels, torch.int64),
            self._tensor(boxes, torch.float32),
            self._tensor(masks, torch.float32),
        )

    def _tensor(self, array: np.ndarray | None, dtype: torch.dtype) -> Tensor | None:
        return None if array is None else torch.as_tensor(np.asarray(array), dtype=dtype, device=self.device)

    def _prompts(
        self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
    ) -> Prompts:
        """Returns checked prompts, in the order of tokens that the decoder expects."""
        return make_prompts(
            points,
            labels,
            boxes,
            masks,
            mask_size=self.model.config.mask_size,
            mask_dtype=self.model.pixel_mean.dtype,
            device=self.device,
        )

    def _embedding(self, text: str | Any | None) -> Tensor | None:
        """Returns (1, E), the embedding of a sentence, or the one that is given."""
        if text is None:
            return None
        if not self.takes_text:
            raise ValueError("a text has no place in an image that is cut into tiles: use make_predictor(sam, frame='resize')")
        if isinstance(text, str):
            if self.clip is None:
                raise ValueError(f"the text {text!r} needs a CLIP: SamPredictor(sam, clip=load_clip(FILE))")
            return self.clip.to(self.device).embed_texts([text])
        return torch.as_tensor(text, dtype=torch.float32, device=self.device).reshape(1, -1)


def _one(array: np.ndarray | None) -> np.ndarray | None:
    """Returns the prompt of one object as that of a list of objects."""
    return None if array is None else array[None]


class ImageDecoder:
    """Answers prompts on the image that a predictor holds, all in the original frame; see `interact`.

    `points_per_batch` objects are decoded, and upscaled to the image's size, at a time. All tensors are on the predictor's
    device.
    """

    def __init__(self, predictor: SamPredictor, *, points_per_batch: int = OBJECTS_AT_A_TIME) -> None:
        self.predictor = predictor
        self.points_per_batch = points_per_batch

    def decode(self, prompts: Prompts, multimask_output: bool) -> SamOutput:
        """Returns low-resolution masks for prompts in the original frame."""
        predictor = self.predictor
        coords = predictor.transform.apply_coords_torch(prompts.coords, predictor.original_size)
        scaled = replace(prompts, coords=coords.to(predictor.device), labels=prompts.labels.to(predictor.device))
        rows = chunks(len(prompts), self.points_per_batch)
        return concatenated([predictor.answer(scaled.select(chunk), multimask_output) for chunk in rows])

    def to_frame(self, low_res_logits_N1hw: Tensor) -> Tensor:
        """Returns (N, 1, H, W) logits in the original frame."""
        N, M = low_res_logits_N1hw.shape[:2]
        frame = low_res_logits_N1hw.new_empty(N, M, *self.predictor.original_size)
        for chunk in chunks(N, self.points_per_batch):
            frame[chunk] = self.predictor.to_original(low_res_logits_N1hw[chunk])
        return frame


def chunks(count: int, size: int) -> Iterator[slice]:
    """Yields slices that cover `count` rows; a single empty slice if there are none."""
    for start in range(0, max(count, 1), size):
        yield slice(start, min(start + size, count))


def as_float32(output: SamOutput) -> SamOutput:
    """Returns the output in float32, which a model in bfloat16 or under autocast does not compute by itself."""
    return SamOutput(output.low_res_logits.float(), output.iou_predictions.float())


def concatenated(outputs: list[SamOutput]) -> SamOutput:
    """Returns the parts as one output."""
    return SamOutput(
        torch.cat([output.low_res_logits for output in outputs]),
        torch.cat([output.iou_predictions for output in outputs]),
    )
