"""The evaluation by clicks on a predictor with known answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from pretend_predictor import PretendPredictor, eroded, record_of, scene

from samtrain.data.shards import Record
from samtrain.evaluators.clicks import box_ious, click_ious, evaluate_clicks
from samtrain.inference.predictor import SamPredictor
from samtrain.modeling.sam import Sam, SamConfig
from samtrain.ops.rle import encode_mask

NAMES = {"miou_1", "oracle_miou_1", "miou_2", "miou_3", "miou_5", "box_miou"}


def records(count: int = 3, num: int = 4) -> Iterator[Record]:
    for seed in range(count):
        data, ext, annotation = record_of(seed, num)
        yield Record(f"scene_{seed}", ext, data, annotation, "made.tar")


def test_a_perfect_model_is_perfect_and_encodes_each_image_once() -> None:
    predictor = PretendPredictor(lambda whole, clicks: whole)
    metrics, rows = evaluate_clicks(predictor, records())
    assert set(metrics) == NAMES and all(value == 1 for value in metrics.values())
    assert predictor.encoded == 3 and len(rows) == 12


def test_metrics_are_the_means_of_the_rows() -> None:
    metrics, rows = evaluate_clicks(PretendPredictor(eroded(3)), records())
    assert metrics["miou_1"] < metrics["miou_2"] < metrics["miou_3"] < metrics["miou_5"] == 1
    for name, value in metrics.items():
        assert value == pytest.approx(np.mean([row[name.replace("miou", "iou")] for row in rows]))
    assert {row["key"] for row in rows} == {"scene_0", "scene_1", "scene_2"}
    assert all(row["area"] > 0 for row in rows)


def test_the_oracle_takes_the_best_of_three() -> None:
    class Misjudging(PretendPredictor):
        def decode(self, prompts, multimask_output):
            output = super().decode(prompts, multimask_output)
            output.iou_predictions = -output.iou_predictions  # the good mask gets the lowest predicted IoU
            return output

    metrics, _ = evaluate_clicks(Misjudging(lambda whole, clicks: whole), records())
    assert metrics["oracle_miou_1"] == 1 and metrics["miou_1"] == 0


def test_chunks_change_nothing_and_fewer_points_give_fewer_names() -> None:
    whole = evaluate_clicks(PretendPredictor(eroded(2)), records(), num_points=3)
    parts = evaluate_clicks(PretendPredictor(eroded(2)), records(), num_points=3, chunk=3)
    assert whole == parts
    assert set(whole[0]) == NAMES - {"miou_5"}


def test_max_masks_objects_per_image_are_drawn_by_seed() -> None:
    def objects(seed: int) -> list[tuple[str, int]]:
        _, rows = evaluate_clicks(PretendPredictor(eroded(1)), records(), max_masks=2, seed=seed)
        return [(row["key"], row["object"]) for row in rows]

    assert len(objects(0)) == 6 and objects(0) == objects(0)
    assert len({tuple(objects(seed)) for seed in range(4)}) > 1


def test_objects_without_pixels_are_left_out() -> None:
    data, ext, annotation = record_of(0, 1)
    empty = {"segmentation": encode_mask(np.zeros((64, 80), dtype=bool))}
    record = Record("a", ext, data, {**annotation, "annotations": [empty, *annotation["annotations"]]}, "made.tar")
    _, rows = evaluate_clicks(PretendPredictor(eroded(1)), [record])
    assert [row["object"] for row in rows] == [1]
    with pytest.raises(ValueError, match="no record to evaluate holds an object"):
        evaluate_clicks(PretendPredictor(eroded(1)), [])


BROKEN = {
    "RLE has size": {"segmentation": encode_mask(np.ones((3, 3), dtype=bool))},
    "an RLE is a mapping": {"segmentation": [[1, 2, 3, 4, 5, 6]]},
}


@pytest.mark.parametrize("complaint", [*BROKEN, "its image cannot be read"])
def test_a_broken_record_is_named_or_skipped(complaint: str, caplog: pytest.LogCaptureFixture) -> None:
    """The evaluation comes after hours of training: it names the record, and can continue without it."""
    good, bad = records(2)
    if complaint in BROKEN:
        objects = [good.annotation["annotations"][0], BROKEN[complaint] | {"id": 7}]
        bad = replace(bad, annotation={**bad.annotation, "annotations": objects})
    else:
        bad = replace(bad, image_bytes=b"no image")
    with pytest.raises(ValueError, match=f"made.tar, record scene_1: .*{complaint}.*on_error=skip"):
        evaluate_clicks(PretendPredictor(eroded(1)), [good, bad])
    _, rows = evaluate_clicks(PretendPredictor(eroded(1)), [bad, good], on_error="skip")
    assert {row["key"] for row in rows} == {"scene_0"}
    assert "Skipped a record: made.tar, record scene_1" in caplog.text


def test_it_runs_through_the_real_predictor() -> None:
    torch.manual_seed(0)
    config = SamConfig("tiny", 32, 2, 2, (1,), image_size=64, prompt_dim=32, decoder_heads=4, decoder_mlp_dim=32)
    predictor = SamPredictor(Sam(config).eval())
    metrics, rows = evaluate_clicks(predictor, records(1, num=2), num_points=2)
    assert set(metrics) == {"miou_1", "oracle_miou_1", "miou_2", "box_miou"}
    assert metrics["oracle_miou_1"] >= metrics["miou_1"] and len(rows) == 2


def test_there_is_one_score_per_object() -> None:
    image, masks = scene(0, num=3)
    predictor, masks_NHW = PretendPredictor(eroded(1)), torch.from_numpy(np.stack(masks))
    predictor.set_image(image)
    scores = click_ious(predictor, masks_NHW, 5) | box_ious(predictor, masks_NHW)
    assert {len(values) for values in scores.values()} == {3}
