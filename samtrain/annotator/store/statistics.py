"""What the status bar and the report show: how much is done, how fast, and how well people agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from sqlalchemy import Connection, case, func, select

from samtrain.annotator.store.database import Database
from samtrain.annotator.store.people import upsert
from samtrain.annotator.store.schema import AGREEMENTS, IMAGES, MASKS, OPINIONS
from samtrain.ops.rle import RLE, rle_iou

NOW = 50  # masks that "seconds per mask now" is the mean of
SAME_OBJECT = 0.5  # IoU from which two annotators mean the same object; COCO's lowest threshold
PAPER_AGREEMENT = (0.85, 0.91)  # IoU of two annotators, section 5 of the paper


class Statistics:
    """The part of the store that counts."""

    database: Database

    def statistics(self) -> dict[str, Any]:
        """Returns counts and means as plain JSON; a mean of nothing is None.

        images:            {"total", "done", "open", "skipped", "closed"}
        masks:             {"done", "assisted", "automatic", "rejected", "deleted"}; accepted ones of first opinions are done
        seconds_per_mask:  {"now": of the last 50 masks, "rounds": {"1": ...}}: of those that people made
        annotators:        {name: {"masks", "images", "seconds_per_mask", "clicks_per_mask"}}
        masks_per_image:   of the images that are done
        rejected:          share of the locked masks that people rejected, of those in images that are done
        agreement:         {"images", "pairs", "unmatched", "iou", "above_0.9", "above_0.75", "paper": [0.85, 0.91]}
        """
        self._find_agreements()

        def work(connection: Connection) -> dict[str, Any]:
            images = _count_images(connection)
            return {
                "images": images,
                "masks": _count_masks(connection),
                "seconds_per_mask": {"now": _seconds_now(connection), "rounds": _seconds_by_round(connection)},
                "annotators": _by_annotator(connection),
                **_of_done_images(connection, images["done"]),
                "agreement": _agreement(connection),
            }

        return self.database.read(work)

    def _find_agreements(self) -> None:
        """Compares the opinions of the images that were not compared yet."""
        for image_id in self.database.read(_not_compared):
            first, second = (self.masks(image_id, opinion=number) for number in (0, 1))  # type: ignore[attr-defined]
            ious = matched_ious([each.segmentation for each in first], [each.segmentation for each in second])
            values = {"image_id": image_id, "ious": ious, "unmatched": len(first) + len(second) - 2 * len(ious)}

            def work(connection: Connection, values: dict[str, Any] = values) -> None:
                upsert(self.database, connection, AGREEMENTS, values, key=("image_id",))

            self.database.write(work)


def matched_ious(first: Sequence[RLE], second: Sequence[RLE]) -> list[float]:
    """Returns the IoUs of the pairs of masks that show the same object; each mask is in one pair at most."""
    ious = rle_iou(first, second)
    rows, columns = linear_sum_assignment(-ious)
    return [float(iou) for iou in ious[rows, columns] if iou >= SAME_OBJECT]


# ---- one query each

_OURS = (MASKS.c.source == "assisted", MASKS.c.state == "accepted", MASKS.c.origin != "imported")


def _count_images(connection: Connection) -> dict[str, int]:
    counts = dict.fromkeys(("open", "done", "skipped", "closed"), 0)
    query = select(IMAGES.c.state, func.count()).group_by(IMAGES.c.state)
    counts |= {state: number for state, number in connection.execute(query)}
    return {"total": sum(counts.values()), **counts}


def _count_masks(connection: Connection) -> dict[str, int]:
    groups = (MASKS.c.state, MASKS.c.source)
    query = select(*groups, func.count()).where(MASKS.c.opinion == 0).group_by(*groups)
    counts = {(state, source): number for state, source, number in connection.execute(query)}

    def total(state: str) -> int:
        return sum(number for (found, _), number in counts.items() if found == state)

    assisted, automatic = counts.get(("accepted", "assisted"), 0), counts.get(("accepted", "automatic"), 0)
    return {
        "done": total("accepted"), "assisted": assisted, "automatic": automatic,
        "rejected": total("rejected"), "deleted": total("deleted"),
    }  # fmt: skip


def _seconds_now(connection: Connection) -> float | None:
    last = select(MASKS.c.seconds).where(*_OURS).order_by(MASKS.c.id.desc()).limit(NOW).subquery()
    return _float(connection.execute(select(func.avg(last.c.seconds))).scalar())


def _seconds_by_round(connection: Connection) -> dict[str, float]:
    query = select(MASKS.c.round, func.avg(MASKS.c.seconds)).where(*_OURS, MASKS.c.round.is_not(None)).group_by(MASKS.c.round)
    return {str(number): float(mean) for number, mean in connection.execute(query.order_by(MASKS.c.round))}


def _by_annotator(connection: Connection) -> dict[str, dict[str, Any]]:
    columns = (MASKS.c.annotator, func.count(), func.count(MASKS.c.image_id.distinct()), func.sum(MASKS.c.seconds))
    query = select(*columns, func.sum(MASKS.c.clicks)).where(*_OURS).group_by(MASKS.c.annotator).order_by(MASKS.c.annotator)
    return {
        name: {"masks": n, "images": images, "seconds_per_mask": float(seconds) / n, "clicks_per_mask": float(clicks) / n}
        for name, n, images, seconds, clicks in connection.execute(query)
    }


def _of_done_images(connection: Connection, images: int) -> dict[str, float | None]:
    """Returns masks per image, and the share of the locked masks that were rejected."""
    locked = func.sum(case((MASKS.c.locked, 1), else_=0))
    rejected = func.sum(case((MASKS.c.locked & (MASKS.c.state == "rejected"), 1), else_=0))
    accepted = func.sum(case((MASKS.c.state == "accepted", 1), else_=0))
    joined = MASKS.join(IMAGES, IMAGES.c.id == MASKS.c.image_id)
    query = select(accepted, locked, rejected).select_from(joined).where(IMAGES.c.state == "done", MASKS.c.opinion == 0)
    masks, total, wrong = (int(number or 0) for number in connection.execute(query).one())
    return {"masks_per_image": masks / images if images else None, "rejected": wrong / total if total else None}


def _agreement(connection: Connection) -> dict[str, Any]:
    rows = connection.execute(select(AGREEMENTS.c.ious, AGREEMENTS.c.unmatched)).all()
    ious = np.array([iou for row in rows for iou in row.ious])

    def mean(values: np.ndarray) -> float | None:
        return float(values.mean()) if values.size else None

    return {
        "images": len(rows), "pairs": int(ious.size), "unmatched": sum(row.unmatched for row in rows), "iou": mean(ious),
        "above_0.9": mean(ious > 0.9), "above_0.75": mean(ious > 0.75), "paper": list(PAPER_AGREEMENT),
    }  # fmt: skip


def _not_compared(connection: Connection) -> list[int]:
    """Returns the images with two finished opinions that were not compared since the last change."""
    compared = select(AGREEMENTS.c.image_id)
    query = select(OPINIONS.c.image_id).where(OPINIONS.c.state == "done", OPINIONS.c.number < 2)
    query = query.where(OPINIONS.c.image_id.not_in(compared)).group_by(OPINIONS.c.image_id).having(func.count() == 2)
    return list(connection.execute(query).scalars())


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
