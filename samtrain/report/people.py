"""What people did in the rounds: each person's seconds and clicks, what they rejected, and what nobody measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from samtrain.report.run_files import RunFiles
from samtrain.report.tables import number, table

Line = dict[str, Any]
SECONDS = """<p class="note">Seconds are measured while people work on a mask; times without a movement of more than
<code>annotate.idle_seconds</code> are not counted, and neither are prefilled masks. The work on masks that were deleted
counts for those that were kept. In the paper, people took 34 s per mask at first and 14 s at the end of the first stage, and
made 20 and then 44 masks per image.</p>"""


def people_section(run: RunFiles) -> str:
    """Returns a table with a row for each person and round, one of the rounds, and notes; "" without people."""
    lines = [line for line in run.ledger if line.get("people")]
    if not lines:
        return ""
    head = ["round", "person", "images", "masks", "s / mask", "clicks / mask"]
    rows = [row for line in lines for row in _rows(line)]
    return table(head, rows, "ledger") + _rounds(lines) + SECONDS + _not_measured(run.ledger)


def has_people(lines: Sequence[Line]) -> bool:
    """Returns whether people annotated a round of these lines of a ledger."""
    return any(line.get("people") for line in lines)


def _rows(line: Line) -> Iterator[list[str]]:
    """Yields a row for each person of a round, and one for all of them if there are several."""
    by_name = line["people"]["by_name"]
    for name, person in by_name.items():
        yield _row(line, name, person)
    if len(by_name) > 1:
        yield _row(line, "all", {**line, "masks": line["masks"] - line["masks_automatic"]})


def _row(line: Line, name: str, values: Line) -> list[str]:
    work = [number(values[key], 1) for key in ("seconds_per_mask", "clicks_per_mask")]
    return [str(line["round"]), escape(name), number(values["images"], 0), number(values["masks"], 0), *work]


def _rounds(lines: Sequence[Line]) -> str:
    """Returns a table of the images that were left and of the prefilled masks that were rejected."""
    has_prefilled = any(line["people"]["prefilled"] for line in lines)
    head = ["round", "images", "closed while somebody worked on it", "left for later", "masks / image"]
    head += ["prefilled", "rejected", "share rejected"] if has_prefilled else []
    rows = []
    for line in lines:
        people = line["people"]
        counts = [line["images"], people["images_unfinished"], people["images_untouched"]]
        row = [str(line["round"]), *(number(each, 0) for each in counts), number(line["masks_per_image"], 1)]
        rejected = [number(people["prefilled"], 0), number(people["rejected"], 0), number(people["rejected_share"], 2)]
        rows.append(row + (rejected if has_prefilled else []))
    return table(head, rows, "ledger")


def _not_measured(lines: Sequence[Line]) -> str:
    """Returns a note about the numbers that this run does not have."""
    rounds = [line for line in lines if line.get("people")]
    missing = ["the probe, because people do not annotate an image a second time to compare models"]
    if all(line["coverage"].get("all") is None for line in rounds):
        missing.append("coverage and agreement with the ground truth, because the images have none")
    if all(not line["metrics_after"] for line in lines):
        return (
            '<p class="note">Nothing was measured after a round: no image was held back for validation '
            "(<code>annotate.val</code>), so the "
            f"newest model was always promoted. Not measured either: {'; '.join(missing)}.</p>"
        )
    return f'<p class="note">Not measured: {"; ".join(missing)}.</p>'
