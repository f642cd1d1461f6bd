"""What sentences find: masks ranked by CLIP, several sentences at once, and nothing where nothing fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_training import tiny_sam

pytest.importorskip("open_clip")

from samtrain import SamAutomaticMaskGenerator, SamPredictor, SamTextGenerator, load_clip  # noqa: E402
from samtrain.inference.frames import make_predictor  # noqa: E402
from samtrain.modeling.growth import with_text  # noqa: E402
from samtrain.ops.rle import decode_rle  # noqa: E402
from tests.colour_clip import COLOURS, PLACES, SIDE, ColourClip, image, truth  # noqa: E402
from tests.colour_sam import ColourSam  # noqa: E402
from tests.tiny_clip import tiny_clip_folder  # noqa: E402


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.fixture(scope="module")
def finder() -> SamTextGenerator:
    sam = ColourSam().eval()
    return SamTextGenerator(sam, ColourClip(), generator=SamAutomaticMaskGenerator(sam, points_per_side=12), text_thresh=0.6)


@pytest.mark.parametrize("name", COLOURS)
def test_a_sentence_finds_its_object(finder: SamTextGenerator, name: str) -> None:
    found = finder.generate(image(), [f"a {name} square"])
    best = max(found, key=lambda each: iou(each["segmentation"], truth(name)))
    assert iou(best["segmentation"], truth(name)) > 0.8
    for each in found:
        assert each["text"] == f"a {name} square" and each["text_score"] > 0.6
        assert (each["segmentation"] & truth(name)).sum() > 0.7 * each["area"]
    x, _, width, _ = best["bbox"]
    assert abs(x - PLACES[name][1]) <= 3 and abs(width - SIDE) <= 5 and best["area"] == best["segmentation"].sum()


def test_several_sentences_share_one_encoding(finder: SamTextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = finder.generator.predictor.model.encode
    monkeypatch.setattr(finder.generator.predictor.model, "encode", lambda images: calls.append(len(images)) or encode(images))
    found = finder.generate(image(), ["red", "blue"])
    assert {each["text"] for each in found} == {"blue", "red"} and calls == [1]
    scores = [each["text_score"] for each in found]
    assert scores == sorted(scores, reverse=True)


def test_one_mask_is_not_found_by_two_sentences(finder: SamTextGenerator) -> None:
    found = finder.generate(image(), ["red", "a red thing", "red or blue"])
    boxes = [tuple(each["bbox"]) for each in found]
    assert len(boxes) == len(set(boxes)) and found[0]["text"] in ("red", "a red thing")


def test_nothing_is_an_answer(finder: SamTextGenerator) -> None:
    assert finder.generate(image(), ["something violet"]) == [] and finder.generate(image(), []) == []
    with pytest.raises(ValueError, match="give a list of sentences"):
        finder.generate(image(), "red")


def test_rles_are_the_same_masks(finder: SamTextGenerator) -> None:
    sam = finder.generator.predictor.model
    rles = SamTextGenerator(
        sam, ColourClip(), text_thresh=0.6, generator=SamAutomaticMaskGenerator(sam, points_per_side=12, output_mode="coco_rle")
    )
    masks, found = finder.generate(image(), ["green"]), rles.generate(image(), ["green"])
    assert masks and len(masks) == len(found)
    for mask, rle in zip(masks, found, strict=True):
        assert np.array_equal(mask["segmentation"], decode_rle(rle["segmentation"]))


def test_a_trained_model_is_prompted(tmp_path: Path) -> None:
    sam, clip = with_text(tiny_sam().eval(), 24), load_clip(tiny_clip_folder(tmp_path / "clip"))
    found = SamTextGenerator(sam, clip, candidates="text", text_thresh=-1.0).generate(image(), ["red", "a blue band"])
    assert 1 <= len(found) <= 2
    predictor = SamPredictor(sam, clip=clip)
    predictor.set_image(image())
    for each in found:
        masks, _, _ = predictor.predict(text=each["text"])
        assert any(np.array_equal(each["segmentation"], mask) for mask in masks)
    with pytest.raises(ValueError, match="takes no text prompts"):
        SamTextGenerator(tiny_sam().eval(), clip, candidates="text")


def test_predict_takes_a_text_alone_and_beside_clicks_and_boxes(tmp_path: Path) -> None:
    sam, clip = with_text(tiny_sam().eval(), 24), load_clip(tiny_clip_folder(tmp_path / "clip"))
    predictor = SamPredictor(sam, clip=clip)
    predictor.set_image(image())
    alone, ious, low_res = predictor.predict(text="red")
    assert alone.shape == (3, 90, 100) and ious.shape == (3,) and low_res.shape[0] == 3
    by_embedding, _, _ = predictor.predict(text=clip.embed_texts(["red"])[0])
    assert np.array_equal(alone, by_embedding)
    click = {"point_coords": [[20, 20]], "point_labels": [1], "return_logits": True}
    assert not np.allclose(predictor.predict(**click)[0], predictor.predict(**click, text="red")[0])
    assert predictor.predict(box=[3, 3, 40, 40], text="red", multimask_output=False)[0].shape == (1, 90, 100)
    again, _, _ = predictor.predict(text="red", mask_input=low_res[:1], multimask_output=False)
    assert again.shape == (1, 90, 100)


def test_errors_of_predict_say_what_is_missing(tmp_path: Path) -> None:
    predictor = SamPredictor(tiny_sam().eval())
    predictor.set_image(image())
    with pytest.raises(ValueError, match="needs a CLIP"):
        predictor.predict(text="red")
    predictor.clip = load_clip(tiny_clip_folder(tmp_path / "clip"))
    with pytest.raises(ValueError, match="takes no text prompts"):
        predictor.predict(text="red")
    tiled = make_predictor(with_text(tiny_sam().eval(), 24), frame="native")
    tiled.set_image(image())
    with pytest.raises(ValueError, match="cut into tiles"):
        tiled.predict(text="red")
