"""Writes the page that lies beside exported files: what the model is, how each file is read, how well they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from samtrain.modeling.sam import PAPER_MODELS, SamConfig

if TYPE_CHECKING:
    from samtrain.export.run import Checked

OFFICIAL_SIZE = 1024  # segment_anything/build_sam.py

_HEAD = """---
library_name: transformers
pipeline_tag: mask-generation
tags: [segment-anything, samtrain]
---

# A Segment Anything model, exported by samtrain

| | |
|---|---|
{facts}

## Files

Every file was read back by the program in the table and asked for masks of three objects on one image. "Error" is the largest
difference from samtrain's logits, as a share of the largest logit. The seconds were measured on a CPU, for the image and
for all prompts together.

| format | read by | error | smallest mask IoU | image, s | prompts, s |
|---|---|---|---|---|---|
{rows}

## How images are shown to the model

The longest side is resized to {side} pixels (bilinear, as PIL does it). Each channel of R, G, B (0 to 255) is normalised with
the mean {mean} and the standard deviation {std}, and zeros fill the square at the bottom and on the right.
Points are (x, y) in pixels of the resized image.
{frame}
{usage}"""
_NATIVE = """
The model was trained on crops of {side} x {side} native pixels. Programs that resize a larger image show it something else: cut
images into tiles of that size first, or use `samtrain.SamPredictor`, which does so.
"""
_USAGE = {
    "official": """## official

```python
{official}
predictor = SamPredictor(sam)
```
""",
    "safetensors": """## safetensors

```python
import samtrain

predictor = samtrain.SamPredictor(samtrain.load_sam("model.safetensors"))
```
""",
    "huggingface": """## huggingface

```python
from transformers import SamModel, SamProcessor, pipeline

model, processor = SamModel.from_pretrained("huggingface"), SamProcessor.from_pretrained("huggingface")
generator = pipeline("mask-generation", model="huggingface")
```
""",
    "onnx": """## onnx

`encoder.onnx` takes {encoder_input}. `decoder.onnx` has the inputs and outputs of Meta's exporter and answers with four
masks: the single one, then three for ambiguous prompts. `decoder_single_mask.onnx` chooses one; `decoder_low_res.onnx` lacks
the upscaling to the image's size, for TensorRT. Weights of more than 2 GB lie in a second file, `.onnx.data`, beside the first.

```python
import numpy as np, onnxruntime
from PIL import Image

image = Image.open(IMAGE).convert("RGB")
scale = {side} / max(image.size)
size = [max(int(length * scale + 0.5), 1) for length in image.size]  # (width, height)
pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32)
{shown}
(embeddings,) = onnxruntime.InferenceSession("onnx/encoder.onnx").run(None, {"input_image": shown})
decoder = onnxruntime.InferenceSession("onnx/decoder.onnx")
middle = np.array([[size[0] / 2, size[1] / 2], [0, 0]], np.float32)  # a click, and the padding point that stands for "no box"
masks, ious, low_res = decoder.run(None, {
    "image_embeddings": embeddings,
    "point_coords": middle[None],
    "point_labels": np.array([[1, -1]], np.float32),
    "mask_input": np.zeros((1, 1, {mask}, {mask}), np.float32),
    "has_mask_input": np.zeros(1, np.float32),
    "orig_im_size": np.array(image.size[::-1], np.float32),
})
mask = masks[0, 1:][ious[0, 1:].argmax()] > 0
```
""",
    "optimum": """## optimum

The folder `optimum` is what transformers.js loads: `SamModel.from_pretrained("optimum", {dtype: "fp32"})`. The pair answers
clicks; boxes need the files in `onnx`.
""",
    "torch_export": """## torch_export

```python
import torch

encoder = torch.export.load("torch_export/encoder.pt2").module()  # normalised (B, 3, {side}, {side}) images to embeddings
decoder = torch.export.load("torch_export/decoder.pt2").module()  # Meta's inputs without orig_im_size, as keywords
```
""",
    "aotinductor": """## aotinductor

Compiled for the processor that wrote them; inputs and outputs are those of `torch_export`. Inputs must be contiguous
(`tensor.contiguous()`): the library does not look at strides, and answers wrongly without a word.

```python
import torch

encoder = torch._inductor.aoti_load_package("aotinductor/encoder.pt2")
decoder = torch._inductor.aoti_load_package("aotinductor/decoder.pt2")
```
""",
}
_REGISTRY = """from segment_anything import SamPredictor, sam_model_registry

sam = sam_model_registry["{model}"](checkpoint="model.pth")"""
_NO_REGISTRY = """from segment_anything import SamPredictor
from samtrain.export.official import segment_anything_model  # the registry has only ViT-B, L and H of 1024 pixels
from samtrain.modeling.checkpoints import load_without_code
import samtrain

sam = segment_anything_model(samtrain.load_sam("model.pth").config, load_without_code("model.pth"))"""


_SHOWN = {
    "normalised": """shown = np.zeros((1, 3, {side}, {side}), np.float32)
shown[0, :, : size[1], : size[0]] = ((pixels - np.float32({mean})) / np.float32({std})).transpose(2, 0, 1)""",
    "pixels": "shown = pixels",
}
_ENCODER_INPUT = {
    "normalised": "(B, 3, S, S) float32 images that are resized, normalised and padded",
    "pixels": "one resized image, (H, W, 3) float32 of 0 to 255; normalising and padding are part of the file",
}


def model_card(config: SamConfig, checked: Sequence[Checked], facts: Mapping[str, Any], onnx_input: str) -> str:
    """Returns the page in Markdown, with the header that the Hugging Face Hub reads."""
    sizes = f"{config.encoder_depth} blocks of width {config.encoder_dim}, input of {config.image_size} pixels"
    described = {"model": f"{config.model}: {sizes}", **facts}
    rows = [
        f"| {each.product.name} | {each.product.program} | {each.agreement.logit_error:.1e} | {each.agreement.mask_iou:.4f} "
        f"| {each.image_seconds:.2f} | {each.prompt_seconds:.2f} |"
        for each in checked
    ]
    in_registry = config.model in PAPER_MODELS and config.image_size == OFFICIAL_SIZE
    numbers = {"side": config.image_size, "mean": list(config.pixel_mean), "std": list(config.pixel_std)}
    values = {
        "official": (_REGISTRY if in_registry else _NO_REGISTRY).replace("{model}", config.model),
        "shown": _SHOWN[onnx_input],
        "encoder_input": _ENCODER_INPUT[onnx_input],
        "mask": config.mask_size,
        **numbers,
    }
    names = list(dict.fromkeys(each.product.name.split()[0] for each in checked))
    return _HEAD.format(
        facts="\n".join(f"| {name} | {value} |" for name, value in described.items()),
        rows="\n".join(rows),
        **numbers,
        frame=_NATIVE.format(side=config.image_size) if config.frame == "native" else "",
        usage="\n".join(_filled(_USAGE[name], values) for name in names),
    )


def _filled(text: str, values: Mapping[str, Any]) -> str:
    """Returns the text with each {name} replaced; code keeps its other braces."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text
