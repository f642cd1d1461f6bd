"""`task=plan`: estimates, before anything runs, what fits into a device's memory and how long the training takes."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from samtrain.modeling.sam import SamConfig
from samtrain.run.build import make_loss, make_prompts, sam_config_of
from samtrain.run.directory import Metrics, write_metrics
from samtrain.run.settings import Config, read, recipe_of
from samtrain.training.config import LoaderConfig, TrainerConfig
from samtrain.training.optim import OptimConfig
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
    rows = {each: _row(config, settings, each, costs[each], hours[each]) for each in costs}

    # print what is planned, and the table
    log.info("%s", _what(config, settings, model))
    console = Console()
    table = _table(list(rows.values()), own_row=list(rows).index(own))
    # each column is as wide as its longest word; a terminal that is too narrow wraps the lines, but no word is cut
    console.width = max(console.width, Measurement.get(console, console.options.update(max_width=10_000), table).maximum)
    console.print(table)
    log.info(
        "The table assumes %g * 10^12 operations per second and device (%s); plan.tflops sets your own number.",
        device.tflops, device.source,
    )  # fmt: skip

    metrics: Metrics = {
        "plan/memory_gb": costs[own].memory_gb * MARGIN,
        "plan/tflop_per_image": costs[own].tflop / loader.batch_size,
        "plan/images_per_s": device.tflops / costs[own].tflop * loader.batch_size * trainer.num_devices,
        "plan/hours": hours[own],
        "plan/device_hours": hours[own] * trainer.num_devices,
    }
    if settings.price_per_hour is not None:
        metrics["plan/price"] = hours[own] * trainer.num_devices * settings.price_per_hour
    write_metrics(run_dir, metrics)
    return metrics


def _what(config: Config, settings: PlanConfig, model: SamConfig) -> str:
    """Returns a sentence that names the model, what of it trains, the steps and the devices."""
    trainer, device = read(TrainerConfig, config, "trainer"), settings.resolved_device()
    optim = read(OptimConfig, config, "optim")
    parts = "all parts train" if optim.trainable is None else f"only {optim.trainable} train"
    parts += " with LoRA" if optim.lora is not None else ""
    steps, images = steps_of(config, model)
    return (
        f"{model.model} at {model.image_size} px, {parts}: "
        f"{steps} steps of {images} images in {trainer.precision} on {trainer.num_devices} x {settings.device} with "
        f"{device.memory_gb:g} GB, {read(LoaderConfig, config, 'loader').batch_size} images per device at once."
    )


def _row(
    config: Config, settings: PlanConfig, each: tuple[int, bool], cost: StepCost, hours: float
) -> dict[str, str]:
    """Returns a row of the table by the titles of its columns."""
    device, trainer = settings.resolved_device(), read(TrainerConfig, config, "trainer")
    batch, memory = read(LoaderConfig, config, "loader").batch_size, cost.memory_gb * MARGIN
    device_hours = hours * trainer.num_devices
    row = {
        "objects per image": str(each[0]),
        "checkpointing": "yes" if each[1] else "no",
        "memory GB": f"{memory:.1f}",
        "fits": "yes" if memory <= device.memory_gb else "no",
        "TFLOP per image": f"{cost.tflop / batch:.3g}",
        "images/s per device": f"{device.tflops / cost.tflop * batch:.3g}",
        "hours of the run": f"{hours:.3g}",
        f"{'CPU' if device.kind == 'cpu' else 'GPU'}-hours": f"{device_hours:.3g}",
    }
    if settings.price_per_hour is not None:
        row["price"] = f"{device_hours * settings.price_per_hour:,.2f}"
    return row


def _table(rows: list[dict[str, str]], *, own_row: int) -> Table:
    """Returns the rows as a table, the config's own in bold."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in rows[0]:
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        table.add_row(*row.values(), style="bold" if number == own_row else None)
    return table


def cost_of(config: Config, model: SamConfig, device: Device, masks: int, activation_checkpointing: bool) -> StepCost:
    """Returns the cost of one micro-batch on one device."""
    recipe, optim = recipe_of(config, model.model), read(OptimConfig, config, "optim")
    trainer = read(TrainerConfig, config, "trainer")
    return step_cost(
        replace(model, drop_path=recipe.drop_path, dropout=recipe.dropout),
        device=device.kind,
        images=read(LoaderConfig, config, "loader").batch_size,
        masks=masks,
        sampler=make_prompts(config),
        loss=make_loss(config),
        bf16="bf16" in str(trainer.precision),
        activation_checkpointing=activation_checkpointing,
        trainable=optim.trainable or ("*",),
        lora=optim.lora,
        cached=trainer.cache_embeddings is not None,
    )


def steps_of(config: Config, model: SamConfig) -> tuple[int, int]:
    """Returns the steps of the training, and the images of each over all devices."""
    recipe, trainer = recipe_of(config, model.model), read(TrainerConfig, config, "trainer")
    return trainer.max_steps or recipe.max_steps, trainer.images_per_step or recipe.images_per_step


def hours_of(config: Config, model: SamConfig, device: Device, cost: StepCost) -> float:
    """Returns the hours of the whole training on all devices, without validation and waiting for data."""
    trainer, (steps, images_per_step) = read(TrainerConfig, config, "trainer"), steps_of(config, model)
    batches = steps * images_per_step / read(LoaderConfig, config, "loader").batch_size
    return batches * cost.tflop / device.tflops / trainer.num_devices / 3600
