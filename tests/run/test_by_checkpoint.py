"""Fine-tuning takes the settings that suit the checkpoint's size, and says so."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from tiny_training import TINY, tiny_sam

from samtrain.modeling.checkpoints import save_safetensors
from samtrain.run.by_checkpoint import say_what_follows
from samtrain.tasks import resolve

CONF = Path(__file__).resolve().parents[2] / "conf"
PAPER = {"num_points": 8, "num_mask_only": 2}
LAPTOP = {"num_points": 1, "num_mask_only": 0}


def composed(*overrides: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(compose("config", overrides=["+experiment=finetune", "run_dir=run", *overrides]))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Any:
    def save(model: str) -> str:
        path = tmp_path / f"{model}.safetensors"
        save_safetensors(tiny_sam(config=replace(TINY, model=model)), path)
        return f"checkpoint={path}"

    return save


def chosen(config: dict[str, Any]) -> dict[str, int]:
    return {key: config["prompts"][key] for key in PAPER}


def test_a_model_of_the_paper_keeps_the_papers_settings_on_a_laptop(checkpoint: Any) -> None:
    config = composed(checkpoint("vit_b"))
    assert chosen(config) == PAPER
    assert config["loss"]["resolution"] == "input" and config["loss"]["supervise_all_iou"] is False
    assert config["loader"]["flip_probability"] == 0.0
    assert config["optim"]["schedule"] == "step"


def test_a_small_model_keeps_the_laptops(checkpoint: Any) -> None:
    config = composed(checkpoint("vit_tiny"))
    assert chosen(config) == LAPTOP and config["loss"]["supervise_all_iou"] is True


def test_what_the_user_sets_counts(checkpoint: Any) -> None:
    config = composed(checkpoint("vit_b"), "prompts.num_points=3", "trainer.precision=bf16-mixed")
    assert chosen(config) == {"num_points": 3, "num_mask_only": 2}
    assert config["trainer"]["precision"] == "bf16-mixed"


def test_a_checkpoint_that_cannot_be_read_is_left_to_whoever_loads_it(tmp_path: Path) -> None:
    assert chosen(composed(f"checkpoint={tmp_path / 'none.pth'}")) == LAPTOP
    (tmp_path / "broken.pth").write_bytes(b"x")
    assert chosen(composed(f"checkpoint={tmp_path / 'broken.pth'}")) == LAPTOP


def test_the_log_says_what_was_chosen_and_warns_of_too_few_clicks(checkpoint: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    big = replace(TINY, model="vit_b")
    say_what_follows(composed(checkpoint("vit_b")), big)
    assert "vit_b of 32 pixels, one of the paper's size: it trains with prompts.num_points=8" in caplog.text
    assert "WARNING" not in caplog.text
    say_what_follows(composed(checkpoint("vit_b"), "prompts.num_points=1"), big)
    assert "with prompts.num_points=1 it forgets how to use more than 2" in caplog.text
