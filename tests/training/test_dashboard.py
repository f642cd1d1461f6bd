"""The dashboard names what runs log, by the JSON that W&B would get; the sweep's file gives settings that there are."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from pretend_engine import FIRST_LINE
from pretend_predictor import PretendPredictor, record_of
from tiny_training import BlobData, tiny_lit, tiny_trainer

from samtrain import tasks
from samtrain.data.shards import Record
from samtrain.data_engine.coverage import coverage
from samtrain.data_engine.ledger_line import from_flat
from samtrain.evaluators.clicks import evaluate_clicks
from samtrain.run.build import loggers_of
from samtrain.run.trainer import validation_interval
from samtrain.training.callbacks import MaskPanels, Throughput
from samtrain.training.lit_sam import METRICS
from samtrain.training.loggers import AXIS, LedgerLogger, SamWandbLogger
from samtrain.training.loggers import ROUND as ROUND_AXIS
from samtrain.training.loggers.dashboard import SETTINGS, build_workspace, workspace_json

ROOT = Path(__file__).resolve().parents[2]
SWEEP = yaml.safe_load((ROOT / "experiments" / "sweeps" / "pretrain.yaml").read_text())
LAST = 4  # interaction of the tiny training, counted from 0

# section -> panels in their order: x-axis, names
TIME, SEEN, ROUND = "_runtime", "images_seen", "ledger/round"
PANELS: dict[str, list[tuple[str | None, list[str]]]] = {
    "Training": [
        (SEEN, ["train/loss"]),
        (SEEN, ["val/miou_1", "val/miou_2", "val/miou_3", "val/miou_5"]),
        (SEEN, ["val/oracle_miou_1", "val/box_miou", "val/miou_1"]),
        (SEEN, ["train/focal_0", "train/focal_4"]),
        (SEEN, ["train/dice_0", "train/dice_4"]),
        (SEEN, ["train/iou_0", "train/iou_4"]),
        (SEEN, ["train/grad_norm"]),
        (SEEN, ["train/lr"]),
    ],
    "Masks": [(None, ["panels/objects"]), (None, ["panels/sheet"]), (None, ["panels/clicks"])],
    "Data engine": [
        (ROUND, ["ledger/masks", "ledger/masks_automatic"]),
        (ROUND, ["ledger/masks_total"]),
        (ROUND, ["ledger/seconds_per_mask", "ledger/probe_seconds_per_mask"]),
        (ROUND, ["ledger/metrics_after/val/miou_1"]),
        (ROUND, ["ledger/coverage/all", "ledger/probe_coverage/all"]),
        (ROUND, ["ledger/probe_coverage/small", "ledger/probe_coverage/medium", "ledger/probe_coverage/large"]),
        (ROUND, ["ledger/images", "ledger/images_total"]),
    ],
    "Sweep": [
        (None, ["optim.learning_rate_factor", "loader.max_masks", "prompts.num_points", "val/miou_1"]),
        (None, ["val/miou_1"]),
        ("optim.learning_rate_factor", ["val/miou_1"]),
        (None, ["test/miou_1"]),
    ],
    "Throughput": [
        (SEEN, ["speed/images_per_s"]),
        (SEEN, ["speed/masks_per_s"]),
        (SEEN, ["speed/data_wait"]),
        (TIME, [f"system/gpu.{i}.gpu" for i in range(8)]),
        (TIME, [f"system/gpu.{i}.memoryAllocated" for i in range(8)]),
        (TIME, ["system/cpu"]),
        (TIME, ["system/proc.memory.rssMB"]),
    ],
}


@pytest.fixture
def nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no connection, and no process that could make one; nobody tries."""
    asked: list[Any] = []

    def refuse(*arguments: Any, **more: Any) -> None:
        asked.append(arguments)
        raise OSError("there is no network")

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    yield
    assert asked == []


@pytest.fixture
def spec() -> dict[str, Any]:
    """The workspace as JSON, there and back."""
    pytest.importorskip("wandb_workspaces", reason="needs wandb-workspaces: pip install 'samtrain[dashboard]'")
    return json.loads(json.dumps(workspace_json(build_workspace("somebody", "samtrain", last=LAST))))


