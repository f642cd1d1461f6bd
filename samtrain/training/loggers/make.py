"""From the config to loggers, and the end of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger

from samtrain.training.loggers.appending_csv import AppendingCSVLogger
from samtrain.training.loggers.wandb_run import SamWandbLogger, kept_id, losing_nothing


def make_loggers(
    run_dir: str | Path,
    config: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    *,
    part_of: Path | None = None,
) -> list[Logger]:
    """`metrics.csv`, and what `logger.wandb` and `logger.tensorboard` configure; ValueError where a package is missing.

    `wandb` takes what `WandbLogger` takes, `{project: samtrain, offline: true}` say, and `log_images`, `log_artifacts`; a run
    that goes on keeps its id. `settings` is the whole config, by which W&B compares runs; `part_of` the directory of the run
    whose group this one belongs to.
    """
    run_dir = Path(run_dir)
    unknown = set(config) - {"csv", "wandb", "tensorboard"}
    if unknown:
        raise ValueError(f"unknown loggers {sorted(unknown)} (logger): there are csv, wandb and tensorboard")
    loggers: list[Logger] = [AppendingCSVLogger(run_dir / "metrics.csv")]
    if (given := config.get("wandb")) is not None:
        loggers.append(_wandb(run_dir, part_of or run_dir, dict(given), settings or {}))
    if (given := config.get("tensorboard")) is not None:
        loggers.append(_tensorboard(run_dir, dict(given)))
    return loggers


def finish(
    loggers: Iterable[Logger],
    metrics: Mapping[str, float | None],
    *,
    checkpoint: Path | None = None,
    objects: Sequence[Mapping[str, Any]] = (),
) -> None:
    """The run's final numbers to where runs are compared, with its model and a row an object, and everything to its end."""
    for logger in loggers:
        if isinstance(logger, SamWandbLogger):
            with losing_nothing("what the run came to"):
                if objects:
                    logger.log_objects(objects)
                if checkpoint is not None:
                    logger.log_checkpoint(checkpoint)
                logger.summarise(metrics)
                logger.experiment.finish()  # or the next run of a grid in this process would go on in it
        else:
            logger.finalize("success")


def _wandb(run_dir: Path, whole: Path, given: dict[str, Any], settings: Mapping[str, Any]) -> SamWandbLogger:
    key, group = (kept_id(each / "wandb" / "run_id") for each in (run_dir, whole))
    given = {"project": "samtrain", "group": group, "config": dict(settings), **given}
    try:
        if not given.get("log_images", True):
            import wandb

            given["settings"] = wandb.Settings(console="off")  # what is said of images, "left out: NAME", stays here
        return SamWandbLogger(save_dir=run_dir, log_model=False, id=key, **given)
    except ModuleNotFoundError as error:
        raise ValueError("logger.wandb is set and wandb is not installed: pip install 'samtrain[wandb]'") from error


def _tensorboard(run_dir: Path, given: dict[str, Any]) -> TensorBoardLogger:
    try:
        return TensorBoardLogger(**{"save_dir": run_dir, "name": "", "version": "tensorboard", **given})
    except ModuleNotFoundError as error:
        raise ValueError(
            "logger.tensorboard is set and tensorboard is not installed: pip install 'samtrain[tensorboard]'"
        ) from error
