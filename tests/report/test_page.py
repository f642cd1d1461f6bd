"""The page is complete and self-contained, and exists for a run in any state."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from demo_run import write_demo

from samtrain.report import write_report

VOID = {"meta", "img", "br", "line", "path", "circle", "rect"}


class Checker(HTMLParser):
    """Collects the visible text, and fails if tags are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.words.append(data)


def check(page: str) -> str:
    """Returns the page's text, single-spaced, after checking that its tags are closed and that it loads nothing."""
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert all(link.startswith("data:image/png;base64,") for link in checker.links)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    return " ".join(" ".join(checker.words).split())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo") / "run")


def test_a_run_with_both_stages(tmp_path: Path) -> None:
    text = check(write_report(write_demo(tmp_path / "run", rounds=11)).read_text())
    for words in (
        "first stage: assisted-manual", "second stage: semi-automatic", "5.9 million, 10.2 in total",
        "180,000, 300,000 in total",
        "0.57 → 0.93 objects that have a mask", "0.91 precision of automatic masks", "18.8 → 5.6 s per mask, first to last",
        "Objects that have a mask, by size", "drawn by the annotator", "stage 2",
    ):  # fmt: skip
        assert words in text, words
    # a pool without a probe, or without ground truth, has no coverage to show
    path = tmp_path / "run" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"coverage/all": None, "automatic/precision": None}))
    assert "objects that have a mask</" not in write_report(tmp_path / "run").read_text()


def test_a_finished_run_of_the_engine(demo: Path) -> None:
    path = write_report(demo)
    assert path == demo / "report.html" and not list(demo.glob("*.partial"))
    text = check(path.read_text())
    for words in (
        "python -m samtrain +experiment=stage1",
        "0123456789abcdef0123456789abcdef01234567 with uncommitted changes",
        "2 CPU cores",
        "9 min",
        "5 of 6",
        "0.473 before this run",
        "upper bound for one mask per click",
        "baseline: flood fill",
        "not better",
        "34 → 14",
        "16.4 → 10.9",
        "20 → 44",
        "4.3 million",
        "vit_tiny → vit_small",
        "modelled",
        "round 6, step 80",
        "The white line is the ground truth",
        "memory/peak_gb",
    ):
        assert words in text, words


def test_texts_of_the_user_are_escaped(demo: Path) -> None:
    page = write_report(demo).read_text()
    assert "<images>" not in page and "&lt;images&gt; &amp; more" in page
    assert "<b>&" not in page


def test_every_chart_has_named_axes(demo: Path) -> None:
    page = write_report(demo).read_text()
    charts = re.findall(r'<figure class="chart">.*?</figure>', page, re.S)
    assert len(charts) == 11
    assert all(chart.count('<text class="name"') == 2 for chart in charts)


def test_a_run_that_has_not_ended_says_so(tmp_path: Path) -> None:
    text = check(write_report(write_demo(tmp_path / "run", rounds=2, finished=False)).read_text())
    assert "has not ended" in text and "2 of 2" in text


def test_a_single_training_without_rounds(demo: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "fit"
    shutil.copytree(demo / "pretrain", run_dir)
    (run_dir / "metrics.json").write_text(json.dumps({"val/miou_1": 0.4, "val/miou_3": 0.5}))
    text = check(write_report(run_dir).read_text())
    assert "Training loss" in text and "Rounds" not in text and "not recorded" in text
    assert "step 300" in text and "validation 1 click" in text


def test_a_metrics_file_without_images_seen(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/miou_1\n1,2.0,\n2,1.5,0.3\n")
    assert "steps" in check(write_report(tmp_path).read_text())


def test_a_loss_that_became_infinite_leaves_a_gap(tmp_path: Path) -> None:
    rows = "1,4,2.0,0.3\n2,8,inf,\n3,12,nan,nan\n4,16,1.5,0.4\n"
    (tmp_path / "metrics.csv").write_text("step,images_seen,train/loss,val/miou_1\n" + rows)
    page = write_report(tmp_path).read_text()
    assert "Training loss" in check(page) and "nan" not in page.split("</style>")[1]


def test_a_model_that_was_never_promoted_is_not_named_as_the_result(tmp_path: Path) -> None:
    run_dir = write_demo(tmp_path / "run", rounds=3)
    lines = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    lines[3]["model"] = "vit_small"
    (run_dir / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = check(write_report(run_dir).read_text())
    assert "vit_tiny → vit_tiny" in text and "vit_tiny → vit_small" not in text


def test_an_empty_and_a_missing_directory(tmp_path: Path) -> None:
    assert "not recorded" in check(write_report(tmp_path).read_text())
    with pytest.raises(ValueError, match="there is no run directory"):
        write_report(tmp_path / "none")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text('{"round": 0,\n')
    with pytest.raises(ValueError, match="ledger.jsonl cannot be parsed as JSON"):
        write_report(tmp_path)
    (tmp_path / "ledger.jsonl").unlink()
    (tmp_path / "metrics.json").write_text("[1]")
    with pytest.raises(ValueError, match="metrics.json holds a list"):
        write_report(tmp_path)
