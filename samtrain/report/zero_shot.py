"""The zero-shot experiments on the page: a column per data set, with the paper's numbers beside them."""

from __future__ import annotations

from html import escape

from samtrain.report.run_files import RunFiles
from samtrain.report.tables import table

# name, description, and the published number of ViT-H: from the paper, or for clicks from SAM 2's table 6 (23 sets)
NAMES = (
    ("miou_1", "mean IoU, 1 click", "0.581 (SAM 2, table 6)"),
    ("miou_2", "2 clicks", ""),
    ("miou_3", "3 clicks", ""),
    ("miou_5", "5 clicks", "0.813 (SAM 2, table 6)"),
    ("miou_9", "9 clicks", ""),
    ("oracle_miou_1", "1 click, best of three masks", ""),
    ("random_miou_1", "1 click anywhere on the object", ""),
    ("random_miou_3", "3 clicks, the first anywhere", ""),
    ("box_miou", "a box", ""),
    ("noc_80", "clicks until IoU 0.80 (20 at most)", ""),
    ("noc_85", "until 0.85", ""),
    ("noc_90", "until 0.90", ""),
    ("failures_90", "objects below 0.90 after 20 clicks", ""),
    ("click_seconds", "seconds per click", ""),
    ("mask_ar_10", "AR@10", ""),
    ("mask_ar_100", "AR@100", ""),
    ("mask_ar_1000", "AR@1000", "0.593 (LVIS)"),
    ("mask_ar_1000_small", "small", "0.455 (LVIS)"),
    ("mask_ar_1000_medium", "medium", "0.816 (LVIS)"),
    ("mask_ar_1000_large", "large", "0.869 (LVIS)"),
    ("mask_ar_1000_frequent", "categories that are frequent", "0.591 (LVIS)"),
    ("mask_ar_1000_common", "common", "0.639 (LVIS)"),
    ("mask_ar_1000_rare", "rare", "0.658 (LVIS)"),
    ("mask_ap", "mask AP", "0.465 (COCO), 0.447 (LVIS)"),
    ("mask_ap_small", "small", "0.308 (COCO), 0.325 (LVIS)"),
    ("mask_ap_medium", "medium", "0.510 (COCO), 0.576 (LVIS)"),
    ("mask_ap_large", "large", "0.617 (COCO), 0.655 (LVIS)"),
    ("mask_ap_frequent", "categories that are frequent", ""),
    ("mask_ap_common", "common", ""),
    ("mask_ap_rare", "rare", ""),
    ("categories", "categories that AP is a mean over", "80 (COCO), 1,203 (LVIS)"),
    ("ods", "ODS", "0.768 (BSDS500)"),
    ("ois", "OIS", "0.786 (BSDS500)"),
    ("ap", "AP of edges", "0.794 (BSDS500)"),
    ("r50", "R50", "0.928 (BSDS500)"),
    ("ar_100", "AR@100", ""),
    ("precision_50", "masks that match an object with IoU above 0.50", ""),
    ("precision_75", "above 0.75", ""),
    ("nuclei_ap", "nuclei AP, IoU 0.50 to 0.95", ""),
    ("nuclei_ap50", "at 0.50", ""),
    ("nuclei_ap75", "at 0.75", ""),
    ("pq", "panoptic quality", ""),
    ("pq_small", "small", ""),
    ("pq_medium", "medium", ""),
    ("pq_large", "large", ""),
    ("object_dice", "Dice of each object's best mask", ""),
    ("foreground_dice", "Dice of all masks together and all objects together", ""),
    ("boundary_f", "boundary F of each object's best mask", ""),
    ("gap_1", "best minus worst group, 1 click", ""),
    ("gap_3", "3 clicks", ""),
    ("ungrouped", "objects without a group", ""),
    ("masks_per_image", "masks per image", ""),
    ("objects", "objects", ""),
    ("images", "images", ""),
)
# the same metrics in the fairness experiment: table 6, by perceived gender, age and skin tone of people
FAIRNESS = {"miou_1": "0.515 to 0.629 by group (people)", "miou_3": "0.901 to 0.926 by group (people)"}
PAPER_SIZES = [1024, 9216]  # size_limits of the paper's numbers by size: COCO's, 32 and 96 pixels squared
NOTE = "Brackets give 95 % intervals of a bootstrap over images. The paper's numbers are for ViT-H on the paper's data sets."


def zero_shot_table(run: RunFiles) -> str:
    """Returns a table with a column per set, or "" if the run was not a zero-shot experiment."""
    if run.config.get("task") != "zero_shot" or not run.metrics:
        return ""
    protocol = str(run.config.get("zero_shot", {}).get("protocol"))
    others = {"proposals": "mask_ap", "instances": "mask_ar"}  # computed as well, but not part of the protocol
    other = others.get(protocol)
    sets = list(dict.fromkeys(key.rsplit("/", 1)[0] for key in run.metrics if not key.startswith(("time/", "memory/"))))
    known = FAIRNESS if protocol == "fairness" else _without_sizes(run)
    rows = []
    for name, words, paper in NAMES:
        if (other and name.startswith(other)) or not any(f"{each}/{name}" in run.metrics for each in sets):
            continue
        rows.append([escape(words), *(_cell(run, each, name) for each in sets), escape(known.get(name, paper))])
    heads = ["", *(escape(each) for each in sets), "paper, ViT-H"]
    return f'{table(heads, rows, "wide-words")}<p class="note">{NOTE}</p>' if rows else ""


def _without_sizes(run: RunFiles) -> dict[str, str]:
    """Returns no numbers of the paper for sizes that are not the paper's."""
    if list(run.config.get("size_limits") or PAPER_SIZES) == PAPER_SIZES:
        return {}
    return {name: "" for name, _, _ in NAMES if name.endswith(("_small", "_medium", "_large"))}


def missing_sets(run: RunFiles) -> str:
    """Returns the data sets that were not found, and how to get each one."""
    missing = run.zero_shot.get("missing", {})
    rows = [
        [escape(name), *(escape(str(said[key])) for key in ("images", "masks", "licence", "get"))]
        for name, said in missing.items()
    ]
    if not rows:
        return ""
    body = table(["", "images", "masks", "licence", "how to get it"], rows, "sets")
    return f"<details><summary>{len(rows)} data sets were not found</summary>{body}</details>"


def _cell(run: RunFiles, name_of_set: str, name: str) -> str:
    value = run.metrics.get(f"{name_of_set}/{name}")
    if value is None:
        return ""
    if name in ("objects", "images", "ungrouped", "categories") or name.startswith("failures"):
        return f"{value:,.0f}"
    low, high = (run.metrics.get(f"{name_of_set}/{name}_{end}") for end in ("low", "high"))
    interval = f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else ""
    return f"{value:.3f}{interval}"
