"""Automatic masks on the page: what the paper's dataset figures show, how good they are, and the audit beside its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from samtrain.report.figures import Axis, Series, heat_map, line_chart, stacked_bars
from samtrain.report.tables import table

MASKS_PER_IMAGE = ("0", "1-10", "11-50", "51-100", "101-200", "200+")
MAX_REFUSED = 20


def dataset_charts(generated: dict[str, Any]) -> list[str]:
    """Masks an image, sizes, concavity, positions and scores; [] where no image was finished."""
    found = generated.get("statistics") or {}
    if not found.get("masks"):
        return []
    share = Axis("share of the masks, %", zero=True)
    images = _percent(found["masks_per_image"])
    per_image = Axis("masks", {float(i): name for i, name in enumerate(MASKS_PER_IMAGE)})
    return [
        stacked_bars(
            "Masks in an image", per_image, Axis("share of the images, %", zero=True), ["images"],
            {float(i): [value] for i, value in enumerate(images)},
        ),
        _bars("Size of masks", "square root of (mask area / image area)", found["relative_size"], share),
        _bars(
            "Concavity of masks", "1 - mask area / area of its convex hull", found["concavity"], share,
            note="Simple shapes stand on the left (paper, figure 6).",
        ),
        heat_map(
            "Where masks lie", found["position"],
            note="Centres of their boxes, in images of one size; darker: more (paper, figure 5).",
        ),
        _bars("Predicted IoU", "predicted IoU", found["predicted_iou"], share),
        _bars("Stability", "stability score", found["stability_score"], share),
    ]  # fmt: skip


def truth_charts(truth: dict[str, Any] | None) -> list[str]:
    """Recall, precision and number of masks as the thresholds move; [] without ground truth."""
    charts = []
    for key, name in (("by_pred_iou", "predicted IoU"), ("by_stability", "stability score")):
        rows = (truth or {}).get(key) or []

        def line(column: str, words: str, colour: int, rows: Sequence[dict[str, Any]] = rows) -> Series:
            points = [(row["threshold"], row[column]) for row in rows if row[column] is not None]
            return Series(words, [points], colour, dots=True)

        lines = [
            line("ar_100", "AR@100", 1), line("precision_50", "precision, IoU 0.50", 2),
            line("precision_75", "precision, IoU 0.75", 3),
        ]  # fmt: skip
        charts.append(line_chart(f"Masks kept by {name}", Axis(f"{name} of at least"), Axis("share", zero=True), lines))
        masks = [line("masks_per_image", "masks in an image", 4)]
        charts.append(line_chart(f"How many are kept by {name}", Axis(f"{name} of at least"), Axis("masks", zero=True), masks))
    return [chart for chart in charts if chart]


def generated_tables(generated: dict[str, Any]) -> str:
    """What was left out, what was blurred, and what blurring is not."""
    parts = []
    if refused := generated.get("refused"):
        rows = [[escape(name), escape(reason)] for name, reason in refused[:MAX_REFUSED]]
        more = f"{len(refused)} images were left out" + (f", the first {MAX_REFUSED}:" if len(refused) > MAX_REFUSED else ":")
        parts.append(f'<p class="note">{more}</p>{table(["image", "why"], rows)}')
    if blurred := generated.get("blurred"):
        words = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in blurred.items())
        parts.append(f'<p class="note">Blurred: {escape(words)}.</p>')
    if generated.get("note"):
        parts.append(f'<p class="warning">{escape(generated["note"])}</p>')
    return "".join(parts)


def audit_section(audit: dict[str, Any]) -> str:
    """The distribution of IoU with corrected masks, and the shares beside the paper's; "" without an audit."""
    if not audit:
        return ""
    rows = [
        [
            f"IoU above {level} %",
            f"{100 * audit[f'share_above_{level}']:.1f} % "
            f"({100 * audit[f'share_above_{level}_low']:.1f} to {100 * audit[f'share_above_{level}_high']:.1f})",
            f"{paper} %",
        ]
        for level, paper in ((90, 94), (75, 97))
    ]
    rows.append(["mean IoU", f"{audit['mean_iou']:.3f}", "two people: 0.85 to 0.91"])
    left_out = ", ".join(f"{count} {what}" for what, count in audit["left_out"].items())
    simulated = "Corrected by the simulated annotator. " if audit.get("simulated") else ""
    note = (
        f"{simulated}{audit['pairs']} masks in {audit['images']} images; left out: {left_out}. In brackets 95 % intervals, "
        "of a bootstrap over images. The paper: 500 images, about 50,000 masks corrected by professionals (section 5); "
        "between two people 85 to 91 % IoU were reported."
    )
    chart = _bars("Automatic against corrected masks", "IoU", audit["distribution"], Axis("share of the masks, %", zero=True))
    shares = table(["share of masks", "here", "paper"], rows)
    return f'<div class="charts">{chart}</div>{shares}<p class="note">{escape(note)}</p>'


def _bars(title: str, name: str, counts: Sequence[int], y: Axis, note: str = "") -> str:
    """A histogram of what goes from 0 to 1; a bar stands in the middle of its bin."""
    bins = len(counts)
    labels = {i * bins / 4 - 0.5: f"{i / 4:g}" for i in range(5)}
    bars = {float(i): [value] for i, value in enumerate(_percent(counts))}
    return stacked_bars(title, Axis(name, labels), y, ["masks"], bars, note)


def _percent(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [100 * count / total if total else 0.0 for count in counts]
