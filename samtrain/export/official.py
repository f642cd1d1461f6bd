"""Asks Meta's `segment_anything` about an official `.pth`."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from samtrain.export.probe import Answer, Probe, Reading, ask
from samtrain.modeling.checkpoints import load_without_code
from samtrain.modeling.sam import SamConfig


def ask_segment_anything(path: Path, config: SamConfig, probe: Probe) -> Reading:
    """Returns the answers of `segment_anything.SamPredictor` with the weights of a file, which its strict loader reads."""
    from segment_anything import SamPredictor

    predictor = SamPredictor(segment_anything_model(config, load_without_code(path)))

    @torch.no_grad()
    def answer(points: Any, labels: Any, boxes: Any) -> Answer:
        size = predictor.original_size
        points = None if points is None else torch.tensor(predictor.transform.apply_coords(points, size)).float()
        boxes = None if boxes is None else torch.tensor(predictor.transform.apply_boxes(boxes, size)).float()
        labels = None if labels is None else torch.tensor(labels)
        masks, ious, low_res = predictor.predict_torch(points, labels, boxes, None, True, return_logits=True)
        return Answer(low_res.numpy(), ious.numpy(), masks.numpy())

    return ask(
        lambda: predictor.set_image(probe.image),
        {
            "clicks": lambda: answer(probe.points, probe.labels, None),
            "boxes": lambda: answer(None, None, probe.boxes),
            "one object": lambda: answer(probe.points[:1], probe.labels[:1], None),
        },
    )


def segment_anything_model(config: SamConfig, state: dict[str, torch.Tensor]) -> Any:
    """Returns Meta's model with a state dict in its layout, which it shares; its registry has only the paper's sizes."""
    from segment_anything import modeling as parts

    with torch.device("meta"):
        sam = parts.Sam(
            parts.ImageEncoderViT(
                img_size=config.image_size,
                patch_size=config.patch_size,
                embed_dim=config.encoder_dim,
                depth=config.encoder_depth,
                num_heads=config.encoder_heads,
                norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
                use_rel_pos=True,
                global_attn_indexes=config.global_attn_indexes,
                window_size=config.window_size,
                out_chans=config.prompt_dim,
            ),
            parts.PromptEncoder(
                embed_dim=config.prompt_dim,
                image_embedding_size=(config.grid, config.grid),
                input_image_size=(config.image_size, config.image_size),
                mask_in_chans=config.mask_in_chans,
            ),
            parts.MaskDecoder(
                transformer_dim=config.prompt_dim,
                transformer=parts.TwoWayTransformer(
                    depth=config.decoder_depth,
                    embedding_dim=config.prompt_dim,
                    num_heads=config.decoder_heads,
                    mlp_dim=config.decoder_mlp_dim,
                ),
                iou_head_hidden_dim=config.iou_head_dim,
            ),
        )
    sam.load_state_dict(OrderedDict(state), strict=True, assign=True)
    # buffers that files do not hold
    for name, values in (("pixel_mean", config.pixel_mean), ("pixel_std", config.pixel_std)):
        sam.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
    return sam.eval()
