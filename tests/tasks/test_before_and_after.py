"""A fine-tuned model is measured beside the one that it started from, on its own images and on general ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from pretend_predictor import write_pool

from samtrain import tasks
from samtrain.data.image_set import records
from samtrain.evaluators.clicks import evaluate_clicks
from samtrain.inference.predictor import SamPredictor
from samtrain.modeling.build import build_sam, load_sam
from samtrain.modeling.checkpoints import save_safetensors

CONF = Path(__file__).resolve().parents[2] / "conf"


def test_a_fine_tuning_says_what_it_was_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    checkpoint = save_safetensors(build_sam("vit_tiny", image_size=48), tmp_path / "start.safetensors")
    own, test, general = (write_pool(tmp_path / name, 2, first=n) for n, name in enumerate(("own", "test", "general"), start=1))
    overrides = [
        "+experiment=finetune", f"checkpoint={checkpoint}", "data=sa1b", f"data.train.automatic.urls={own}", f"data.val={own}",
        f"data.test={test}", "data.seen_images=allow", f"evaluator.general={general}", "evaluator.num_points=2",
        "trainer.max_steps=1", "loader.batch_size=1", "trainer.images_per_step=1", "callbacks.panels=0",
        "callbacks.progress=false", "trainer.accelerator=cpu", "run_dir=run",
    ]  # fmt: skip
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = tasks.resolve(compose("config", overrides=overrides))
    (tmp_path / "run").mkdir()
    metrics = tasks.run(config, tmp_path / "run")
    assert metrics is not None and metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    for name, urls in (("test", test), ("general", general)):
        expected, _ = evaluate_clicks(SamPredictor(load_sam(checkpoint)), records(urls), num_points=2)
        assert {key: metrics[f"{name}/start_{key}"] for key in expected} == pytest.approx(expected)
        assert f"{name}/miou_1" in metrics
    assert "test, before this run" in (tmp_path / "run" / "report.html").read_text()
