"""The `tune` node of the config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from samtrain.tuning.study import HEARTBEAT


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """The `tune` node: what a sweep searches, and how its trials are run and compared.

    metric:       what trials are compared by, of metrics.json and of what a run writes on the way
    num_trials:   finished or pruned ones, of the whole study
    stale_after:  seconds without a heartbeat after which another process takes over a trial
    seeds:        of the final comparison of default and winner by `compare_by`
    overrides:    given to all trials
    space:        {config key: its values}, see `samtrain.tuning.space`
    """

    metric: str = "val/miou_1"
    direction: Literal["maximize", "minimize"] = "maximize"
    num_trials: int = 20
    num_workers: int = 1
    study: str
    storage: str | None = None
    stale_after: float = 120
    seeds: tuple[int, ...] = (1, 2, 3)
    compare_by: str = "test/miou_1"
    overrides: tuple[str, ...] = ()
    space: dict[str, dict[str, Any]] = field(default_factory=dict)
    sampler: dict[str, Any]
    pruner: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        # a heartbeat may come late, so three of them make a trial stale at the earliest
        for key, least in (("num_trials", 1), ("num_workers", 1), ("stale_after", 3 * HEARTBEAT)):
            if getattr(self, key) < least:
                raise ValueError(f"tune.{key} is {getattr(self, key)}: give {least:g} or more")
