"""Compares the stages of a run with those of the paper, and says what the comparison cannot show."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from samtrain.report.people import has_people
from samtrain.report.run_files import RunFiles
from samtrain.report.tables import STAGE_NAMES, number, table

# the paper's numbers for its first two stages (Segment Anything, section 4)
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
        "masks": "5.9 million, 10.2 in total",
        "images": "180,000, 300,000 in total",
        "retrainings": "5",
        "encoder": "ViT-H",
    },
}


def paper_table(run: RunFiles) -> str:
    """Returns a table per stage, and a note about the simulation."""
    stages = {str(line["stage"]): None for line in run.ledger[1:]}
    simulated = any(not line.get("people") for line in run.ledger[1:])
    return "".join(_paper_stage(run, stage) for stage in stages if stage in PAPER) + (SIMULATION if simulated else "")


def _paper_stage(run: RunFiles, stage: str) -> str:
    """Returns the table of one stage: first → last round, and totals."""
    rounds = [line for line in run.ledger[1:] if line["stage"] == stage]
    paper, first, last = PAPER[stage], rounds[0], rounds[-1]
    before = run.ledger[first["round"] - 1]
    start = first.get("probe_before") or before
    probe = f"{number(start['probe_seconds_per_mask'], 1)} → {number(last['probe_seconds_per_mask'], 1)}"
    masks, images = _sum(rounds, "masks"), _sum(rounds, "images")
    masks_in_total = f", {last['masks_total']:,} in total" if before["round"] else ""
    images_in_total = f", {last['images_total']:,} in total" if before["round"] else ""
    people = has_people(rounds)
    star = "" if people else " *"
    rows = [
        [f"seconds per mask, without automatic masks{star}", paper["seconds"], _from_to(first, last, "seconds_per_mask")],
        *([] if people else [["seconds per mask, for the same objects each time *", "", probe]]),
        ["masks per image, with automatic masks", paper["masks_per_image"], _from_to(first, last, "masks_per_image")],
        ["masks", paper["masks"], f"{masks:,}{masks_in_total}"],
        ["images", paper["images"], f"{images:,}{images_in_total}"],
        ["retrainings", paper["retrainings"], str(len(rounds))],
        ["encoder", paper["encoder"], escape(f"{before['encoder']} → {last['encoder']}")],
    ]
    if any(line.get("detector") for line in rounds):
        after = [row[0] for row in rows].index("masks")
        rows[after:after] = [["masks per image, drawn", "", _from_to(first, last, "assisted_per_image")]]
    if any(line.get("detector") for line in rounds) and not people:
        covered = [start.get("probe_coverage", {}), last["probe_coverage"]]
        words = {"all": "objects that have a mask, on the same images", "small": "small objects, on the same images"}
        rows += [[text, "", " → ".join(number(each.get(name), 2) for each in covered)] for name, text in words.items()]
    return table([STAGE_NAMES[stage], "paper, people", "this run, people" if people else "this run, simulation"], rows)


SIMULATION = """<p class="note">* A simulation cannot show how fast people are. The paper measured seconds with people; here
they are modelled as a number of clicks, looks and brush strokes, each with a time from the literature or an assumption
(<code>annotator.time_model</code> in the config). The modelled seconds show whether a better model needs less work. They do
not show that people get tired, learn, overlook objects, disagree about what an object is, or correct masks that were good
enough. The simulated annotator knows only the objects of the ground truth, so the ground truth limits the masks per image;
people had no such limit. It stops when its mask agrees well enough with the ground truth, so the IoU of its masks shows how
it was set and not how good people would be.</p>"""


def _from_to(first: dict[str, Any], last: dict[str, Any], name: str) -> str:
    return f"{number(first[name], 1)} → {number(last[name], 1)}"


def _sum(lines: Sequence[dict[str, Any]], name: str) -> int:
    return sum(line[name] for line in lines)


