"""task=zero_shot: several sets, resuming with the next image, and rows that anyone can read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from pretend_predictor import write_pool
from scipy.io import savemat

from samtrain import tasks
from samtrain.evaluators import Points
from samtrain.modeling.build import load_sam
from samtrain.modeling.checkpoints import save_official
from samtrain.training.loggers import LoggerConfig, WandbConfig, make_loggers
from tests.data_engine.automatic.images import as_jpeg, shapes, write_model
from tests.wandb_records import offline_runs

CONF = Path(__file__).resolve().parents[2] / "conf"


def run(folder: Path, *overrides: str) -> dict:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = tasks.resolve(compose("config", overrides=[*overrides, f"run_dir={folder}", "trainer.accelerator=cpu"]))
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))  # as the command line does; the report reads it
    return tasks.run(config, folder)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("sets")
    model = write_model(folder / "model.safetensors")
    for name, first in (("one", 0), ("two", 10)):
        write_pool(folder / name, 3, num=2, first=first)
    return [f"checkpoint={model}", f"+zero_shot.sets.one={folder / 'one'}", f"+zero_shot.sets.two={folder / 'two'}"]


def test_points_of_two_sets(tmp_path: Path, given: list[str]) -> None:
    metrics = run(tmp_path / "run", "+experiment=zero_shot_points", *given)
    assert metrics["mean/miou_1"] == pytest.approx((metrics["one/miou_1"] + metrics["two/miou_1"]) / 2)
    assert metrics["one/objects"] == 6 and metrics["mean/objects"] == 12
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Zero-shot" in page and f"{metrics['two/miou_1']:.3f} (" in page and "0.581" in page
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install 'samtrain[parquet]'")
    table = parquet.read_table(tmp_path / "run" / "objects.parquet").to_pylist()
    assert len(table) == 12 and {row["set"] for row in table} == {"one", "two"}
    own = [row["iou_1"] for row in table if row["set"] == "one"]
    assert sum(own) / len(own) == pytest.approx(metrics["one/miou_1"])


@pytest.mark.parametrize("protocol", ["proposals", "instances"])
def test_the_other_protocols(tmp_path: Path, given: list[str], protocol: str) -> None:
    more = ["generator.points_per_side=4"] if protocol == "proposals" else []
    metrics = run(tmp_path / "run", f"+experiment=zero_shot_{protocol}", *given, *more)
    name = "mask_ar_1000" if protocol == "proposals" else "mask_ap"
    assert 0 <= metrics[f"one/{name}"] <= 1 and f"mean/{name}" in metrics


def test_edges_of_a_set_in_the_form_of_bsds(tmp_path: Path, given: list[str]) -> None:
    for number in range(2):
        for folder in ("images", "groundTruth"):
            (tmp_path / "data" / folder / "test").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "images" / "test" / f"{number}.jpg").write_bytes(as_jpeg(shapes(number)))
        record = np.zeros((1, 1), dtype=[("Boundaries", object)])
        record[0, 0] = (np.eye(60, 80, dtype=np.uint8),)
        cells = np.empty((1, 1), dtype=object)
        cells[0, 0] = record
        savemat(tmp_path / "data" / "groundTruth" / "test" / f"{number}.mat", {"groundTruth": cells})
    more = [given[0], f"+zero_shot.sets.bsds={tmp_path / 'data'}", "generator.points_per_side=4"]
    metrics = run(tmp_path / "run", "+experiment=zero_shot_edges", *more)
    assert all(0 <= metrics[f"bsds/{name}"] <= 1 for name in ("ods", "ois", "ap", "r50"))
    (tmp_path / "data" / "groundTruth" / "test" / "1.mat").unlink()
    with pytest.raises(ValueError, match="1.jpg has no annotations"):
        run(tmp_path / "again", "+experiment=zero_shot_edges", *more)


def test_a_killed_run_resumes_with_the_next_image(tmp_path: Path, given: list[str], monkeypatch) -> None:
    whole = run(tmp_path / "whole", "+experiment=zero_shot_points", *given)
    seen = []
    real = Points.rows

    def counting(evaluator, record):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(record.key)
        return real(evaluator, record)

    monkeypatch.setattr(Points, "rows", counting)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", "+experiment=zero_shot_points", *given)
    rows = tmp_path / "cut" / "rows.jsonl"
    assert len(rows.read_text().splitlines()) == 4
    rows.write_text(rows.read_text() + '{"image": "two/scene_01')  # killed while it wrote
    monkeypatch.setattr(Points, "rows", lambda evaluator, record: seen.append(record.key) or real(evaluator, record))
    again = run(tmp_path / "cut", "+experiment=zero_shot_points", *given)
    assert len(seen) == len(set(seen)) == 6
    costs = ("seconds", "memory")
    first, second = ({k: v for k, v in each.items() if not any(c in k for c in costs)} for each in (whole, again))
    assert first == second
    assert all(json.loads(line) for line in rows.read_text().splitlines())


def numbers(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if not any(word in name for word in ("seconds", "memory"))}


def test_two_processes_find_the_same(tmp_path: Path, given: list[str]) -> None:
    """Up to rounding: threads decide the last bits."""
    one = numbers(run(tmp_path / "one", "+experiment=zero_shot_points", *given))
    two = numbers(run(tmp_path / "two", "+experiment=zero_shot_points", *given, "zero_shot.num_workers=2"))
    assert sorted(path.name for path in (tmp_path / "two").glob("rows*")) == ["rows_0.jsonl", "rows_1.jsonl"]
    assert two == pytest.approx(one, abs=1e-4)
    rows = [json.loads(line) for path in (tmp_path / "two").glob("rows_*") for line in path.read_text().splitlines()]
    assert len(rows) == len({(row["set"], row["image"]) for row in rows}) == 6
    # resumed by one process: nothing is left to do
    again = run(tmp_path / "two", "+experiment=zero_shot_points", *given)
    assert numbers(again) == two and not (tmp_path / "two" / "rows.jsonl").read_text()


def test_rows_of_other_files_are_refused(tmp_path: Path, given: list[str]) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(Path(given[0].removeprefix("checkpoint=")).read_bytes())
    command = ["+experiment=zero_shot_points", f"checkpoint={model}", given[1]]
    whole = run(tmp_path / "run", *command)
    rows = tmp_path / "run" / "rows.jsonl"
    first = rows.read_text().splitlines()[0]
    rows.write_text(rows.read_text() + first + "\n")  # a worker that outlived its run measured it, too
    assert numbers(run(tmp_path / "run", *command)) == numbers(whole)
    write_model(model, seed=1)
    with pytest.raises(ValueError, match="model.safetensors has changed since .*another run_dir"):
        run(tmp_path / "run", *command)


def test_several_ranks_are_refused(tmp_path: Path, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="4 ranks were launched.*set zero_shot.num_workers"):
        run(tmp_path / "run", "+experiment=zero_shot_points", *given)


def test_groups_are_checked_before_anything_is_encoded(tmp_path: Path, given: list[str], monkeypatch) -> None:
    monkeypatch.setattr("samtrain.evaluators.rows.load_sam", lambda *a, **s: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="zero_shot.group_by is 'gender', and no object of one has it as a field"):
        run(tmp_path / "run", "+experiment=fairness", *given, "zero_shot.group_by=gender")


def test_the_format_of_the_checkpoint_changes_no_number(tmp_path: Path, given: list[str]) -> None:
    ours = given[0].removeprefix("checkpoint=")
    official = save_official(load_sam(ours), tmp_path / "sam.pth")
    whole = numbers(run(tmp_path / "ours", "+experiment=zero_shot_points", *given))
    assert numbers(run(tmp_path / "theirs", "+experiment=zero_shot_points", f"checkpoint={official}", *given[1:])) == whole


@pytest.mark.parametrize("images", ["true", "false"])
def test_wandb_has_the_numbers_and_a_row_an_object(tmp_path: Path, given: list[str], images: str) -> None:
    pytest.importorskip("wandb")
    more = ["logger=wandb", "logger.wandb.offline=true", f"logger.wandb.log_images={images}", "~zero_shot.sets.two"]
    metrics = run(tmp_path / "run", "+experiment=zero_shot_points", *given, *more)
    (found,) = offline_runs(tmp_path / "run")
    assert found.summary["one/miou_1"] == metrics["one/miou_1"]
    table = json.loads((found.files / found.history[-1]["objects/path"]).read_text())
    assert len(table["data"]) == 6 and {"set", "iou_1", "area"} <= set(table["columns"])
    assert ("key" in table["columns"]) is (images == "true")
    # nothing of the images' names in anything that would be sent
    sent = [path for path in found.path.parent.rglob("*") if path.is_file()]
    named = [path.name for path in sent if b"scene_00" in path.read_bytes()]
    assert bool(named) is (images == "true"), named
    config = LoggerConfig(wandb=WandbConfig(offline=True, log_images=images == "true"))
    (logger,) = make_loggers(tmp_path / "again", config)[1:]
    assert ("settings" in logger._wandb_init) is (images == "false")  # type: ignore[attr-defined]


def test_images_in_their_own_pixels(tmp_path: Path, given: list[str]) -> None:
    metrics = run(tmp_path / "run", "+experiment=zero_shot_points", *given, "zero_shot.native=true", "~zero_shot.sets.two")
    assert metrics["one/objects"] == 6 and 0 <= metrics["one/miou_1"] <= 1


def test_known_sets_that_are_missing_are_listed(tmp_path: Path, given: list[str], caplog) -> None:
    (tmp_path / "data" / "zero_shot").mkdir(parents=True)
    command = ["+experiment=zero_shot_sa23", given[0], f"data_dir={tmp_path / 'data'}"]
    with pytest.raises(ValueError, match="none of the 23 datasets was found"):
        run(tmp_path / "none", *command)
    write_pool(tmp_path / "data" / "zero_shot" / "doors", 2, num=2)
    metrics = run(tmp_path / "run", *command)
    assert metrics["doors/objects"] == 4 and "mean/miou_1" not in metrics
    content = json.loads((tmp_path / "run" / "zero_shot.json").read_text())
    assert content["sets"] == ["doors"] and len(content["missing"]) == 22
    assert content["missing"]["lvis"]["images"] == 945
    assert "lvis was not found at" in caplog.text and "CC BY 4.0" in caplog.text
    page = (tmp_path / "run" / "report.html").read_text()
    assert "22 data sets were not found" in page and "timberseg" in page


def test_automatic_masks_against_full_ground_truth(tmp_path: Path, given: list[str]) -> None:
    more = ["generator.points_per_side=4", "generator.pred_iou_thresh=0", "generator.stability_score_thresh=0"]
    metrics = run(tmp_path / "run", "+experiment=zero_shot_automatic", *given, *more)
    for name in ("ar_100", "precision_50", "nuclei_ap", "pq", "object_dice", "boundary_f"):
        assert 0 <= metrics[f"one/{name}"] <= 1, name
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install 'samtrain[parquet]'")
    table = parquet.read_table(tmp_path / "run" / "objects.parquet").to_pylist()
    assert len(table) == 12 and all(row["rank"] >= 1 and 0 <= row["iou"] <= 1 for row in table)


def test_fairness_by_a_table_of_groups(tmp_path: Path, given: list[str]) -> None:
    table = tmp_path / "groups.csv"
    points = run(tmp_path / "points", "+experiment=zero_shot_points", *given)
    rows = [json.loads(line) for line in (tmp_path / "points" / "rows.jsonl").read_text().splitlines()]
    objects = [row for each in rows if each["set"] == "one" for row in each["rows"]]
    lines = [f"{row['key']},{row['id']},{'large' if row['area'] > 100 else 'small'}" for row in objects[:-1]]
    table.write_text("\n".join(["key,id,size", *lines]))
    more = ["zero_shot.group_by=size", f"zero_shot.groups={table}", "~zero_shot.sets.two"]
    metrics = run(tmp_path / "run", "+experiment=fairness", *given, *more)
    groups = {line.split(",")[2] for line in lines}
    assert sum(metrics[f"one/{group}/objects"] for group in groups) == points["one/objects"] - 1
    assert metrics["one/ungrouped"] == 1
    assert all(metrics[f"one/{g}/miou_3_low"] <= metrics[f"one/{g}/miou_3"] <= metrics[f"one/{g}/miou_3_high"] for g in groups)
    table.write_text("key,size\n")
    with pytest.raises(ValueError, match="no column id"):
        run(tmp_path / "again", "+experiment=fairness", *given, *more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["checkpoint=null"], "checkpoint is null"),
        (["zero_shot.protocol=fog"], "points, proposals"),
        (["zero_shot.protocol=edges"], "no image in"),
        (["zero_shot.protocol=instances", "zero_shot.boxes=no.json"], "no file"),
        (["zero_shot.protocol=fairness"], "group_by is null"),
        (["zero_shot.protocol=learning_curve"], "zero_shot.run is None: give the directory"),
        (["zero_shot.boxes=no.json"], "zero_shot.protocol=instances"),
        (["zero_shot.num_workers=0"], "num_workers"),
        (["zero_shot.max_masks=0"], "zero_shot.max_masks is 0"),
        (["zero_shot.protocol=proposals", "zero_shot.native=true"], "zero_shot.native is True, which has no meaning"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, given: list[str], more: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", "task=zero_shot", *given, *more)
