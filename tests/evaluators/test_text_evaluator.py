"""Text to mask is measured against wrong texts, clicks and ranked masks, on a model that paints the colour it is told."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("open_clip")

from samtrain.data.shards import Record  # noqa: E402
from samtrain.evaluators import Text  # noqa: E402
from samtrain.evaluators.config import ZeroShotConfig  # noqa: E402
from samtrain.ops.rle import encode_mask  # noqa: E402
from samtrain.text.names import unique_names  # noqa: E402
from samtrain.types import PointLabel, Prompts, SamOutput  # noqa: E402
from tests.colour_clip import COLOURS, PLACES, SIDE, ColourClip, image, truth  # noqa: E402

GREY = 3  # what a text that names no colour is answered with


class Painter:
    """A predictor and its decoder: three masks for a text or a click; the second is right, the third has the highest IoU."""

    device = torch.device("cpu")

    def __init__(self, text_dim: int) -> None:
        self.model = SimpleNamespace(config=SimpleNamespace(text_dim=text_dim), mask_threshold=0.0)

    def set_image(self, pixels: np.ndarray) -> None:
        centred = pixels.astype(int) - pixels.mean(axis=2, keepdims=True)
        self.colour_HW = torch.from_numpy(np.where(np.abs(centred).max(axis=2) > 20, centred.argmax(axis=2), GREY))

    def decoder(self) -> Painter:
        return self

    def decode(self, prompts: Prompts, multimask_output: bool) -> SamOutput:
        masks = []
        for n in range(len(prompts)):
            if int(prompts.labels[n, 0]) == PointLabel.TEXT:
                assert prompts.text is not None
                colour = int(prompts.text[n].argmax()) if prompts.text[n].any() else GREY
            else:
                x, y = prompts.coords[n, 0].long().tolist()
                colour = int(self.colour_HW[y, x])
            right = (self.colour_HW == colour).float() * 2 - 1
            masks.append(torch.stack([-right, right, torch.full_like(right, 1.0)]))
        return SamOutput(torch.stack(masks), torch.tensor([[0.1, 0.6, 0.7]]).repeat(len(prompts), 1))

    def to_frame(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


class Squares:
    """The automatic masks: all squares, and the whole image."""

    def generate(self, pixels: np.ndarray) -> list[dict[str, Any]]:
        masks = [truth(name) for name in PLACES] + [np.ones(pixels.shape[:2], bool)]
        return [{"segmentation": mask, "predicted_iou": 0.9} for mask in masks]


def record(key: str, names: dict[str, str], field: str = "caption") -> Record:
    stream = io.BytesIO()
    Image.fromarray(image()).save(stream, "png")
    annotations = [
        {"id": i, "segmentation": encode_mask(truth(colour)), field: name} for i, (colour, name) in enumerate(names.items())
    ]
    size = {"width": 100, "height": 90, "image_id": 1, "file_name": "a.png"}
    return Record(key, "png", stream.getvalue(), {"image": size, "annotations": annotations}, f"{key}.tar")


def evaluator(text_dim: int = 3, **settings: Any) -> Text:
    made = Text(ZeroShotConfig(protocol="text"), make_clip=ColourClip, **settings)
    made.predictor, made.generator, made.clip = Painter(text_dim), Squares(), ColourClip()  # type: ignore[assignment]
    return made


ALL = {name: f"a {name} square" for name in COLOURS}


def test_right_and_wrong_texts() -> None:
    rows = evaluator().rows(record("one", ALL))
    assert [row["name"] for row in rows] == list(ALL.values()) and [row["area"] for row in rows] == [SIDE * SIDE] * 3
    for row in rows:
        assert row["iou"] == row["oracle_iou"] == row["ranked_iou"] == row["ranked_oracle_iou"] == 1
        assert row["head_iou"] == pytest.approx(SIDE * SIDE / 9000)  # the highest predicted IoU is that of the whole image
        assert row["other_iou"] == 0 and row["alone"] is False
        assert row["click_iou"] == row["with_click_iou"] == row["head_iou"]


def test_the_text_of_another_image_is_one_that_this_image_has_not() -> None:
    measured = evaluator()
    (first,) = measured.rows(record("one", {"red": "a red square"}))
    assert first["alone"] and first["foreign_oracle_iou"] < 1  # there was no image before it
    (second,) = measured.rows(record("two", {"blue": "a blue square"}))
    # prompted by red: the blue square is not painted, and CLIP chooses by the right text among what is
    assert second["foreign_oracle_iou"] == pytest.approx(SIDE * SIDE / 9000, abs=0.02)


def test_only_names_that_are_unique_in_their_image_count() -> None:
    names = {"red": "a square", "green": "a square", "blue": "a blue square"}
    assert unique_names(record("one", names).annotation["annotations"]) == {2: "a blue square"}
    (row,) = evaluator().rows(record("one", names))
    assert row["object"] == 2 and row["alone"]
    assert evaluator().rows(record("one", dict.fromkeys(COLOURS, "a square"))) == []


def test_category_names_are_put_into_sentences() -> None:
    seen: list[str] = []

    class Listening(ColourClip):
        def embed_texts(self, texts: Any) -> torch.Tensor:
            seen.extend(texts)
            return super().embed_texts(texts)

    measured = evaluator(templates=["a photo of a {}", "the {}"])
    measured.clip = Listening()
    rows = measured.rows(record("one", {"red": "red_panel", "blue": "blue"}, "category_name"))
    assert [row["iou"] for row in rows] == [1, 1]
    assert seen[:4] == ["a photo of a red panel", "the red panel", "a photo of a blue", "the blue"]


def test_a_model_without_text_prompts_has_the_ranking_alone() -> None:
    rows = evaluator(text_dim=0).rows(record("one", ALL))
    assert all(row["ranked_iou"] == 1 and "iou" not in row for row in rows)
    summary = evaluator(text_dim=0).summary(rows)
    assert summary["text_ranked_miou"] == summary["text_ranked_recall"] == 1 and "text_miou" not in summary


def test_the_summary_leaves_objects_without_neighbours_out_of_their_control() -> None:
    measured = evaluator()
    rows = measured.rows(record("one", {"red": "a red square", "blue": "a blue square"}))
    rows += measured.rows(record("two", {"green": "a green square"}))
    summary = measured.summary(rows)
    assert summary["objects"] == 3 and summary["images"] == 2 and summary["text_miou"] == 1
    assert summary["text_other_miou"] == 0  # of two objects, not of three
    assert summary["text_miou_low"] <= summary["text_miou"] <= summary["text_miou_high"]


def test_a_panel_shows_right_and_wrong_text() -> None:
    rows = evaluator().panels(record("one", ALL))
    assert len(rows) == 3 and all(len(tiles) == 3 for tiles in rows)
    assert evaluator(text_dim=0).panels(record("one", ALL)) == []
