"""The tables of the page: final metrics, and the rounds of the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from samtrain.report.run_files import RunFiles

STAGE_NAMES = {"assisted_manual": "first stage: assisted-manual", "semi_automatic": "second stage: semi-automatic"}
METRICS = (
    ("miou_1", "1 click, the model's choice of three masks"),
    ("oracle_miou_1", "1 click, best of the three masks"),
    ("miou_2", "2 clicks"),
    ("miou_3", "3 clicks"),
    ("miou_5", "5 clicks"),
    ("miou_9", "9 clicks"),
    ("box_miou", "a box"),
    ("ceiling_miou_1", "upper bound for one mask per click"),
    ("flood_fill_miou_1", "baseline: flood fill of the clicked colour"),
)
TEXT_METRICS = (
    ("text_miou", "its text; the mask of highest predicted IoU plus similarity with the text"),
    ("text_head_miou", "its text; the mask of highest predicted IoU"),
    ("text_oracle_miou", "its text; best of the three masks"),
    ("text_foreign_miou", "control: the text of another image"),
    ("text_foreign_oracle_miou", "control: the text of another image; best of the three masks"),
    ("text_other_miou", "control: the text of another object of the image"),
    ("text_click_miou", "1 click"),
    ("text_with_click_miou", "1 click and its text"),
    ("text_ranked_miou", "its text ranks the automatic masks"),
    ("text_ranked_oracle_miou", "best of the automatic masks"),
)
SPLITS = (
    ("val/", "validation"),
    ("test/start_", "test, before this run"),
    ("test/", "test"),
    ("general/start_", "general images, before this run"),
    ("general/", "general images"),
)


def metrics_table(run: RunFiles) -> str:
    """Returns the final metrics by prompt and split, with upper bound and baseline if the run has them."""
    splits = [(prefix, words) for prefix, words in SPLITS if any(prefix + name in run.metrics for name, _ in METRICS)]
    rows = [
        [escape(words), *(number(run.metrics.get(prefix + name), 3) for prefix, _ in splits)]
        for name, words in METRICS
        if any(prefix + name in run.metrics for prefix, _ in splits)
    ]
    return table(["mean IoU after", *(words for _, words in splits)], rows) if rows else ""


def text_table(run: RunFiles) -> str:
    """Returns the mean IoUs of sentences and of the controls, with their 95 % intervals over images, for each set."""
    sets = list(dict.fromkeys(key.rpartition("/")[0] for key in run.metrics if key.endswith("/text_ranked_miou")))
    rows = [
        [escape(words), *(_with_interval(run.metrics, f"{name}/{metric}") for name in sets)]
        for metric, words in TEXT_METRICS
        if any(f"{name}/{metric}" in run.metrics for name in sets)
    ]
    note = """<p class="note">Mean IoU of objects with a caption or name that no other object of their image has.</p>"""
    return table(["an object is prompted by", *map(escape, sets)], rows) + note if rows else ""


def _with_interval(metrics: Mapping[str, float | None], name: str) -> str:
    low, high = (number(metrics.get(f"{name}_{end}"), 3) for end in ("low", "high"))
    return number(metrics.get(name), 3) + (f" ({low} to {high})" if f"{name}_low" in metrics else "")


def other_metrics(run: RunFiles) -> str:
    """Returns all other numbers of metrics.json."""
    shown = {prefix + name for prefix, _ in SPLITS for name, _ in METRICS}
    rest = {name: value for name, value in run.metrics.items() if name not in shown}
    rows = [[f"<code>{escape(name)}</code>", number(value, 4)] for name, value in sorted(rest.items())]
    return table(["name", "value"], rows) if rows else ""


def ledger_table(run: RunFiles) -> str:
    """Returns a table with a row per round."""
    if not run.ledger:
        return ""
    has_stage_2 = any(line.get("detector") for line in run.ledger)
    head = ["round", "trained", "images", "masks", *(["automatic", "precision"] if has_stage_2 else []), "masks / image"]
    head += ["s / mask", "s / mask, probe", "clicks / mask", "strokes / mask", "IoU with truth", "coverage", "stopped early"]
    head += ["before → after", "", "computing time"]
    metric = str(run.ledger[0]["promote_metric"])
    rows = [_ledger_row(line, metric, has_stage_2) for line in run.ledger]
    return (
        table(head, rows, "ledger")
        + f'<p class="note">before → after: {escape(metric)} of the model in use and of the new model. coverage: share of '
        "the objects in the images of the round that have a mask with an IoU above 0.75. stopped early: images in which a mask "
        "took too long, so the annotator took the next one. s / mask: for drawn masks only. –: not measured. The objects "
        "of the probe stay the same throughout a stage.</p>"
    )


def _ledger_row(line: dict[str, Any], metric: str, has_stage_2: bool) -> list[str]:
    """Returns the cells of one round; the first model has neither images nor masks."""
    is_first = line["round"] == 0
    before, after = (number(line[f"metrics_{when}"].get(metric), 3) for when in ("before", "after"))
    verdict = "first model" if is_first else "promoted" if line["promoted"] else "not better"
    automatic = [line.get("masks_automatic") or None, line.get("automatic_precision")]
    work = ["masks_per_image", "seconds_per_mask", "probe_seconds_per_mask", "clicks_per_mask", "strokes_per_mask"]
    return [
        "start" if is_first else str(line["round"]),
        escape(str(line["model"])),
        *("" if is_first else number(line[name], 0) for name in ("images", "masks")),
        *([number(value, 2) for value in automatic] if has_stage_2 else []),
        *(number(line[name], 1) for name in work),
        number(line["mask_iou"], 3),
        number((line.get("coverage") or {}).get("all"), 3),
        "" if is_first else number(line["images_left"], 0),
        after if is_first else f"{before} → {after}",
        f'<span class="{"good" if line["promoted"] else "plain"}">{verdict}</span>',
        duration(sum(seconds for phase, seconds in line["wall"].items() if phase != "annotate" or not line.get("people"))),
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """Returns a table; the cells are HTML, the first column has text and the others numbers."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def duration(seconds: float) -> str:
    """Formats a time as 8 s, 12 min or 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def number(value: Any, digits: int) -> str:
    """Formats a count as it is, a measure with `digits`, and None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
