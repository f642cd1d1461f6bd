"""A run on W&B: curves over the images seen, masks that can be switched on and off, and a table of clicks."""

from __future__ import annotations

import contextlib
import logging
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from samtrain.files import write_once
from samtrain.panels import ClickedObject

log = logging.getLogger(__name__)

AXIS, ROUND = "images_seen", "ledger/round"  # x axes of curves: images seen, and rounds of the data engine
ARTIFACTS = ("references", "files", "none")
CLICK_COLUMNS: tuple[str | int, ...] = ("images_seen", "image", "object", "click", "x", "y", "label", "iou")


class SamWandbLogger(WandbLogger):
    """Adds axes, summaries and privacy to Lightning's WandbLogger.

    log_images:     false keeps images, masks and the names of images on this machine
    log_artifacts:  "references" registers checkpoints and shards and leaves them where they are; "files" uploads them (shards
                    contain images, so not with log_images false); "none" does neither
    """

    def __init__(self, *, log_images: bool = True, log_artifacts: str = "references", **settings: Any) -> None:
        if log_artifacts not in ARTIFACTS:
            raise ValueError(f"logger.wandb.log_artifacts is {log_artifacts!r}: give one of {', '.join(ARTIFACTS)}")
        super().__init__(**settings)
        self.log_images, self.log_artifacts = log_images, log_artifacts

    @property
    def experiment(self) -> Any:
        import wandb

        begun = self._experiment is not None
        try:
            experiment = super().experiment
        except wandb.Error as error:
            raise ValueError(
                f"W&B did not start a run ({error}): run `wandb login`, or set logger.wandb.offline=true, or logger=csv"
            ) from error
        if not begun and hasattr(experiment, "define_metric"):
            experiment.define_metric(AXIS)
            experiment.define_metric(ROUND)
            experiment.define_metric("*", step_metric=AXIS)
            experiment.define_metric("ledger/*", step_metric=ROUND)
        return experiment

    @rank_zero_only
    def summarise(self, metrics: Mapping[str, float | None]) -> None:
        """Writes the run's final numbers, `test/miou_1` and so on, to its summary: the columns of W&B's table of runs."""
        self.experiment.summary.update({k: v for k, v in metrics.items() if v is not None and math.isfinite(v)})

    @rank_zero_only
    def log_checkpoint(self, path: Path) -> None:
        """Logs the run's model as an artifact, according to log_artifacts."""
        import wandb

        if self.log_artifacts == "none":
            return
        artifact = wandb.Artifact(f"model-{self.experiment.id}", type="model")
        add_to(artifact, path, path.name, upload=self.log_artifacts == "files")
        self.experiment.log_artifact(artifact)

    @rank_zero_only
    def log_objects(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs the table `objects`, one row per object; with log_images false, without the names of images."""
        import wandb

        hidden = () if self.log_images else ("key", "id")
        columns: list[str | int] = [name for name in dict.fromkeys(k for row in rows for k in row) if name not in hidden]
        table = wandb.Table(columns=columns, data=[[row.get(str(name)) for name in columns] for row in rows])
        self.experiment.log({"objects": table})

    @rank_zero_only
    def log_interactions(
        self, sheet: np.ndarray, objects: Sequence[ClickedObject], *, step: int, images_seen: int
    ) -> None:
        """Logs `panels/sheet`, the table `panels/clicks`, and `panels/objects` with object and mask after each click."""
        import wandb

        if not self.log_images:
            return
        images = [wandb.Image(o.image, masks=_overlays(o), caption=f"{o.key}, object {o.number}") for o in objects]
        rows = [
            [images_seen, o.key, o.number, k + 1, x, y, "object" if label == 1 else "background", iou]
            for o in objects
            for k, ((x, y, label), iou) in enumerate(zip(o.clicks, o.ious, strict=True))
        ]
        values = {
            "panels/sheet": wandb.Image(sheet),
            "panels/objects": images,
            "panels/clicks": wandb.Table(columns=[*CLICK_COLUMNS], data=rows),
        }
        self.experiment.log({**values, AXIS: images_seen, "trainer/global_step": step})


def _overlays(each: ClickedObject) -> dict[str, Any]:
    shown = {"ground_truth": each.truth}
    shown |= {f"prediction_{k + 1}_clicks": mask for k, mask in enumerate(each.predicted)}
    return {name: {"mask_data": mask.astype(np.uint8), "class_labels": {1: name}} for name, mask in shown.items()}


def add_to(artifact: Any, path: Path, name: str, *, upload: bool) -> None:
    """Adds a file to an artifact by its content or by its place; it is not hashed, because its name has its digest."""
    if upload:
        artifact.add_file(str(path), name=name, policy="immutable")  # without a copy in W&B's own folder
    else:
        artifact.add_reference(path.resolve().as_uri(), name=name, checksum=False)


def kept_id(path: Path) -> str:
    """Returns the id of a run on the server; the first rank that asks for it draws it."""
    return write_once(path, uuid.uuid4().hex[:8])


@contextlib.contextmanager
def log_wandb_errors(what: str) -> Iterator[None]:
    """Logs errors of W&B instead of raising them, so that finished work is not lost."""
    import wandb

    try:
        yield
    except (wandb.Error, OSError, ValueError, AttributeError) as error:  # W&B's artifacts raise all of these
        log.warning("W&B does not have %s: %s", what, error)
