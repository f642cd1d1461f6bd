"""A frozen encoder encodes each image once, and the training stays the same."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_training import ListData, blobs, tiny_lit, tiny_sam, tiny_trainer

from samtrain.run import training
from samtrain.training.config import TrainerConfig
from samtrain.training.embedding_cache import EmbeddingCache

DECODER = ["mask_decoder.*"]
BATCHES = [blobs(0), blobs(1), blobs(0), blobs(1)]  # four images, each twice
VALIDATION = [blobs(2)]  # two images


def trained(folder: Path, cache: EmbeddingCache | None, seed: int = 0) -> tuple[dict[str, torch.Tensor], int]:
    """Returns the weights after four steps with a validation, and how many images were encoded."""
    lit = tiny_lit(sam=tiny_sam(seed), trainable=DECODER, embedding_cache=cache)
    encoded = 0

    def count(module: Any, inputs: tuple[torch.Tensor]) -> None:
        nonlocal encoded
        encoded += len(inputs[0])

    lit.sam.image_encoder.register_forward_pre_hook(count)
    trainer = tiny_trainer(
        folder, max_steps=4, callbacks=[], enable_checkpointing=False, plugins=[], val_check_interval=4, num_sanity_val_steps=0
    )
    trainer.fit(lit, ListData(BATCHES, VALIDATION))
    return {key: value.clone() for key, value in lit.sam.state_dict().items()}, encoded


def test_training_with_the_cache_equals_training_without_it(tmp_path: Path) -> None:
    expected, encoded = trained(tmp_path / "without", None)
    assert encoded == 8 + 2
    cache = tmp_path / "embeddings"
    found, encoded = trained(tmp_path / "with", EmbeddingCache(cache, torch.float32))
    assert encoded == 4 + 2 and len(list(cache.glob("*/*.safetensors"))) == 6
    again, encoded = trained(tmp_path / "again", EmbeddingCache(cache, torch.float32))
    assert encoded == 0
    for weights in (found, again):
        assert weights.keys() == expected.keys() and all(torch.equal(weights[key], expected[key]) for key in expected)
    start = dict(tiny_sam().named_parameters())
    assert not torch.equal(expected["mask_decoder.iou_token.weight"], start["mask_decoder.iou_token.weight"])


def test_float16_takes_half_the_space_and_is_shared_with_nothing_else(tmp_path: Path) -> None:
    sizes = {}
    for dtype in (torch.float16, torch.float32):
        _, encoded = trained(tmp_path / str(dtype), EmbeddingCache(tmp_path / "embeddings", dtype))
        assert encoded == 6
        (folder,) = (tmp_path / "embeddings").glob(f"*_{str(dtype).removeprefix('torch.')}_v*")
        sizes[dtype] = min(path.stat().st_size for path in folder.iterdir())
    assert sizes[torch.float16] < 0.6 * sizes[torch.float32]
    # another encoder shares nothing, either
    assert trained(tmp_path / "other", EmbeddingCache(tmp_path / "embeddings", torch.float32), seed=1)[1] == 6


def test_a_damaged_file_is_overwritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "embeddings"
    expected, _ = trained(tmp_path / "a", EmbeddingCache(cache, torch.float32))
    path = next(cache.glob("*/*.safetensors"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with caplog.at_level(logging.WARNING):
        found, encoded = trained(tmp_path / "b", EmbeddingCache(cache, torch.float32))
    assert encoded == 1 and f"{path} cannot be read as an embedding" in caplog.text and path.read_bytes() == whole
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_an_encoder_that_trains_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer.cache_embeddings is set and the image encoder trains.*optim.trainable"):
        tiny_lit(embedding_cache=EmbeddingCache(tmp_path, torch.float32))


@pytest.mark.parametrize(
    ("flip", "jitter", "native", "needed"),
    [
        (0.5, None, False, "set loader.flip_probability=0, or"),
        (0.0, [0.8, 1.2], True, "set loader.large_scale_jitter=null data.frame=resize, or"),
        (0.0, None, False, None),
    ],
)
def test_images_that_change_from_step_to_step_are_refused(
    tmp_path: Path, flip: float, jitter: list[float] | None, native: bool, needed: str | None
) -> None:
    config: Any = {"loader": {"batch_size": 1, "flip_probability": flip}, "data_dir": str(tmp_path)}
    request: Any = SimpleNamespace(large_scale_jitter=jitter, native=native, train=[])
    settings = TrainerConfig(cache_embeddings="float16")
    if needed is None:
        cache = training._embedding_cache(config, request, settings)
        assert cache is not None and cache.folder == tmp_path / "embeddings" and cache.dtype == torch.float16
    else:
        with pytest.raises(ValueError, match=needed):
            training._embedding_cache(config, request, settings)
    assert training._embedding_cache(config, request, TrainerConfig()) is None
