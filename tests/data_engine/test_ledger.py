"""The ledger: written whole, read back checked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pretend_engine import LINE

from samtrain.data_engine.ledger import append_line, finite, read_ledger


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    later = replace(LINE, round=1, parent="ab", masks=7, seconds_per_mask=14.25, shards=[{"path": "a.tar", "masks": 7}])
    assert read_ledger(tmp_path) == []
    append_line(tmp_path, LINE)
    append_line(tmp_path, later)
    assert read_ledger(tmp_path) == [LINE, later]
    assert list(tmp_path.iterdir()) == [tmp_path / "ledger.jsonl"], "nothing half written is left"


def test_the_wall_clock_stands_apart() -> None:
    assert LINE.reproducible() == replace(LINE, wall={"measure": 99.0}).reproducible()
    assert LINE.reproducible() != replace(LINE, masks=1).reproducible()


def test_a_round_is_in_the_ledger_once() -> None:
    with pytest.raises(AssertionError):
        append_line(Path("nowhere"), replace(LINE, round=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "is no JSON"),
        (lambda text: text.replace('"masks": 0', '"masks": "many"'), "masks is 'many', not int"),
        (lambda text: text.replace('"masks": 0', '"masks": true'), "masks is True, not int"),
        (lambda text: text.replace('"digest"', '"sum"'), r"missing \['digest'\], unknown \['sum'\]"),
        (lambda text: text.replace('"round": 0', '"round": 3'), "holds round 3 where round 0 belongs"),
        (lambda text: "[]", "no line of this version"),
    ],
)
def test_a_damaged_ledger_is_refused_with_its_line(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(change(json.dumps(LINE.to_dict())) + "\n")
    with pytest.raises(ValueError, match=message) as error:
        read_ledger(tmp_path)
    assert "ledger.jsonl, line 1" in str(error.value)


def test_a_metric_that_is_no_number_becomes_none() -> None:
    assert finite({"b": float("nan"), "a": 1}) == {"a": 1.0, "b": None}


def test_a_line_in_words() -> None:
    assert "first model has val/miou_1 0.400" in LINE.in_words()
    line = replace(LINE, round=1, metrics_before={"val/miou_1": 0.4}, promoted=False)
    assert "0.400 -> 0.400, not better" in line.in_words()
