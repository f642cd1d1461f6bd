"""Writes the folder of transformers' SamModel: weights, config.json, and the image processor's settings."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from samtrain.export.numpy_frame import network_input
from samtrain.export.probe import Answer, Probe, Reading, ask
from samtrain.files import write_bytes, write_text
from samtrain.modeling.checkpoints import CONFIG_KEY, EXPORT_CURE
from samtrain.modeling.sam import Sam, SamConfig
from samtrain.modeling.trained_on import KEY as TRAINED_ON
from samtrain.modeling.weights import transformers_state_dict

ENCODER_EPS = 1e-6  # of segment_anything's image encoder and of LayerNorm2d
DECODER_EPS = 1e-5  # of nn.LayerNorm, which segment_anything's decoder uses; transformers' default is 1e-6
BILINEAR = 2  # PIL.Image.Resampling.BILINEAR
MAX_VALUE = 255


def save_huggingface(sam: Sam, folder: str | Path, *, trained_on: Collection[str] = ()) -> Path:
    """Writes a folder that `SamModel.from_pretrained`, `SamProcessor.from_pretrained` and `load_sam` read.

    The tensors are float32. transformers always resizes images, so that it shows a model of `frame="native"` other pixels than
    its training did; use samtrain's predictor for these.

    Args:
        sam: the model, in any precision and on any device.
        folder: the folder to write; files of the same names in it are replaced.
        trained_on: digests of the images that the model was trained on (`images_trained_on`), stored in the metadata.

    Returns:
        The folder.

    Raises:
        ValueError: for an image encoder that SamModel does not have.
    """
    folder, state = Path(folder), transformers_state_dict(sam)
    metadata = {"format": "pt", CONFIG_KEY: json.dumps(sam.config.to_dict())}
    if trained_on:
        metadata[TRAINED_ON] = " ".join(sorted(trained_on))
    write_bytes(folder / "model.safetensors", save(state, metadata=metadata), EXPORT_CURE)
    write_processor(sam.config, folder)
    write_model_settings(sam.config, folder)
    return folder


def write_processor(config: SamConfig, folder: Path) -> None:
    """Writes the settings of SamProcessor, under the name that all versions of transformers and transformers.js read."""
    write_text(folder / "preprocessor_config.json", _text(processor_settings(config)), EXPORT_CURE)


def write_model_settings(config: SamConfig, folder: Path) -> None:
    """Writes config.json."""
    write_text(folder / "config.json", _text(model_settings(config)), EXPORT_CURE)


def model_settings(config: SamConfig) -> dict[str, Any]:
    """Returns the content of config.json for a model of these sizes."""
    sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
    return {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "torch_dtype": "float32",
        "vision_config": {
            **sizes,
            "model_type": "sam_vision_model",
            "hidden_size": config.encoder_dim,
            "num_hidden_layers": config.encoder_depth,
            "num_attention_heads": config.encoder_heads,
            "global_attn_indexes": list(config.global_attn_indexes),
            "window_size": config.window_size,
            "output_channels": config.prompt_dim,
            "num_pos_feats": config.prompt_dim // 2,
            "mlp_dim": 4 * config.encoder_dim,
            "layer_norm_eps": ENCODER_EPS,
        },
        "prompt_encoder_config": {
            **sizes,
            "model_type": "sam_prompt_encoder",
            "hidden_size": config.prompt_dim,
            "image_embedding_size": config.grid,
            "mask_input_channels": config.mask_in_chans,
            "layer_norm_eps": ENCODER_EPS,
        },
        "mask_decoder_config": {
            "model_type": "sam_mask_decoder",
            "hidden_size": config.prompt_dim,
            "num_hidden_layers": config.decoder_depth,
            "num_attention_heads": config.decoder_heads,
            "mlp_dim": config.decoder_mlp_dim,
            "iou_head_hidden_dim": config.iou_head_dim,
            "layer_norm_eps": DECODER_EPS,
        },
    }


def processor_settings(config: SamConfig) -> dict[str, Any]:
    """Returns the content of preprocessor_config.json: how SamProcessor resizes, normalises and pads images."""
    side, mask_side = config.image_size, config.mask_size
    return {
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"longest_edge": side},
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / MAX_VALUE,
        "do_normalize": True,
        "image_mean": [value / MAX_VALUE for value in config.pixel_mean],
        "image_std": [value / MAX_VALUE for value in config.pixel_std],
        "do_pad": True,
        "pad_size": {"height": side, "width": side},
        "mask_size": {"longest_edge": mask_side},
        "mask_pad_size": {"height": mask_side, "width": mask_side},
    }


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def ask_transformers(folder: Path, config: SamConfig, probe: Probe) -> Reading:
    """Returns the answers of `SamModel` and `SamProcessor` from a folder.

    The processor's resized pixels differ from PIL's by up to 1 of 255, so that the answers are given for the pixels of the
    paper, and once more, in `end_to_end`, for the processor's own.
    """
    from transformers import SamModel, SamProcessor

    model, processor = SamModel.from_pretrained(folder).eval(), SamProcessor.from_pretrained(folder)
    shown = torch.from_numpy(network_input(probe.image, config))
    embeddings = {}

    @torch.no_grad()
    def answer(objects: slice, use_boxes: bool, pixels: torch.Tensor | None) -> Answer:
        given = {"input_boxes": [probe.boxes[objects].tolist()]}
        if not use_boxes:
            given = {"input_points": [probe.points[objects].tolist()], "input_labels": [probe.labels[objects].tolist()]}
        inputs = processor(images=probe.image, return_tensors="pt", **given)
        pixels = inputs["pixel_values"] if pixels is None else pixels
        if id(pixels) not in embeddings:
            embeddings[id(pixels)] = model.get_image_embeddings(pixels)
        prompts = {name: inputs[name] for name in given}
        output = model(image_embeddings=embeddings[id(pixels)], **prompts)
        masks = processor.image_processor.post_process_masks(
            output.pred_masks, inputs["original_sizes"], reshaped_input_sizes=inputs["reshaped_input_sizes"], binarize=False
        )[0]
        return Answer(output.pred_masks[0].numpy(), output.iou_scores[0].numpy(), masks.numpy())

    @torch.no_grad()
    def set_image() -> None:
        embeddings[id(shown)] = model.get_image_embeddings(shown)

    reading = ask(
        set_image,
        {
            "clicks": lambda: answer(slice(None), False, shown),
            "boxes": lambda: answer(slice(None), True, shown),
            "one object": lambda: answer(slice(1), False, shown),
        },
    )
    return replace(reading, end_to_end={"clicks": answer(slice(None), False, None), "boxes": answer(slice(None), True, None)})
