"""`task=plan`: estimates, before anything runs, what fits into a device's memory and how long the training takes."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from samtrain.modeling.sam import SamConfig
from samtrain.run.build import make_loss, make_prompts, sam_config_of
from samtrain.run.directory import Metrics, write_metrics
from samtrain.run.settings import Config, read, recipe_of
from samtrain.training.config import LoaderConfig, TrainerConfig
from samtrain.training.plan import Device, PlanConfig, StepCost, step_cost

log = logging.getLogger(__name__)

MARGIN = 1.15  # allocators hold more than is alive: a guess for GPUs; glibc held up to 1.9 times as much


def run(config: Config, run_dir: Path) -> Metrics:
    """Prints a table by objects per image, with and without activation checkpointing; returns the config's own figures."""
    settings, loader = read(PlanConfig, config, "plan"), read(LoaderConfig, config, "loader")
    trainer = read(TrainerConfig, config, "trainer")
    device, model = settings.resolved_device(), sam_config_of(config)

    # the cost of one micro-batch for each number of objects; the config's own is among them
    own = loader.max_masks, trainer.activation_checkpointing
    asked = {(masks, checkpointing) for masks in settings.masks for checkpointing in (False, True)} | {own}
    costs = {each: cost_of(config, model, device, *each) for each in sorted(asked)}
    hours = {each: hours_of(config, model, device, cost) for each, cost in costs.items()}

    # print the table
    batch = loader.batch_size
    title = f"{model.model}, {model.image_size} px, {batch} images at once, {trainer.precision}"
    table = Table(title=f"{title}, {device.memory_gb:g} GB", title_justify="left")
    for name in (
        "objects per image", "checkpointing", "memory GB", "fits", "TFLOP per image", "images/s per device", "hours of the run",
    ):  # fmt: skip
        table.add_column(name, justify="right", overflow="fold")
    for each, cost in costs.items():
        memory = cost.memory_gb * MARGIN
        speed = device.tflops / cost.tflop * batch
        texts = [str(each[0]), "yes" if each[1] else "no", f"{memory:.1f}", "yes" if memory <= device.memory_gb else "no"]
        texts += [f"{cost.tflop / batch:.3g}", f"{speed:.3g}", f"{hours[each]:.3g}"]
        table.add_row(*texts, style="bold" if each == own else None)
    Console().print(table)
    log.info(
        "The table assumes %g * 10^12 operations per second (%s); plan.tflops sets your own number.",
        device.tflops, device.source,
    )  # fmt: skip

    metrics: Metrics = {
        "plan/memory_gb": costs[own].memory_gb * MARGIN,
        "plan/tflop_per_image": costs[own].tflop / batch,
        "plan/images_per_s": device.tflops / costs[own].tflop * batch * trainer.num_devices,
        "plan/hours": hours[own],
    }
    write_metrics(run_dir, metrics)
    return metrics


def cost_of(config: Config, model: SamConfig, device: Device, masks: int, activation_checkpointing: bool) -> StepCost:
    """Returns the cost of one micro-batch on one device."""
    recipe = recipe_of(config, model.model)
    return step_cost(
        replace(model, drop_path=recipe.drop_path, dropout=recipe.dropout),
        device=device.kind,
        images=read(LoaderConfig, config, "loader").batch_size,
        masks=masks,
        sampler=make_prompts(config),
        loss=make_loss(config),
        bf16="bf16" in str(read(TrainerConfig, config, "trainer").precision),
        activation_checkpointing=activation_checkpointing,
    )


def hours_of(config: Config, model: SamConfig, device: Device, cost: StepCost) -> float:
    """Returns the hours of the whole training on all devices, without validation and waiting for data."""
    recipe, trainer = recipe_of(config, model.model), read(TrainerConfig, config, "trainer")
    images = (trainer.max_steps or recipe.max_steps) * (trainer.images_per_step or recipe.images_per_step)
    seconds = images / read(LoaderConfig, config, "loader").batch_size * cost.tflop / device.tflops
    return seconds / trainer.num_devices / 3600
