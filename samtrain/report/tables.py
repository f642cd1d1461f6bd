"""The numbers of the page: key numbers, final metrics, the ledger, and the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from samtrain.report.run_files import RunFiles

# what the paper says of its first two stages (Segment Anything, section 4)
PAPER = {
    "assisted_manual": {
        "seconds": "34 → 14",
        "masks_per_image": "20 → 44",
        "masks": "4.3 million",
        "images": "120,000",
        "retrainings": "6",
        "encoder": "ViT-B → ViT-H",
    },
    "semi_automatic": {
        "seconds": "up to 34",
        "masks_per_image": "44 → 72",
        "masks": "5.9 million, 10.2 in all",
        "images": "180,000, 300,000 in all",
        "retrainings": "5",
        "encoder": "ViT-H",
    },
}
STAGE_NAMES = {"assisted_manual": "first stage: assisted-manual", "semi_automatic": "second stage: semi-automatic"}
METRICS = (
    ("miou_1", "1 click, the model's choice of three masks"),
    ("oracle_miou_1", "1 click, best of the three masks"),
    ("miou_2", "2 clicks"),
    ("miou_3", "3 clicks"),
    ("miou_5", "5 clicks"),
    ("miou_9", "9 clicks"),
    ("box_miou", "a box"),
    ("ceiling_miou_1", "the best that any single mask a click could reach"),
    ("flood_fill_miou_1", "baseline: flood fill of the colour under the click"),
)
SPLITS = (("val/", "validation"), ("test/start_", "test, before the rounds of this run"), ("test/", "test"))


def key_numbers(run: RunFiles) -> str:
    """The few numbers that say how it went."""
    metrics, lines, cards = run.metrics, run.ledger, []
    for name, words in (("miou_1", "mean IoU, 1 click"), ("oracle_miou_1", "mean IoU, best of three")):
        value, start = metrics.get(f"test/{name}"), metrics.get(f"test/start_{name}")
        if value is not None:
            before = f"test; {start:.3f} before the rounds of this run" if start is not None else "test"
            cards.append((f"{value:.3f}", words, before))
    rounds = lines[1:]
    if rounds:
        promoted = sum(bool(line["promoted"]) for line in rounds)
        cards.append((f"{promoted} of {len(rounds)}", "rounds promoted", f"now {lines[-1]['encoder']}"))
        automatic = sum(line.get("masks_automatic", 0) for line in rounds)
        filled = f", {automatic:,} automatic" if automatic else ""
        cards.append((f"{lines[-1]['masks_total']:,}", "masks", f"in {lines[-1]['images_total']:,} images{filled}"))
    if metrics.get("coverage/all") is not None and metrics.get("coverage/start_all") is not None:
        gain = f"{metrics['coverage/start_all']:.2f} → {metrics['coverage/all']:.2f}"
        cards.append((gain, "objects that have a mask", "on the same images, before stage 2 and after"))
    if metrics.get("automatic/precision") is not None:
        cards.append((f"{metrics['automatic/precision']:.2f}", "precision of automatic masks", "IoU above 0.75 with an object"))
    if seconds := _probe_seconds(lines):
        objects = f"modelled, the same {lines[-1]['probe_masks']} objects"
        cards.append((f"{seconds[0]:.1f} → {seconds[-1]:.1f} s", "a mask, first to last", objects))
    if metrics.get("generated/masks") is not None:
        images = metrics["generated/images"]
        cards.append((f"{metrics['generated/masks']:,.0f}", "automatic masks", f"in {images:,.0f} images"))
        if pace := metrics.get("generated/images_per_second"):
            cards.append((f"{pace:.2g}", "images a second", "all processes of this run"))
    if metrics.get("generated/ar_100") is not None:
        precise = metrics.get("generated/precision_75")
        below = f"precision {precise:.2f} at IoU 0.75" if precise is not None else "against ground truth"
        cards.append((f"{metrics['generated/ar_100']:.3f}", "AR@100", below))
    if best := run.tune.get("best"):
        ended = sum(trial["state"] in ("COMPLETE", "PRUNED") for trial in run.tune["trials"])
        cards.append((f"{best['value']:.3f}", str(run.tune["metric"]), f"trial {best['number']}, the best"))
        cards.append((f"{ended} of {run.tune['num_trials']}", "trials ended", "finished or pruned"))
        if again := run.tune["again"]:
            words = f"winner minus default, {again['metric']}"
            cards.append((f"{again['difference']:+.3f}", words, f"mean of {len(again['by_seed'])} other seeds"))
    if "time/seconds" in metrics:
        peak = metrics.get("memory/peak_gb")
        cards.append((duration(metrics["time/seconds"]), "on the clock", f"{peak:.1f} GB at most" if peak else ""))
    return '<div class="cards">' + "".join(_card(*card) for card in cards) + "</div>" if cards else ""


def _probe_seconds(lines: Sequence[dict[str, Any]]) -> list[float]:
    """Seconds a mask on the probe of the last stage: of the model that it began with, and after each round."""
    stage = [line for line in lines if line["stage"] == lines[-1]["stage"]] if lines else []
    found = [each.get("probe_seconds_per_mask") for each in [*(line.get("probe_before") or {} for line in stage[:1]), *stage]]
    known = [value for value in found if value is not None]
    return known if len(known) > 1 else []


def metrics_table(run: RunFiles) -> str:
    """Final metrics by prompt and split, with ceiling and baseline where the run knows them."""
    splits = [(prefix, words) for prefix, words in SPLITS if any(prefix + name in run.metrics for name, _ in METRICS)]
    rows = [
        [escape(words), *(_number(run.metrics.get(prefix + name), 3) for prefix, _ in splits)]
        for name, words in METRICS
        if any(prefix + name in run.metrics for prefix, _ in splits)
    ]
    return table(["mean IoU after", *(words for _, words in splits)], rows) if rows else ""


def other_metrics(run: RunFiles) -> str:
    """Whatever else stands in metrics.json."""
    shown = {prefix + name for prefix, _ in SPLITS for name, _ in METRICS}
    rest = {name: value for name, value in run.metrics.items() if name not in shown}
    rows = [[f"<code>{escape(name)}</code>", _number(value, 4)] for name, value in sorted(rest.items())]
    return table(["name", "value"], rows) if rows else ""


def ledger_table(run: RunFiles) -> str:
    """A line a round."""
    if not run.ledger:
        return ""
    filled = any(line.get("detector") for line in run.ledger)
    head = ["round", "trained", "images", "masks", *(["automatic", "precision"] if filled else []), "masks / image"]
    head += ["s / mask", "s / mask, probe", "clicks / mask", "strokes / mask", "IoU with truth", "covered", "left early"]
    head += ["before → after", "", "computer's time"]
    metric = str(run.ledger[0]["promote_metric"])
    rows = []
    for line in run.ledger:
        is_first = line["round"] == 0
        before, after = (_number(line[f"metrics_{when}"].get(metric), 3) for when in ("before", "after"))
        verdict = "first model" if is_first else "promoted" if line["promoted"] else "kept the old"
        counts = ["" if is_first else _number(line[name], 0) for name in ("images", "masks")]
        by_machine = [line.get("masks_automatic") or None, line.get("automatic_precision")]
        work = ["masks_per_image", "seconds_per_mask", "probe_seconds_per_mask", "clicks_per_mask", "strokes_per_mask"]
        rows.append(
            [
                "start" if is_first else str(line["round"]),
                escape(str(line["model"])),
                *counts,
                *([_number(value, 2) for value in by_machine] if filled else []),
                *(_number(line[name], 1) for name in work),
                _number(line["mask_iou"], 3),
                _number((line.get("coverage") or {}).get("all"), 3),
                "" if is_first else _number(line["images_left"], 0),
                after if is_first else f"{before} → {after}",
                f'<span class="{"good" if line["promoted"] else "plain"}">{verdict}</span>',
                duration(sum(line["wall"].values())),
            ]
        )
    return (
        table(head, rows, "ledger")
        + f'<p class="note">before → after: {escape(metric)} of the model in use and of the new one. covered: share of the '
        "objects in the images of the round that some mask shows with an IoU above 0.75. s / mask: of drawn masks alone; the "
        "probe is of a stage.</p>"
    )


def paper_table(run: RunFiles) -> str:
    """The paper's stages beside this run, and what the comparison cannot show."""
    stages = {str(line["stage"]): None for line in run.ledger[1:]}
    return "".join(_paper_stage(run, stage) for stage in stages if stage in PAPER) + (SIMULATION if stages else "")


