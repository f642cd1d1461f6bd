"""`task=plan`: what fits into a device's memory, and how long the training would take, before anything is run."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from samtrain.modeling.sam import SamConfig
from samtrain.run.build import Config, make_loss, make_prompts, recipe_of, sam_config_of
from samtrain.run.directory import Metrics, write_metrics
from samtrain.run.training import num_devices
from samtrain.training.plan import DEVICES, Device, StepCost, step_cost

log = logging.getLogger(__name__)

MARGIN = 1.15  # allocators hold more than what is alive: a guess for GPUs; glibc held up to 1.9 times as much


def run(config: Config, run_dir: Path) -> Metrics:
    """Print a table of objects an image, with and without activation checkpointing; returns the config's own figures."""
    device = device_of_plan(config)
    model = sam_config_of(config)
    own = config["loader"]["max_masks"], config["trainer"]["activation_checkpointing"]
    asked = {(masks, checkpointing) for masks in config["plan"]["masks"] for checkpointing in (False, True)} | {own}
    costs = {each: cost_of(config, model, device, *each) for each in sorted(asked)}
    hours = {each: hours_of(config, model, device, cost) for each, cost in costs.items()}

    batch, precision = config["loader"]["batch_size"], config["trainer"]["precision"]
    title = f"{model.model}, {model.image_size} px, {batch} images at once, {precision}"
    table = Table(title=f"{title}, {device.memory_gb:g} GB", title_justify="left")
    for name in ("objects", "checkpointing", "memory GB", "fits", "TFLOP an image", "images/s a device", "hours of the run"):
        table.add_column(name, justify="right", overflow="fold")
    for each, cost in costs.items():
        memory = cost.memory_gb * MARGIN
        speed = device.tflops / cost.tflop * batch
        texts = [str(each[0]), "yes" if each[1] else "no", f"{memory:.1f}", "yes" if memory <= device.memory_gb else "no"]
        texts += [f"{cost.tflop / batch:.3g}", f"{speed:.3g}", f"{hours[each]:.3g}"]
        table.add_row(*texts, style="bold" if each == own else None)
    Console().print(table)
    log.info("operations a second: %g * 10^12, %s (plan.tflops sets your own)", device.tflops, device.source)
    metrics: Metrics = {
        "plan/memory_gb": costs[own].memory_gb * MARGIN,
        "plan/tflop_per_image": costs[own].tflop / batch,
        "plan/images_per_s": device.tflops / costs[own].tflop * batch * num_devices(config),
        "plan/hours": hours[own],
    }
    write_metrics(run_dir, metrics)
    return metrics


def device_of_plan(config: Config) -> Device:
    """The device that `plan` names, with what is set anew; ValueError for an unknown one."""
    settings = config["plan"]
    if settings["device"] not in DEVICES:
        raise ValueError(f"plan.device is {settings['device']!r}: take one of {', '.join(DEVICES)}, and set plan.memory_gb")
    device = DEVICES[settings["device"]]
    if settings["tflops"] is not None:
        device = replace(device, tflops=float(settings["tflops"]), source="plan.tflops")
    return device if settings["memory_gb"] is None else replace(device, memory_gb=float(settings["memory_gb"]))


def cost_of(config: Config, model: SamConfig, device: Device, masks: int, activation_checkpointing: bool) -> StepCost:
    """Of one micro-batch on one device."""
    recipe = recipe_of(config, model.model)
    return step_cost(
        replace(model, drop_path=recipe["drop_path"], dropout=recipe["dropout"]),
        device=device.kind,
        images=config["loader"]["batch_size"],
        masks=masks,
        sampler=make_prompts(config),
        loss=make_loss(config),
        bf16="bf16" in str(config["trainer"]["precision"]),
        activation_checkpointing=activation_checkpointing,
    )


def hours_of(config: Config, model: SamConfig, device: Device, cost: StepCost) -> float:
    """Of the whole training on all devices, validation and waiting for data left out."""
    recipe = recipe_of(config, model.model)
    steps = config["trainer"]["max_steps"] or recipe["max_steps"]
    images = steps * (config["trainer"]["images_per_step"] or recipe["images_per_step"])
    seconds = images / config["loader"]["batch_size"] * cost.tflop / device.tflops
    return seconds / num_devices(config) / 3600
