"""The detector: its input and output, its files, and its backbones."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from boxes_data import TINY, rectangles
from torchvision.models import resnet50

from samtrain.detector import DETECTORS, Detector, DetectorConfig, build_detector, load_detector, save_detector


@pytest.fixture(scope="module")
def tiny() -> Detector:
    return build_detector(**TINY)


@pytest.mark.parametrize("size", [(56, 64), (200, 90), (1, 40), (30, 3)])
def test_boxes_are_in_the_image_best_first(tiny: Detector, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    boxes, scores = tiny.detect(image, max_detections=20)
    assert boxes.dtype == scores.dtype == np.float32
    assert boxes.shape == (len(scores), 4) and 0 < len(scores) <= 20
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes[:, 2] <= size[1] + 1e-3).all() and (boxes[:, 3] <= size[0] + 1e-3).all()
    assert (np.diff(scores) <= 0).all() and 0 <= scores.min() <= scores.max() <= 1


def test_thresholds_shorten_the_list(tiny: Detector) -> None:
    image, _ = rectangles(0)
    boxes, scores = tiny.detect(image)
    few, best = tiny.detect(image, score_thresh=float(scores[4]), max_detections=3)
    assert np.array_equal(few, boxes[:3]) and np.array_equal(best, scores[:3])
    assert len(tiny.detect(image, score_thresh=float(scores[4]))[0]) == 5
    boxes, scores = tiny.detect(image, score_thresh=1.1)
    assert boxes.shape == (0, 4) and scores.shape == (0,)


def test_other_arrays_are_refused(tiny: Detector) -> None:
    for image in (np.zeros((5, 5), dtype=np.uint8), np.zeros((5, 5, 4), dtype=np.uint8), np.zeros((5, 5, 3))):
        with pytest.raises(ValueError, match="uint8"):
            tiny.detect(image)
    with pytest.raises(ValueError, match="max_detections"):
        tiny.detect(np.zeros((5, 5, 3), dtype=np.uint8), max_detections=1000)


def test_detection_uses_no_gradient_and_no_random_numbers(tiny: Detector) -> None:
    image, _ = rectangles(1)
    state = torch.get_rng_state()
    first, again = tiny.detect(image), tiny.detect(image)
    assert torch.equal(state, torch.get_rng_state())
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_weights_are_a_function_of_the_seed() -> None:
    state = torch.get_rng_state()
    one, same, other = (build_detector(**TINY, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_unknown_names_fields_and_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="detector.name.*small"):
        build_detector("smal")
    with pytest.raises(ValueError, match="widht"):
        build_detector("small", widht=3)
    with pytest.raises(ValueError, match="width of the small detector is 30: give a multiple of 8"):
        build_detector("small", width=30)
    with pytest.raises(ValueError, match="detector.backbone_weights"):
        build_detector("small", backbone_weights="resnet50.pth")


def test_images_without_objects_have_a_loss(tiny: Detector) -> None:
    image = torch.from_numpy(rectangles(3)[0]).permute(2, 0, 1)
    losses = tiny.losses([image, image], [torch.zeros(0, 4)] * 2)
    assert losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0
    assert losses["loss_objectness"] > 0 and losses["loss_classifier"] > 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in tiny.parameters())
    tiny.zero_grad(set_to_none=True)


# ---- files


def test_a_file_restores_the_same_detector(tiny: Detector, tmp_path: Path) -> None:
    path, again = save_detector(tiny, tmp_path / "a.pth"), save_detector(tiny, tmp_path / "b" / "c.pth")
    assert path.read_bytes() == again.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "b"]
    loaded = load_detector(path)
    assert loaded.config == tiny.config and not loaded.training
    image, _ = rectangles(0)
    assert all(np.array_equal(a, b) for a, b in zip(loaded.detect(image), tiny.detect(image), strict=True))


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_file_with_code_is_refused_and_not_run(tiny: Detector, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    content = {"detector_config": tiny.config.to_dict(), "state_dict": tiny.state_dict(), "extra": Malicious(trace)}
    torch.save(content, tmp_path / "zipped.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(trace)))
    for name in ("zipped.pth", "plain.pth"):
        with pytest.raises(ValueError, match=f"{name} .*detector.init"):
            load_detector(tmp_path / name)
    assert not trace.exists()


def test_other_files_are_refused_by_name(tiny: Detector, tmp_path: Path) -> None:
    whole = save_detector(tiny, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:5000])
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    fewer = dict(list(tiny.state_dict().items())[1:])
    torch.save({"detector_config": tiny.config.to_dict(), "state_dict": fewer}, tmp_path / "fewer.pth")
    torch.save({"detector_config": {"name": "small"}, "state_dict": fewer}, tmp_path / "config.pth")
    for name, words in [
        ("none.pth", "does not exist"),
        ("cut.pth", "cut short"),
        ("other.pth", "holds no detector"),
        ("fewer.pth", "damaged"),
    ]:
        with pytest.raises(ValueError, match=f"{name} .*detector.init|{words}") as error:
            load_detector(tmp_path / name)
        assert words in str(error.value) and name in str(error.value) and "detector.init" in str(error.value)
    with pytest.raises(ValueError, match="config.pth.*detector.init.*head_dim"):
        load_detector(tmp_path / "config.pth")


@pytest.mark.parametrize("name", DETECTORS)
def test_configs_survive_a_round_trip(name: str) -> None:
    config = DETECTORS[name]
    assert DetectorConfig.from_dict(config.to_dict()) == config
    assert config.name == name


# ---- ResNet


def test_resnet_starts_from_a_file_of_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    donor = resnet50(weights=None)
    torch.save(donor.state_dict(), tmp_path / "resnet50.pth")
    small: dict[str, Any] = {"image_size": 64, "width": 16, "head_dim": 16, "proposals": (20, 20)}
    detector = build_detector("resnet50_fpn", backbone_weights=tmp_path / "resnet50.pth", **small)
    body = detector.net.backbone.body
    assert torch.equal(body.layer3[0].conv1.weight, donor.layer3[0].conv1.weight)
    assert [p.requires_grad for p in (body.conv1.weight, body.layer1[0].conv1.weight, body.layer2[0].conv1.weight)] == [
        False, False, True,
    ]  # fmt: skip
    image, _ = rectangles(0)
    assert len(detector.detect(image)[0]) > 0
    assert load_detector(save_detector(detector, tmp_path / "d.pth")).config.norm == "frozen_batch"
    torch.save({"conv1.weight": donor.conv1.weight}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match="half.pth.*detector.backbone_weights"):
        build_detector("resnet50_fpn", backbone_weights=tmp_path / "half.pth", **small)
    with pytest.raises(ValueError, match="does not exist .detector.backbone_weights"):
        build_detector("resnet50_fpn", backbone_weights=tmp_path / "none.pth", **small)


def test_resnet_with_random_weights_has_a_loss(tmp_path: Path) -> None:
    detector = build_detector("resnet50_fpn", image_size=64, width=16, head_dim=16, proposals=(20, 20))
    image = torch.from_numpy(rectangles(0)[0]).permute(2, 0, 1)
    losses = detector.losses([image, image], [torch.tensor([[2.0, 3, 20, 30]]), torch.zeros(0, 4)])
    assert len(losses) == 4 and all(torch.isfinite(value) for value in losses.values())