def _paper_stage(run: RunFiles, stage: str) -> str:
    rounds = [line for line in run.ledger[1:] if line["stage"] == stage]
    paper, first, last = PAPER[stage], rounds[0], rounds[-1]
    before = run.ledger[first["round"] - 1]
    start = first.get("probe_before") or before
    probe = f"{_number(start['probe_seconds_per_mask'], 1)} → {_number(last['probe_seconds_per_mask'], 1)}"
    masks, images = _sum(rounds, "masks"), _sum(rounds, "images")
    in_all = f", {last['masks_total']:,} in all" if before["round"] else ""
    images_in_all = f", {last['images_total']:,} in all" if before["round"] else ""
    rows = [
        ["seconds a mask, automatic ones not counted *", paper["seconds"], _from_to(first, last, "seconds_per_mask")],
        ["seconds a mask, the same objects each time *", "", probe],
        ["masks an image, automatic ones included", paper["masks_per_image"], _from_to(first, last, "masks_per_image")],
        ["masks", paper["masks"], f"{masks:,}{in_all}"],
        ["images", paper["images"], f"{images:,}{images_in_all}"],
        ["retrainings", paper["retrainings"], str(len(rounds))],
        ["encoder", paper["encoder"], escape(f"{before['encoder']} → {last['encoder']}")],
    ]
    if any(line.get("detector") for line in rounds):
        rows[3:3] = [["masks an image, drawn", "", _from_to(first, last, "assisted_per_image")]]
        covered = [start.get("probe_coverage", {}), last["probe_coverage"]]
        words = {"all": "objects that have a mask, the same images", "small": "of them small ones"}
        rows += [[text, "", " → ".join(_number(each.get(name), 2) for each in covered)] for name, text in words.items()]
    return table([STAGE_NAMES[stage], "paper, people", "this run, simulated"], rows)


SIMULATION = """<p class="note">* What a simulation cannot show is people's speed. The paper's seconds were measured with
people, these are modelled: so many clicks, looks and brush strokes, each with a time from the literature or an assumption
(<code>annotator.time_model</code> in the config). They show whether a better model needs less work. They do not show that
people tire, learn, overlook objects, disagree about what an object is, or correct what they should have left. The simulated
annotator knows the objects of the ground truth and no others, so masks an image end where the ground truth ends;
people had no such end. It stops where its mask agrees well enough with the ground truth, so the IoU of what it drew
says how it was set, not how good people would be.</p>"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """Cells come as HTML; the first column is words, the others numbers."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def duration(seconds: float) -> str:
    """8 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _card(value: str, words: str, below: str) -> str:
    return f"<div><b>{escape(value)}</b><span>{escape(words)}</span><small>{escape(below)}</small></div>"


def _from_to(first: dict[str, Any], last: dict[str, Any], name: str) -> str:
    return f"{_number(first[name], 1)} → {_number(last[name], 1)}"


def _sum(lines: Sequence[dict[str, Any]], name: str) -> int:
    return sum(line[name] for line in lines)


def _number(value: Any, digits: int) -> str:
    """A count as it is, a measure with so many digits, a dash for what is not there."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
