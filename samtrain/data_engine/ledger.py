"""`ledger.jsonl`: one line a round, what was annotated with which model, and what was learned from it.

What a clock on the wall said stands under `wall` and nowhere else, so that the ledger of a run that was interrupted
equals an undisturbed one's in everything else. Seconds outside of `wall` are modelled (`time_model.py`).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from samtrain.files import atomic_path

NAME = "ledger.jsonl"
RENAMED = {"pictures_skipped": "images_skipped", "pictures_left": "images_left"}  # what runs before December 2026 wrote
PROBE = (
    "probe_masks", "probe_seconds_per_mask", "probe_clicks_per_mask", "probe_mask_iou", "probe_good",
    "probe_coverage_alone", "probe_coverage",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LedgerLine:
    """A round. Round 0 is the first model: nothing annotated, nothing trained, but measured and probed.

    stage:                      "assisted_manual" or "semi_automatic"

    model, checkpoint, digest:  what this round trained: the name of its size, the file (relative where it lies in the
                                run's directory), the sha256 of its weights
    parent:                     digest of the promoted model before: it helped to annotate, and training began from it
    encoder:                    size of the promoted model after this round
    detector, detector_digest:  the object detector that filled in, and the sha256 of its file; None where nothing did
    images, masks:              images annotated in this round, masks added; `masks_total` over all rounds so far
    masks_automatic:            those of them that were filled in
    masks_per_image:            all masks of these images, automatic ones and those of earlier rounds included
    assisted_per_image:         the same without the automatic ones
    images_total:               images that have been annotated so far, each counted once
    seconds_per_mask:           all modelled seconds (discarded masks too) by the masks drawn: automatic ones take none
    mask_iou:                   mean IoU of the masks drawn with the ground truth
    automatic_precision:        share of the automatic masks whose IoU with some object is above 0.75
    coverage:                   share of the objects of these images that some mask shows with an IoU above 0.75:
                                {all, small, medium, large}
    images_skipped:             images that could not be read and were left out (data.on_error=skip)
    images_left:                images that were left because a mask took longer than the limit
    probe_*:                    the same on the fixed probe objects, with the model that is promoted after the round and
                                nothing filled in; `probe_good` is the share of them that reached the target within the
                                limit, `probe_coverage_alone` what an annotator covers who leaves images,
                                `probe_coverage` what is covered when the detector of the round has filled in before
    probe_before:               in the first round of a stage, which may have other images in its probe: `probe_*` of the
                                model that the stage began with
    metrics_before, _after:     of the promoted model before, and of the one trained here
    shards:                     [{path, sha256, images, masks}] of this round
    wall:                       seconds of each piece by the wall clock, in the process that brought it to its end
    """

    round: int
    stage: str
    model: str
    encoder: str
    parent: str | None
    checkpoint: str
    digest: str
    images: int
    masks: int
    masks_automatic: int
    masks_total: int
    images_total: int
    discarded: int
    images_skipped: int
    images_left: int
    masks_per_image: float | None
    assisted_per_image: float | None
    seconds_per_mask: float | None
    clicks_per_mask: float | None
    strokes_per_mask: float | None
    mask_iou: float | None
    automatic_precision: float | None
    coverage: dict[str, float | None]
    probe_masks: int
    probe_seconds_per_mask: float | None
    probe_clicks_per_mask: float | None
    probe_mask_iou: float | None
    probe_good: float | None
    probe_coverage_alone: dict[str, float | None]
    probe_coverage: dict[str, float | None]
    images_seen: int
    promote_metric: str
    metrics_before: dict[str, float | None]
    metrics_after: dict[str, float | None]
    promoted: bool
    detector: str | None = None
    detector_digest: str | None = None
    probe_before: dict[str, Any] = field(default_factory=dict)
    shards: list[dict[str, Any]] = field(default_factory=list)
    wall: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def reproducible(self) -> dict[str, Any]:
        """All but what the wall clock said."""
        return {name: value for name, value in self.to_dict().items() if name != "wall"}

    def probe(self) -> dict[str, Any]:
        """The probe's numbers, for a later round that keeps this model."""
        return {name: value for name, value in self.to_dict().items() if name in PROBE}

    def in_words(self) -> str:
        """For the log."""
        name = self.promote_metric
        after = _number(self.metrics_after[name])
        if self.round == 0:
            return f"round 0: the first model has {name} {after}"
        filled = f" ({self.masks_automatic} automatic)" if self.detector else ""
        return (
            f"round {self.round}: {self.masks} masks{filled} in {self.images} images, "
            f"{_number(self.seconds_per_mask, 1)} s a mask, {name} {_number(self.metrics_before[name])} -> {after}, "
            f"{'promoted' if self.promoted else 'not better: the old model stays'}"
        )


def _number(value: float | None, digits: int = 3) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


def read_ledger(run_dir: Path) -> list[LedgerLine]:
    """The lines so far, none where no round has ended. Raises ValueError for what is no ledger of ours."""
    path = run_dir / NAME
    if not path.is_file():
        return []
    lines = [_parse(text, f"{path}, line {i}") for i, text in enumerate(path.read_text().splitlines(), 1)]
    for i, line in enumerate(lines):
        if line.round != i:
            raise ValueError(f"{path}, line {i + 1} holds round {line.round} where round {i} belongs; restore the file")
    return lines


def append_line(run_dir: Path, line: LedgerLine) -> None:
    """Write the ledger anew with one more line: it is there whole or not at all."""
    lines = [*read_ledger(run_dir), line]
    assert line.round == len(lines) - 1, f"round {line.round} after {len(lines) - 1} lines"
    texts = [json.dumps(each.to_dict(), allow_nan=False) for each in lines]
    with atomic_path(run_dir / NAME) as temporary:
        temporary.write_text("\n".join(texts) + "\n")


def take_over(run_dir: Path, earlier_run: Path) -> None:
    """Begin the ledger of `run_dir` with the lines of an earlier run, whose files stay where they are; once.

    Raises ValueError for a run without rounds, and, each time, for files that are gone.
    """
    if not (run_dir / NAME).is_file():
        lines = read_ledger(earlier_run)
        if len(lines) < 2:
            raise ValueError(f"{earlier_run} has no finished round (stage1_run): give the directory of +experiment=stage1")
        root = earlier_run.resolve()
        texts = [
            replace(
                line,
                checkpoint=str(root / line.checkpoint),
                shards=[shard | {"path": str(root / shard["path"])} for shard in line.shards],
            ).to_dict()
            for line in lines
        ]
        with atomic_path(run_dir / NAME) as temporary:
            temporary.write_text("".join(json.dumps(text, allow_nan=False) + "\n" for text in texts))
    ledger = read_ledger(run_dir)
    needed = [shard["path"] for line in ledger for shard in line.shards] + [promoted(ledger).checkpoint]
    if gone := [path for path in needed if not (run_dir / path).is_file()]:
        raise ValueError(
            f"{gone[0]} is gone, which the ledger in {run_dir} names (stage1_run): bring the files back to where they were"
        )


def collected_by(run_dir: Path) -> list[str]:
    """The shards of all rounds so far; ValueError where there are none."""
    shards = [str(run_dir / shard["path"]) for line in read_ledger(run_dir) for shard in line.shards]
    if not shards:
        raise ValueError(f"{run_dir} has collected no masks (stage1_run): give the directory of +experiment=stage1")
    return shards


def promoted(ledger: list[LedgerLine]) -> LedgerLine:
    """The line of the model that is in use."""
    return next(line for line in reversed(ledger) if line.promoted)


def finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """Plain floats for JSON; None for what is no number (a model that fell apart)."""
    return {name: float(value) if math.isfinite(value) else None for name, value in sorted(metrics.items())}


def _parse(text: str, name: str) -> LedgerLine:
    """One line, checked for its keys and kinds."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is no JSON ({error}); restore the file, or begin a new run_dir") from error
    if isinstance(values, dict):
        values = {RENAMED.get(key, key): value for key, value in values.items()}
    known = {f.name: f.type for f in fields(LedgerLine)}
    if not isinstance(values, dict) or set(values) != set(known):
        keys = set(values) if isinstance(values, dict) else set()
        raise ValueError(
            f"{name} is no line of this version's ledger: missing {sorted(set(known) - keys)}, "
            f"unknown {sorted(keys - set(known))}; read it with the version that wrote it"
        )
    wrong = [f"{key} is {values[key]!r}, not {kind}" for key, kind in known.items() if not _fits(values[key], str(kind))]
    if wrong:
        raise ValueError(f"{name}: {'; '.join(wrong)}; restore the file")
    return LedgerLine(**values)


def _fits(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a kind written as in LedgerLine: "int", "float | None", "dict[...]"."""
    classes: dict[str, Any] = {
        "int": int,
        "float": (int, float),
        "str": str,
        "None": type(None),
        "dict": dict,
        "list": list,
    }
    outer = kind.split("[")[0]
    names = [outer] if outer in ("dict", "list") else kind.split(" | ")
    if isinstance(value, bool):
        return "bool" in names
    return any(name in classes and isinstance(value, classes[name]) for name in names)