def config_of(*overrides: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return tasks.resolve(compose("config", overrides=[*overrides, "run_dir=run"]))


def at(config: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        config = config[key]
    return config


# ---- the JSON


def sections(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {each["name"]: each["panels"] for each in spec["section"]["panelBankConfig"]["sections"]}


def panels(spec: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    """The settings of all panels of a kind."""
    return (panel["config"] for each in sections(spec).values() for panel in each if panel["viewType"] == kind)


def shown(panel: dict[str, Any]) -> tuple[str | None, list[str]]:
    """The x-axis and the names of a panel."""
    config = panel["config"]
    match panel["viewType"]:
        case "Run History Line Plot":
            return config["xAxis"], config["metrics"]
        case "Bar Chart":
            return None, config["metrics"]
        case "Media Browser":
            return None, config["mediaKeys"]
        case "Parameter Importance":
            return None, [config["targetKey"]]
        case "Parallel Coordinates Plot":
            return None, [name_of(column["accessor"]) for column in config["columns"]]
        case "Scatter Plot":
            return name_of(config["xAxis"]), [name_of(config["yAxis"])]
        case "Weave":
            return None, [config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]]
    raise AssertionError(panel["viewType"])


def name_of(accessor: str) -> str:
    """`a.b.c` of `config:a.value.b.c`, a setting in the config that runs log as it is nested; or of `summary:a.b.c`."""
    kind, _, name = accessor.partition(":")
    if kind == "summary":
        return name
    first, value, *rest = name.split(".")
    assert (kind, value) == ("config", "value"), accessor
    return ".".join([first, *rest])


def test_each_section_shows_its_names_over_its_axis(spec: dict[str, Any]) -> None:
    assert {name: [shown(panel) for panel in each] for name, each in sections(spec).items()} == PANELS
    assert (spec["section"]["settings"]["xAxis"], SEEN, ROUND) == (AXIS, AXIS, ROUND_AXIS)


@pytest.mark.usefixtures("nobody_to_ask")
def test_two_builds_are_equal_and_need_no_server(spec: dict[str, Any]) -> None:
    again = build_workspace("somebody", "samtrain", last=LAST)
    assert workspace_json(again) == spec
    assert workspace_json(build_workspace("somebody else", "samtrain", last=LAST + 1)) != spec


def test_every_axis_has_a_title_with_its_unit(spec: dict[str, Any]) -> None:
    unit = re.compile(r"\w.* \[.+\]$")
    axes = [config[f"{axis}AxisTitle"] for kind in ("Run History Line Plot", "Bar Chart")
            for config in panels(spec, kind) for axis in "xy"]  # fmt: skip
    axes += [column["displayName"] for config in panels(spec, "Parallel Coordinates Plot") for column in config["columns"]]
    assert [title for title in axes if not unit.match(title)] == []
    for config in panels(spec, "Scatter Plot"):  # they have no titles of axes
        assert config["chartTitle"].count("[") == 2


# ---- what runs log


class Recorder(SamWandbLogger):
    """Keeps the names that W&B would be told."""

    def __init__(self, folder: Path) -> None:
        super().__init__(save_dir=folder, offline=True, log_artifacts="none")
        self.names: set[str] = set()

    @property
    def experiment(self) -> Any:
        return SimpleNamespace(log=self.names.update)


def full_line() -> dict[str, Any]:
    """A line of the ledger in which no number is missing."""
    sizes = dict.fromkeys(coverage([], (1, 2)), 0.5)
    numbers = {key: 0.5 for key, value in FIRST_LINE.items() if value is None}
    nested = {"coverage": sizes, "probe_coverage": sizes, "metrics_after": dict.fromkeys(METRICS, 0.5)}
    paths = {"parent": None, "detector": None, "detector_digest": None}
    return from_flat({**FIRST_LINE, **numbers, **nested, **paths}, "full line").to_flat()


def logged_names(folder: Path) -> set[str]:
    """Of a training with validation, speeds and panels; of a round; of the test."""
    recorder = Recorder(folder)
    callbacks = [Throughput(), MaskPanels(directory=folder / "panels", num_objects=1, side=32)]
    trainer = tiny_trainer(folder, max_steps=6, callbacks=callbacks, logger=[recorder], enable_checkpointing=False)
    trainer.fit(tiny_lit(), BlobData())
    LedgerLogger([recorder], folder).log_last([full_line()], images_seen=1)
    data, ext, annotation = record_of(0)
    tested, _ = evaluate_clicks(PretendPredictor(lambda whole, clicks: whole), [Record("a", ext, data, annotation, "a.tar")])
    return recorder.names | {f"test/{name}" for name in tested}


def logged_config(folder: Path) -> dict[str, Any]:
    """What W&B is told of a run's settings."""
    config = config_of("logger=wandb", "logger.wandb.offline=true")
    (logger,) = [each for each in loggers_of(config, folder) if isinstance(each, SamWandbLogger)]
    return logger._wandb_init["config"]


def test_every_name_is_one_that_a_run_logs(spec: dict[str, Any], tmp_path: Path) -> None:
    known, settings = logged_names(tmp_path), {key for key, _, _ in SETTINGS}
    assert {"train/focal_4", "speed/data_wait", "panels/objects", "ledger/round"} <= known, "the names are not gathered"
    used = {name for each in sections(spec).values() for x, names in map(shown, each) for name in (x, *names) if name}
    own = {name for name in used if name.startswith("system/")} | {TIME}  # W&B's, of the machine
    assert used - own - settings - known == set()
    assert used >= set(METRICS)
    assert all(at(logged_config(tmp_path), key) is not None for key in settings)


# ---- the task


@pytest.mark.usefixtures("nobody_to_ask")
def test_without_an_entity_only_the_file_is_written(spec: dict[str, Any], tmp_path: Path) -> None:
    tasks.run(config_of("task=dashboard", "scale=paper"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["workspace.json"]
    written = json.loads((tmp_path / "workspace.json").read_text())
    assert shown(sections(written)["Training"][3])[1] == ["train/focal_0", "train/focal_10"], "11 interactions (appendix A)"
    tasks.run(config_of("task=dashboard", "prompts.num_points=4", "prompts.num_mask_only=0"), tmp_path)
    assert json.loads((tmp_path / "workspace.json").read_text()) == spec


def test_with_an_entity_what_is_written_is_saved(
    spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Any] = []

    def take(view: Any) -> dict[str, Any]:
        sent.append(view)
        return {"upsertView": {"view": {"name": "nw-abc-v", "id": "1"}}}

    monkeypatch.setattr("wandb_workspaces.workspaces.internal.upsert_view2", take)
    monkeypatch.setattr("wandb_workspaces.workspaces.interface.get_app_url", lambda api: "https://wandb.ai")
    monkeypatch.setattr("wandb.Api", lambda: None)
    given = ["task=dashboard", "dashboard.entity=somebody", "dashboard.project=own"]
    with caplog.at_level(logging.INFO):
        tasks.run(config_of(*given), tmp_path)
    assert "https://wandb.ai/somebody/own?nw=abc" in caplog.text
    (view,) = sent
    assert (view.entity, view.project) == ("somebody", "own")
    names = [[panel.get("__id__") for panel in each] for each in sections(view.spec.model_dump(by_alias=True)).values()]
    assert all(all(each) for each in names), "what is sent has ids"
    parts = sections(json.loads((tmp_path / "workspace.json").read_text()))
    assert {name: len(each) for name, each in parts.items()} == {name: len(each) for name, each in PANELS.items()}


def test_what_wandb_refuses_is_said(spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(view: Any) -> None:
        raise wandb.errors.CommError("project not found")

    monkeypatch.setattr("wandb_workspaces.workspaces.internal.upsert_view2", refuse)
    with pytest.raises(ValueError, match=r"somebody/samtrain.*project not found.*wandb login.*dashboard.project"):
        tasks.run(config_of("task=dashboard", "dashboard.entity=somebody"), tmp_path)
    assert (tmp_path / "workspace.json").is_file()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(ValueError, match=r"pip install 'samtrain\[dashboard\]'"):
        build_workspace("somebody", "samtrain")


# ---- the sweep


GIVEN = [word for word in SWEEP["command"] if "=" in word]


def ends_of(parameter: dict[str, Any]) -> list[Any]:
    """Its least and greatest value, or the first that it may take."""
    return [parameter["min"], parameter["max"]] if "min" in parameter else parameter["values"][:1]


@pytest.mark.parametrize("key", SWEEP["parameters"])
def test_settings_of_the_sweep_compose(key: str) -> None:
    for value in ends_of(SWEEP["parameters"][key]):
        assert at(config_of(*GIVEN, f"{key}={value}"), key) == value


def test_the_sweep_runs_an_experiment_that_there_is() -> None:
    assert SWEEP["command"][1:4] == ["${interpreter}", "-m", "samtrain"]
    assert SWEEP["command"][-1] == "${args_no_hyphens}" and (ROOT / SWEEP["program"]).is_file()
    assert "+experiment=pretrain" in GIVEN and (ROOT / "conf" / "experiment" / "pretrain.yaml").is_file()
    config = config_of(*GIVEN)
    assert config["logger"]["wandb"] is not None and not config["logger"]["wandb"]["offline"]
    assert SWEEP["project"] == config["dashboard"]["project"] == config["logger"]["wandb"]["project"]


def test_the_sweep_is_judged_by_what_validation_logs() -> None:
    assert SWEEP["metric"] == {"name": "val/miou_1", "goal": "maximize"} and SWEEP["metric"]["name"] in METRICS
    trainer, stopping = config_of(*GIVEN)["trainer"], SWEEP["early_terminate"]
    validations = trainer["max_steps"] // validation_interval(trainer["max_steps"], trainer["val_every_steps"])
    assert validations > stopping["min_iter"] * stopping["eta"], "nothing could be stopped"


def test_the_dashboard_shows_what_the_sweep_searches() -> None:
    assert [key for key, _, _ in SETTINGS] == list(SWEEP["parameters"])
