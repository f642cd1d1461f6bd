"""The embeddings of a batch's objects, computed or stored, and the crops that they are computed from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import blobs

from samtrain.ops.crops import object_crops, without_background
from samtrain.text.config import TextConfig
from samtrain.text.crops import CropEmbedder, draw_crops
from samtrain.text.store import StoredCrops, TextStore


def square(top: int, left: int, side: int, size: tuple[int, int] = (40, 50)) -> torch.Tensor:
    mask = torch.zeros(*size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_a_crop_is_centred_on_its_object_and_enlarged() -> None:
    image = torch.zeros(3, 40, 50, dtype=torch.uint8)
    masks = torch.stack([square(10, 20, 8), square(12, 22, 4)])
    image[:, masks[0]] = 200
    crops, inside = object_crops(image, masks, 16, torch.tensor([2.0, 1.0]))
    # of twice the side: the object fills the middle, a quarter of the area
    assert inside[0].sum() == 64 and inside[0, 4:12, 4:12].all() and (crops[0][:, inside[0]] > 150).float().mean() > 0.8
    # tight: it fills everything
    assert inside[1].all() and (crops[1] == 200).all()


def test_what_lies_outside_of_the_image_is_black() -> None:
    image = torch.full((3, 40, 50), 255, dtype=torch.uint8)
    crops, inside = object_crops(image, square(0, 0, 8)[None], 16, torch.tensor([2.0]))
    assert (crops[0, :, :4, :] == 0).all() and (crops[0, :, :, :4] == 0).all() and (crops[0, :, 4:, 4:] == 255).all()
    assert inside[0].sum() == 64


def test_an_empty_mask_has_a_crop_without_an_object() -> None:
    nothing = torch.zeros(1, 9, 9, dtype=torch.bool)
    crops, inside = object_crops(torch.zeros(3, 9, 9, dtype=torch.uint8), nothing, 8, torch.ones(1))
    assert crops.shape == (1, 3, 8, 8) and not inside.any()


def test_the_background_is_zeroed_where_it_is_asked_for() -> None:
    crops, inside = torch.full((2, 3, 4, 4), 9, dtype=torch.uint8), torch.eye(4, dtype=torch.bool).repeat(2, 1, 1)
    found = without_background(crops, inside, torch.tensor([True, False]))
    assert found[0].sum() == 9 * 4 * 3 and torch.equal(found[1], crops[1])


def test_crops_are_drawn_as_the_paper_says() -> None:
    scale, zeroed = draw_crops(TextConfig(), 400, torch.Generator().manual_seed(0))
    assert 1 <= scale.min() < 1.1 and 1.9 < scale.max() <= 2 and 0.4 < zeroed.float().mean() < 0.6
    scale, zeroed = draw_crops(TextConfig(), 3, None)
    assert scale.tolist() == [1.5] * 3 and not zeroed.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"box_scale": (0.5, 2.0)}, "text.box_scale"),
        ({"zero_background": 2.0}, "text.zero_background"),
        ({"templates": ("a photo",)}, "text.templates"),
    ],
)
def test_settings_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextConfig(**settings)


def test_a_batch_is_embedded_image_by_image() -> None:
    pytest.importorskip("open_clip")
    from tests.tiny_clip import tiny_clip

    batch, clip = blobs(3), tiny_clip()
    embed = CropEmbedder(clip, TextConfig())
    found = embed(batch)
    alone = clip.embed_objects(batch.images[1], batch.masks[batch.image_index == 1])
    assert torch.allclose(found[batch.image_index == 1], alone, atol=1e-6)
    first, again, other = (embed(batch, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=1e-3)


def test_stored_embeddings_are_looked_up_by_image_and_object(tmp_path: Path) -> None:
    store, batch = TextStore(tmp_path, "clip"), blobs(0, counts=(2, 1))
    batch.objects = [[0, 3], [1]]
    for key in batch.keys:
        store.write(key, torch.nn.functional.normalize(torch.randn(4, 3, 6), dim=-1))
    found = StoredCrops(store)(batch)
    expected = [store.read(batch.keys[0])[0, 0], store.read(batch.keys[0])[3, 0], store.read(batch.keys[1])[1, 0]]
    assert torch.allclose(found, torch.stack(expected), atol=1e-3) and torch.allclose(found.norm(dim=1), torch.ones(3))
    drawn = StoredCrops(store)(batch, torch.Generator().manual_seed(1))
    assert drawn.shape == (3, 6) and not torch.equal(drawn, found)


def test_stored_embeddings_of_another_clip_or_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds none"):
        StoredCrops(TextStore(tmp_path))
    TextStore(tmp_path, "one").write("a/b", torch.ones(1, 1, 2))
    assert TextStore(tmp_path, "one").is_complete("a/b") and not TextStore(tmp_path, "two").is_complete("a/b")
    with pytest.raises(ValueError, match="of another CLIP"):
        TextStore(tmp_path, "two").read("a/b")
    with pytest.raises(ValueError, match="no embeddings of the image c"):
        TextStore(tmp_path).read("c")
