"""The key numbers of a run, as cards at the top of its page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from samtrain.report.run_files import RunFiles
from samtrain.report.tables import duration

Card = tuple[str, str, str]  # the number, what it is, and a smaller line below


def key_numbers(run: RunFiles) -> str:
    """Returns the most important numbers of the run as cards, or "" before it has any."""
    cards = [*_quality(run), *_rounds(run), *_generated(run), *_sweep(run), *_cost(run)]
    return '<div class="cards">' + "".join(_card(*card) for card in cards) + "</div>" if cards else ""


def _quality(run: RunFiles) -> Iterator[Card]:
    """Yields the final test metrics."""
    for name, words in (("miou_1", "mean IoU, 1 click"), ("oracle_miou_1", "mean IoU, best of three")):
        value, start = run.metrics.get(f"test/{name}"), run.metrics.get(f"test/start_{name}")
        if value is not None:
            yield f"{value:.3f}", words, f"test; {start:.3f} before this run" if start is not None else "test"


def _rounds(run: RunFiles) -> Iterator[Card]:
    """Yields promotions, masks, coverage, precision and the time per mask of the data engine."""
    metrics, lines, rounds = run.metrics, run.ledger, run.ledger[1:]
    if rounds:
        promoted = sum(bool(line["promoted"]) for line in rounds)
        yield f"{promoted} of {len(rounds)}", "rounds promoted", f"now {lines[-1]['encoder']}"
        automatic = sum(line.get("masks_automatic", 0) for line in rounds)
        of_these = f", {automatic:,} automatic" if automatic else ""
        yield f"{lines[-1]['masks_total']:,}", "masks", f"in {lines[-1]['images_total']:,} images{of_these}"
    before, after = metrics.get("coverage/start_all"), metrics.get("coverage/all")
    if before is not None and after is not None:
        yield f"{before:.2f} → {after:.2f}", "objects that have a mask", "on the same images, before stage 2 and after"
    if (precision := metrics.get("automatic/precision")) is not None:
        people = all(line.get("people") for line in rounds if line.get("detector"))
        words = "not rejected by people" if people else "IoU above 0.75 with an object"
        yield f"{precision:.2f}", "precision of automatic masks", words
    measured = [line["seconds_per_mask"] for line in rounds if line.get("people") and line["seconds_per_mask"] is not None]
    if measured:
        first_to_last = " → ".join(f"{each:.1f}" for each in dict.fromkeys((measured[0], measured[-1])))
        yield f"{first_to_last} s", "per mask, first to last round", "measured with people"
    if seconds := _probe_seconds(lines):
        objects = f"modelled, for the same {lines[-1]['probe_masks']} objects"
        yield f"{seconds[0]:.1f} → {seconds[-1]:.1f} s", "per mask, first to last", objects


def _probe_seconds(lines: Sequence[dict[str, Any]]) -> list[float]:
    """Returns the seconds per mask on the last stage's probe: with the model before the stage, and after each round."""
    stage = [line for line in lines if line["stage"] == lines[-1]["stage"]] if lines else []
    found = [each.get("probe_seconds_per_mask") for each in [*(line.get("probe_before") or {} for line in stage[:1]), *stage]]
    known = [value for value in found if value is not None]
    return known if len(known) > 1 else []


def _generated(run: RunFiles) -> Iterator[Card]:
    """Yields the number of automatic masks, the speed, and the quality against ground truth."""
    metrics = run.metrics
    if (masks := metrics.get("generated/masks")) is not None:
        yield f"{masks:,.0f}", "automatic masks", f"in {metrics['generated/images']:,.0f} images"
        if speed := metrics.get("generated/images_per_second"):
            yield f"{speed:.2g}", "images per second", "all processes of this run"
    if (recall := metrics.get("generated/ar_100")) is not None:
        precision = metrics.get("generated/precision_75")
        below = f"precision {precision:.2f} at IoU 0.75" if precision is not None else "against ground truth"
        yield f"{recall:.3f}", "AR@100", below


def _sweep(run: RunFiles) -> Iterator[Card]:
    """Yields the best trial, the progress, and the gain over the default settings."""
    best = run.tune.get("best")
    if not best:
        return
    ended = sum(trial["state"] in ("COMPLETE", "PRUNED") for trial in run.tune["trials"])
    yield f"{best['value']:.3f}", str(run.tune["metric"]), f"trial {best['number']}, the best"
    yield f"{ended} of {run.tune['num_trials']}", "trials ended", "finished or pruned"
    if again := run.tune["again"]:
        words = f"winner minus default, {again['metric']}"
        yield f"{again['difference']:+.3f}", words, f"mean of {len(again['by_seed'])} other seeds"


def _cost(run: RunFiles) -> Iterator[Card]:
    """Yields the run's time and peak memory."""
    if "time/seconds" in run.metrics:
        peak = run.metrics.get("memory/peak_gb")
        yield duration(run.metrics["time/seconds"]), "time of the run", f"{peak:.1f} GB memory at most" if peak else ""


def _card(value: str, words: str, below: str) -> str:
    return f"<div><b>{escape(value)}</b><span>{escape(words)}</span><small>{escape(below)}</small></div>"
