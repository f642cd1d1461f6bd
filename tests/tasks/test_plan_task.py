"""Tests what task=plan says: the cost of what trains, on which devices, for how many steps and for what price."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from samtrain import tasks

CONF = Path(__file__).resolve().parents[2] / "conf"


def run(run_dir: Path, *overrides: str) -> dict[str, float | None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = tasks.resolve(compose("config", overrides=["task=plan", "plan.masks=[4]", *overrides]))
    run_dir.mkdir(exist_ok=True)
    return tasks.run(config, run_dir) or {}


def test_a_frozen_encoder_costs_less(tmp_path: Path) -> None:
    whole = run(tmp_path)
    decoder = run(tmp_path, "optim.trainable=[mask_decoder.*]")
    for name in ("plan/memory_gb", "plan/tflop_per_image", "plan/hours"):
        assert decoder[name] < 0.8 * whole[name], name
    # cached embeddings leave out the encoder's work; LoRA brings back most of what freezing it has saved
    cached = run(tmp_path, "optim.trainable=[mask_decoder.*]", "trainer.cache_embeddings=float16")
    assert cached["plan/tflop_per_image"] < 0.9 * decoder["plan/tflop_per_image"]
    lora = run(tmp_path, "optim.trainable=[mask_decoder.*]", "optim.lora={rank:2}")
    assert decoder["plan/tflop_per_image"] < lora["plan/tflop_per_image"] < 1.1 * whole["plan/tflop_per_image"]
    assert decoder["plan/memory_gb"] < lora["plan/memory_gb"] < 1.1 * whole["plan/memory_gb"]


def test_it_names_devices_and_steps_and_multiplies_hours_and_prices(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="samtrain")
    given = ["trainer.devices=4", "trainer.num_nodes=2", "trainer.images_per_step=32", "trainer.max_steps=1000"]
    found = run(tmp_path, *given, "plan.device=a100", "plan.price_per_hour=2.5")
    assert found["plan/device_hours"] == pytest.approx(8 * found["plan/hours"])
    assert found["plan/price"] == pytest.approx(2.5 * found["plan/device_hours"])
    assert "all parts train: 1000 steps of 32 images in 32-true on 8 x a100 with 80 GB" in caplog.text
    assert "price" in capsys.readouterr().out
    assert "plan/price" not in run(tmp_path, "optim.trainable=[mask_decoder.*]")
    assert "only ['mask_decoder.*'] train" in caplog.text
    assert "price" not in capsys.readouterr().out


@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_no_word_of_the_table_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    run(tmp_path, "plan.price_per_hour=3")
    words = capsys.readouterr().out.replace("│", " ").replace("┃", " ").split()
    for word in ("checkpointing", "objects", "memory", "images/s", "GPU-hours", "TFLOP", "device", "price"):
        assert word in words, (width, word)
    assert "…" not in "".join(words)


def test_a_price_below_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plan.price_per_hour is -1.0: give what a device costs per hour"):
        run(tmp_path, "plan.price_per_hour=-1.0")
