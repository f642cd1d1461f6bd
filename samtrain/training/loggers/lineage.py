"""Rounds of the data engine as runs of W&B, joined by artifacts: which model made which masks, and what was trained on them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtrain.training.loggers.wandb_run import SamWandbLogger, add_to, log_wandb_errors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundFiles:
    """Describes what a round made and from what: weights and tars, each with its sha256.

    parent, parent_digest:  the model that helped to annotate and was trained further; None for the first round
    shards, earlier:        path and sha256 of the tars of this round, and of those before it
    """

    number: int
    stage: str
    checkpoint: Path
    digest: str
    promoted: bool
    parent: Path | None
    parent_digest: str | None
    parent_round: int | None
    shards: Sequence[tuple[Path, str]]
    earlier: Sequence[tuple[Path, str]]
    detector: Path | None = None
    detector_digest: str | None = None


def log_round(logger: SamWandbLogger, files: RoundFiles, numbers: Mapping[str, float]) -> None:
    """Logs a round as its own run in the group of `logger`: it uses the parent and earlier shards and makes shards and a model.

    `numbers` become its summary. Does nothing if log_artifacts is "none". Errors of W&B are logged and do not stop the rounds.
    """
    if logger.log_artifacts == "none":
        return
    with log_wandb_errors(f"round {files.number} with its files"):
        _log(logger, files, numbers)


def _log(logger: SamWandbLogger, files: RoundFiles, numbers: Mapping[str, float]) -> None:
    import wandb

    main = logger.experiment
    run = wandb.init(
        project=main.project,
        entity=main.entity or None,
        group=main.group or main.id,
        job_type="round",
        name=f"{main.name or main.id} round {files.number}",
        id=f"{main.id}-round-{files.number}",
        resume="allow",
        dir=logger.save_dir,
        mode="offline" if main.offline else "online",
        reinit="create_new",  # a second run beside the run with the curves
        config={"round": files.number, "stage": files.stage, "digest": files.digest, "parent_digest": files.parent_digest},
        settings=wandb.Settings(silent=True, x_disable_stats=True, console="off"),
    )
    make = _Artifacts(logger, main.id)
    if files.parent is not None and files.parent_digest is not None:
        _use(run, make.model(files.parent, files.parent_digest, files.parent_round), files.number)
    if files.earlier:
        _use(run, make.shards(files.earlier, files.parent_digest, files.number - 1), files.number)
    if files.shards:
        run.log_artifact(make.shards([*files.earlier, *files.shards], files.parent_digest, files.number), aliases=_named(files))
    if files.detector is not None:
        run.log_artifact(make.detector(files), aliases=_named(files))
    run.log_artifact(make.model(files.checkpoint, files.digest, files.number, files), aliases=_named(files))
    run.summary.update(dict(numbers))
    run.finish()


class _Artifacts:
    """Makes the artifacts of one data-engine run; equal files give equal artifacts, which W&B takes for one version."""

    def __init__(self, logger: SamWandbLogger, key: str) -> None:
        self.files, self.key = logger.log_artifacts == "files", key
        self.images = self.files and logger.log_images

    def model(self, path: Path, digest: str, number: int | None, files: RoundFiles | None = None) -> Any:
        metadata: dict[str, Any] = {"round": number, "sha256": digest}
        if files is not None:
            trained_on = [sha for _, sha in [*files.earlier, *files.shards]]
            metadata |= {"parent": files.parent_digest, "shards": trained_on, "promoted": files.promoted}
        return self._artifact("model", [(path, digest)], metadata, upload=self.files)

    def shards(self, tars: Sequence[tuple[Path, str]], annotated_with: str | None, number: int) -> Any:
        """Returns an artifact of all tars up to a round, which its training sees."""
        metadata = {"round": number, "sha256": [sha for _, sha in tars], "annotated_with": annotated_with}
        return self._artifact("masks", tars, metadata, upload=self.images)

    def detector(self, files: RoundFiles) -> Any:
        assert files.detector is not None and files.detector_digest is not None
        metadata = {"round": files.number, "sha256": files.detector_digest, "shards": [sha for _, sha in files.earlier]}
        return self._artifact("detector", [(files.detector, files.detector_digest)], metadata, upload=self.files)

    def _artifact(self, kind: str, paths: Sequence[tuple[Path, str]], metadata: dict[str, Any], *, upload: bool) -> Any:
        import wandb

        artifact = wandb.Artifact(f"{kind}-{self.key}", type=kind, metadata=metadata)
        for path, sha in paths:
            add_to(artifact, path, f"{sha[:12]}{path.suffix}", upload=upload)
        return artifact


def _use(run: Any, artifact: Any, number: int) -> None:
    """Calls `run.use_artifact`, also offline, where W&B refuses it because it cannot wait for the upload; nothing here waits.

    W&B moves the alias "latest" to this artifact; the artifact that the round makes afterwards takes it back.
    """
    aliases = [f"used-by-round-{number}"]
    if not run.offline:
        run.use_artifact(artifact, aliases=aliases)
    elif hasattr(run, "_log_artifact"):
        run._log_artifact(artifact, aliases=aliases, is_user_created=True, use_after_commit=True)
    else:
        log.warning("This version of wandb records no inputs offline: only the metadata of the artifacts has the lineage.")


def _named(files: RoundFiles) -> list[str]:
    return [f"round-{files.number}", "latest", *(["promoted"] if files.promoted else [])]
