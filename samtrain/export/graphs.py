"""Defines the parts of a model that are exported as graphs, with the inputs and outputs that other programs expect."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samtrain.modeling.image_tokens import ProjectionCache, PromptedImage
from samtrain.modeling.mask_decoder import NUM_MULTIMASK_OUTPUTS
from samtrain.modeling.sam import Sam
from samtrain.types import PointLabel, Prompts

MASK_TOKENS = range(NUM_MULTIMASK_OUTPUTS + 1)


class EncoderGraph(nn.Module):
    """Encodes normalised images: `input_image` (B, 3, S, S) to `image_embeddings` (B, C, g, g)."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = exportable(sam)

    def forward(self, input_image: Tensor) -> Tensor:
        """Returns the embeddings."""
        return self.sam.encode(input_image).contiguous()  # channels come last, and AOTInductor's decoder ignores strides


class DecoderGraph(nn.Module):
    """Decodes prompts on one image with the inputs of Meta's ONNX decoder, without its upscaling to the image's size.

    image_embeddings:  (1, C, g, g)
    point_coords:      (N, K, 2) float32, (x, y) in pixels of the network's input
    point_labels:      (N, K) float32: 1 on the object, 0 off it, 2 and 3 the corners of a box, -1 padding; without a box the
                       caller adds one padding point
    mask_input:        (1 or N, 1, h, w) low-resolution logits of an earlier answer; zeros without one
    has_mask_input:    (1,) 1 if there is one, else 0

    Returns `iou_predictions` (N, 4) and `low_res_masks` (N, 4, h, w): the single mask, then the three for ambiguous prompts.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = exportable(sam)

    def forward(
        self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor, mask_input: Tensor, has_mask_input: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns predicted IoUs and masks."""
        encoder, num_objects = self.sam.prompt_encoder, point_coords.shape[0]
        tokens = encoder.embed_tokens(Prompts(point_coords, point_labels.long()))

        # Blend the embedding of the mask with that of no mask, because a graph has no branches
        everywhere, detail, mix = encoder.embed_masks(Prompts(point_coords, point_labels, mask_input))
        assert detail is not None
        everywhere = has_mask_input * everywhere + (1 - has_mask_input) * encoder.no_mask_embed.weight
        # one mask may serve all objects
        rows = torch.arange(num_objects, device=mask_input.device).clamp(max=mask_input.shape[0] - 1)
        detail = (has_mask_input * detail).index_select(0, rows)

        # Decode
        cache = self.sam.projection_cache(image_embeddings)
        image = PromptedImage(cache, torch.zeros_like(rows), everywhere, detail, mix)
        output = self.sam.mask_decoder.predict(image, tokens, MASK_TOKENS)
        return output.iou_predictions, output.low_res_logits


class PromptGraph(nn.Module):
    """Decodes clicks for optimum and transformers.js, with a padding point added as transformers does.

    input_points:                (B, N, K, 2) float32, (x, y) in pixels of the network's input
    input_labels:                (B, N, K) int64
    image_embeddings:            (B, C, g, g)
    image_positional_embeddings: (B, C, g, g)

    Returns `iou_scores` (B, N, 3) and `pred_masks` (B, N, 3, h, w).
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = exportable(sam)

    def forward(
        self, input_points: Tensor, input_labels: Tensor, image_embeddings: Tensor, image_positional_embeddings: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns predicted IoUs and masks."""
        B, N = input_points.shape[:2]
        points = F.pad(input_points.flatten(0, 1), (0, 0, 0, 1))
        labels = F.pad(input_labels.flatten(0, 1), (0, 1), value=int(PointLabel.PADDING))
        tokens = self.sam.prompt_encoder.embed_tokens(Prompts(points, labels))
        owner = torch.arange(B, device=points.device)[:, None].expand(B, N).reshape(-1)
        everywhere = self.sam.prompt_encoder.no_mask_embed.weight
        cache = ProjectionCache(image_embeddings, image_positional_embeddings[:1])
        output = self.sam.mask_decoder.predict(PromptedImage(cache, owner, everywhere), tokens, MASK_TOKENS[1:])
        return output.iou_predictions.unflatten(0, (B, N)), output.low_res_logits.unflatten(0, (B, N))


def exportable(sam: Sam) -> Sam:
    """Returns a copy in float32 on the CPU, in evaluation mode and without gradients."""
    return copy.deepcopy(sam).float().cpu().eval().requires_grad_(False)


def example(graph: nn.Module) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    """Returns inputs to trace a graph with, and the names of the axes that may have any length, by input."""
    sam = graph.sam
    assert isinstance(sam, Sam)
    config = sam.config
    side, grid, mask, dim = config.image_size, config.grid, config.mask_size, config.prompt_dim
    if isinstance(graph, EncoderGraph):
        return {"input_image": torch.rand(2, 3, side, side)}, {"input_image": {0: "batch"}}
    if isinstance(graph, DecoderGraph):
        inputs = {
            "image_embeddings": torch.randn(1, dim, grid, grid),
            "point_coords": torch.rand(2, 5, 2) * side,
            "point_labels": torch.tensor([[1.0, 0.0, 2.0, 3.0, -1.0]] * 2),
            "mask_input": torch.randn(2, 1, mask, mask),
            "has_mask_input": torch.ones(1),
        }
        points = {0: "num_objects", 1: "num_points"}
        return inputs, {"point_coords": points, "point_labels": points, "mask_input": {0: "num_masks"}}
    inputs = {
        "input_points": torch.rand(2, 3, 4, 2) * side,
        "input_labels": torch.ones(2, 3, 4, dtype=torch.int64),
        "image_embeddings": torch.randn(2, dim, grid, grid),
        "image_positional_embeddings": torch.randn(2, dim, grid, grid),
    }
    points = {0: "batch_size", 1: "point_batch_size", 2: "nb_points_per_image"}
    batch = {0: "batch_size"}
    axes = {"input_points": points, "input_labels": points, "image_embeddings": batch, "image_positional_embeddings": batch}
    return inputs, axes
