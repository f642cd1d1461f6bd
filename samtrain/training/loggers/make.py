"""Makes the loggers of a run from the `logger` node, and ends them with the run's final numbers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from samtrain.training.loggers.appending_csv import AppendingCSVLogger
from samtrain.training.loggers.wandb_run import SamWandbLogger, kept_id, log_wandb_errors

SET_BY_SAMTRAIN = ("save_dir", "log_model", "id", "config", "settings", "dir", "resume", "reinit", "prefix", "experiment")


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """The `logger.wandb` node.

    group:          of the run on W&B; None: the run's own, which the rounds of a data engine share
    log_images:     false keeps images, masks and the names of images on this machine
    log_artifacts:  what W&B gets of checkpoints and shards: where they are, their contents, or nothing
    extra:          further arguments of `wandb.init`
    """

    project: str = "samtrain"
    name: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: list[str] | None = None
    notes: str | None = None
    offline: bool = False
    log_images: bool = True
    log_artifacts: Literal["references", "files", "none"] = "references"
    extra: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Returns what `SamWandbLogger` takes; raises ValueError for an `extra` key that `wandb.init` does not have."""
        import wandb

        known = {*inspect.signature(wandb.init).parameters, *inspect.signature(WandbLogger.__init__).parameters}
        known -= {"self", "kwargs", *SET_BY_SAMTRAIN, *vars(self)}
        if unknown := [key for key in self.extra if key not in known]:
            raise ValueError(f"logger.wandb.extra.{unknown[0]} cannot be set: choose from {', '.join(sorted(known))}")
        given = {key: value for key, value in asdict(self).items() if value is not None and key != "extra"}
        return given | self.extra


@dataclass(frozen=True, kw_only=True)
class LoggerConfig:
    """The `logger` node: `metrics.csv` is always written, the others if they are set.

    tensorboard: arguments of Lightning's TensorBoardLogger
    extra:       nodes with a `_target_`, each a Lightning logger
    """

    csv: dict[str, Any] | None = None
    wandb: WandbConfig | None = None
    tensorboard: dict[str, Any] | None = None
    extra: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.csv:
            raise ValueError(f"logger.csv.{next(iter(self.csv))} is not a setting: metrics.csv has none, set logger.csv={{}}")
        known = list(inspect.signature(TensorBoardLogger.__init__).parameters)[1:-1]  # without self and **kwargs
        if unknown := [key for key in self.tensorboard or {} if key not in known]:
            raise ValueError(f"logger.tensorboard.{unknown[0]} is not a setting; logger.tensorboard has {', '.join(known)}")


def make_loggers(
    run_dir: str | Path,
    config: LoggerConfig,
    settings: Mapping[str, Any] | None = None,
    *,
    part_of: Path | None = None,
) -> list[Logger]:
    """Returns the logger of `metrics.csv`, then W&B's and TensorBoard's where they are set.

    A resumed run keeps its id on W&B. `settings` is the whole config, by which W&B compares runs; `part_of` is the directory
    of the run that this one shares a group with. Raises ValueError if a package is not installed.
    """
    run_dir = Path(run_dir)
    loggers: list[Logger] = [AppendingCSVLogger(run_dir / "metrics.csv")]
    if config.wandb is not None:
        loggers.append(_wandb(run_dir, part_of or run_dir, config.wandb, settings or {}))
    if config.tensorboard is not None:
        loggers.append(_tensorboard(run_dir, config.tensorboard))
    return loggers


def finish(
    loggers: Iterable[Logger],
    metrics: Mapping[str, float | None],
    *,
    checkpoint: Path | None = None,
    objects: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Ends all loggers; W&B first gets the run's final numbers, its model, and a table with one row per object."""
    for logger in loggers:
        if isinstance(logger, SamWandbLogger):
            with log_wandb_errors("the end of the run"):
                if objects:
                    logger.log_objects(objects)
                if checkpoint is not None:
                    logger.log_checkpoint(checkpoint)
                logger.summarise(metrics)
                logger.experiment.finish()  # otherwise the next run of a sweep in this process would continue it
        else:
            logger.finalize("success")


def _wandb(run_dir: Path, whole: Path, config: WandbConfig, settings: Mapping[str, Any]) -> SamWandbLogger:
    key, group = (kept_id(each / "wandb" / "run_id") for each in (run_dir, whole))
    try:
        arguments = {"group": group, "config": dict(settings), **config.arguments()}
        if not config.log_images:
            import wandb

            arguments["settings"] = wandb.Settings(console="off")  # the console's lines name images
        return SamWandbLogger(save_dir=run_dir, log_model=False, id=key, **arguments)
    except ModuleNotFoundError as error:
        raise ValueError("logger.wandb is set, but wandb is not installed: pip install 'samtrain[wandb]'") from error


def _tensorboard(run_dir: Path, arguments: dict[str, Any]) -> TensorBoardLogger:
    try:
        return TensorBoardLogger(**{"save_dir": run_dir, "name": "", "version": "tensorboard", **arguments})
    except ModuleNotFoundError as error:
        raise ValueError(
            "logger.tensorboard is set, but tensorboard is not installed: pip install 'samtrain[tensorboard]'"
        ) from error
