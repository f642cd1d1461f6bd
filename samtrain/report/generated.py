"""Automatic masks on the page: the paper's figures of the data set, quality against ground truth, and the audit."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from samtrain.report.figures import Axis, Series, heat_map, line_chart, stacked_bars
from samtrain.report.tables import table

MASKS_PER_IMAGE = ("0", "1-10", "11-50", "51-100", "101-200", "200+")
MAX_REFUSED = 20


def dataset_charts(generated: dict[str, Any]) -> list[str]:
    """Returns charts of masks per image, sizes, concavity, positions and scores; none before an image is finished."""
    found = generated.get("statistics") or {}
    if not found.get("masks"):
        return []
    share = Axis("share of the masks, %", zero=True)
    images = _percent(found["masks_per_image"])
    per_image = Axis("masks", {float(i): name for i, name in enumerate(MASKS_PER_IMAGE)})
    return [
        stacked_bars(
            "Masks per image", per_image, Axis("share of the images, %", zero=True), ["images"],
            {float(i): [value] for i, value in enumerate(images)},
        ),
        _bars("Size of masks", "square root of (mask area / image area)", found["relative_size"], share),
        _bars(
            "Concavity of masks", "1 - mask area / area of its convex hull", found["concavity"], share,
            note="Simple shapes are on the left (paper, figure 6).",
        ),
        heat_map(
            "Positions of masks", found["position"],
            note="Centres of the boxes, in images scaled to one size; darker cells have more masks (paper, figure 5).",
        ),
        _bars("Predicted IoU", "predicted IoU", found["predicted_iou"], share),
        _bars("Stability", "stability score", found["stability_score"], share),
    ]  # fmt: skip


def truth_charts(truth: dict[str, Any] | None) -> list[str]:
    """Returns charts of recall, precision and number of masks by threshold; none without ground truth."""
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
        x = Axis(f"lowest {name} kept")
        charts.append(line_chart(f"Quality by threshold of {name}", x, Axis("share", zero=True), lines))
        masks = [line("masks_per_image", "masks per image", 4)]
        charts.append(line_chart(f"Masks by threshold of {name}", x, Axis("masks per image", zero=True), masks))
    return [chart for chart in charts if chart]


def generated_tables(generated: dict[str, Any]) -> str:
    """Returns the images that were left out, the counts of blurred regions, and the note about blurring."""
    parts = []
    if refused := generated.get("refused"):
        rows = [[escape(name), escape(reason)] for name, reason in refused[:MAX_REFUSED]]
        more = f"{len(refused)} images were left out:"
        if len(refused) > MAX_REFUSED:
            more = f"{len(refused)} images were left out; the first {MAX_REFUSED} are:"
        parts.append(f'<p class="note">{more}</p>{table(["image", "reason"], rows)}')
    if blurred := generated.get("blurred"):
        words = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in blurred.items())
        parts.append(f'<p class="note">Blurred: {escape(words)}.</p>')
    if generated.get("note"):
        parts.append(f'<p class="warning">{escape(generated["note"])}</p>')
    return "".join(parts)


def audit_section(audit: dict[str, Any]) -> str:
    """Returns the distribution of IoU with corrected masks, and shares beside the paper's, or "" without an audit."""
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
    simulated = "The simulated annotator corrected the masks. " if audit.get("simulated") else ""
    note = (
        f"{simulated}{audit['pairs']} masks in {audit['images']} images were compared; left out: {left_out}. Brackets give "
        "95 % intervals of a bootstrap over images. In the paper, professionals corrected about 50,000 masks in 500 "
        "images (section 5); two people were reported to agree with an IoU of 85 to 91 %."
    )
    chart = _bars("Automatic against corrected masks", "IoU", audit["distribution"], Axis("share of the masks, %", zero=True))
    shares = table(["share of masks", "here", "paper"], rows)
    return f'<div class="charts">{chart}</div>{shares}<p class="note">{escape(note)}</p>'


def _bars(title: str, name: str, counts: Sequence[int], y: Axis, note: str = "") -> str:
    """Returns a histogram of values between 0 and 1 with a bar at the centre of each bin."""
    bins = len(counts)
    labels = {i * bins / 4 - 0.5: f"{i / 4:g}" for i in range(5)}
    bars = {float(i): [value] for i, value in enumerate(_percent(counts))}
    return stacked_bars(title, Axis(name, labels), y, ["masks"], bars, note)


def _percent(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [100 * count / total if total else 0.0 for count in counts]
