"""The ledger: one flat JSON object per line on disk, nested dataclasses in memory, checked when it is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pretend_engine import FIRST_LINE, ledger_line

from samtrain.data_engine.ledger import append_line, finite, read_ledger
from samtrain.data_engine.ledger_line import FLAT, from_flat

LINE = ledger_line()
SHARD = {"path": "a.tar", "sha256": "cd", "images": 2, "masks": 7}
PROBE = {key: value for key, value in FIRST_LINE.items() if key.startswith("probe_") and key != "probe_before"}
LATER = {
    "round": 1,
    "parent": "ab",
    "masks": 7,
    "seconds_per_mask": 14.25,
    "detector": "detector.pth",
    "detector_digest": "ef",
    "probe_before": PROBE,
    "shards": [SHARD],
}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    later = ledger_line(**LATER)
    assert read_ledger(tmp_path) == []
    append_line(tmp_path, LINE)
    append_line(tmp_path, later)
    assert read_ledger(tmp_path) == [LINE, later]
    assert list(tmp_path.iterdir()) == [tmp_path / "ledger.jsonl"], "nothing half written is left"


def test_the_file_keeps_its_keys_their_order_and_its_bytes(tmp_path: Path) -> None:
    """A line as runs of November 2026 wrote it, with whole numbers where others are fractions."""
    values = {key: {**FIRST_LINE, **LATER, "seconds_per_mask": 14}[key] for key in FLAT}
    assert list(ledger_line(**LATER).to_flat()) == list(FLAT)
    text = json.dumps(values)
    assert json.dumps(from_flat(json.loads(text), "line").to_flat()) == text


def test_keys_that_were_renamed_are_still_read() -> None:
    old = {{"images_left": "pictures_left", "images_skipped": "pictures_skipped"}.get(k, k): v for k, v in FIRST_LINE.items()}
    assert from_flat(old | {"pictures_left": 3}, "line").annotated.images_left == 3


def test_only_the_wall_clock_may_differ() -> None:
    assert LINE.reproducible() == replace(LINE, wall={"measure": 99.0}).reproducible()
    assert LINE.reproducible() != ledger_line(masks=1).reproducible()


def test_a_round_is_in_the_ledger_once() -> None:
    with pytest.raises(AssertionError):
        append_line(Path("nowhere"), ledger_line(round=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "is not JSON"),
        (lambda text: text.replace('"masks": 0', '"masks": "many"'), "annotated.masks is 'many': give a whole number"),
        (lambda text: text.replace('"masks": 0', '"masks": true'), "annotated.masks is True: give a whole number"),
        (lambda text: text.replace('"digest"', '"sum"'), r"missing \['digest'\], unknown \['sum'\]"),
        (lambda text: text.replace('"round": 0', '"round": 3'), "holds round 3 instead of round 0"),
        (lambda text: "[]", "not a line of a ledger"),
    ],
)
def test_a_damaged_ledger_is_refused_with_its_line(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(change(json.dumps(LINE.to_flat())) + "\n")
    with pytest.raises(ValueError, match=message) as error:
        read_ledger(tmp_path)
    assert "ledger.jsonl, line 1" in str(error.value)


def test_a_metric_that_is_not_finite_becomes_none() -> None:
    assert finite({"b": float("nan"), "a": 1}) == {"a": 1.0, "b": None}


def test_a_line_is_described_for_the_log() -> None:
    assert "first model has val/miou_1 0.400" in LINE.describe()
    line = ledger_line(round=1, metrics_before={"val/miou_1": 0.4}, promoted=False)
    assert "0.400 -> 0.400, not better" in line.describe()
