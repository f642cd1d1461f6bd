"""The W&B dashboard as code: which logged names each panel shows."""

from __future__ import annotations

from typing import Any

IMAGES = ("images_seen", "images seen [number]")  # the x axis of a training
ROUND = ("ledger/round", "round [number]")  # the x axis of the data engine
CLOCK = ("RelativeTime(Process)", "time since the start [s, min or h: at the ticks]")  # the only x axis of system metrics

IOU = "mean IoU [0 to 1]"
NO_UNIT = "mean over objects [no unit]"
NUM_GPUS = 8  # GPUs per machine that get a curve
MAX_RUNS = 100  # per panel; W&B's default of 10 is too low, because each round of a data engine is a run

# the settings that experiments/sweeps/pretrain.yaml searches: key, title of the axis, whether it is logarithmic
SETTINGS = (
    ("optim.learning_rate_factor", "learning rate [times the recipe's]", True),
    ("loader.max_masks", "objects per image [number]", True),
    ("prompts.num_points", "clicks after the first prompt [number]", False),
)


def build_workspace(entity: str, project: str, *, last: int = 10) -> Any:
    """Returns a `wandb_workspaces` Workspace with five sections; only its `save()` contacts a server.

    `last` is the interaction, counted from 0, that is drawn beside the first one; 10 is the paper's last. Raises ValueError if
    wandb-workspaces is not installed.
    """
    wr, ws = _packages()
    panels = {
        "Training": _training(wr, last),
        "Masks": _masks(wr),
        "Data engine": _data_engine(wr),
        "Sweep": _sweep(wr),
        "Throughput": _throughput(wr),
    }
    return ws.Workspace(
        name="samtrain",
        entity=entity,
        project=project,
        sections=[
            ws.Section(name=name, panels=each, is_open=True, layout_settings=ws.SectionLayoutSettings(columns=3, rows=3))
            for name, each in panels.items()
        ],
        settings=ws.WorkspaceSettings(x_axis=IMAGES[0], max_runs=MAX_RUNS),
    )


def workspace_json(workspace: Any) -> dict[str, Any]:
    """Returns the spec that `save()` would send, as plain data without ids, because each build draws new ids."""
    spec = workspace._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return _without_ids(spec)


def _training(wr: Any, last: int) -> list[Any]:
    ends = (0, last)
    return [
        _curve(wr, "Loss", ["train/loss"], "weighted sum of focal, dice and IoU [no unit]"),
        _curve(wr, "Validation IoU by clicks", ["val/miou_1", "val/miou_2", "val/miou_3", "val/miou_5"], IOU),
        _curve(wr, "Best of three masks, and box", ["val/oracle_miou_1", "val/box_miou", "val/miou_1"], IOU),
        _curve(wr, "Focal loss, first and last interaction", [f"train/focal_{i}" for i in ends], NO_UNIT),
        _curve(wr, "Dice loss, first and last interaction", [f"train/dice_{i}" for i in ends], NO_UNIT),
        _curve(wr, "IoU loss, first and last interaction", [f"train/iou_{i}" for i in ends], NO_UNIT),
        _curve(wr, "Gradient before clipping", ["train/grad_norm"], "l2 norm [no unit]", log_y=True),
        _curve(wr, "Learning rate", ["train/lr"], "rate before layer decay [no unit]"),
    ]


def _masks(wr: Any) -> list[Any]:
    return [
        wr.MediaBrowser(title="Objects: masks to switch on and off", media_keys=["panels/objects"], num_columns=3),
        wr.MediaBrowser(title="Sheet: a row per object, a column per click", media_keys=["panels/sheet"], num_columns=1),
        wr.WeavePanelSummaryTable(table_name="panels/clicks"),
    ]


def _data_engine(wr: Any) -> list[Any]:
    share = "share of the objects [0 to 1]"
    sizes = ["ledger/probe_coverage/small", "ledger/probe_coverage/medium", "ledger/probe_coverage/large"]
    return [
        _curve(wr, "Masks of the round", ["ledger/masks", "ledger/masks_automatic"], "masks [number]", ROUND),
        _curve(wr, "Masks in total", ["ledger/masks_total"], "masks [number]", ROUND),
        _curve(
            wr,
            "Time per mask, drawn and on the probe",
            ["ledger/seconds_per_mask", "ledger/probe_seconds_per_mask"],
            "modelled time per mask [s]",
            ROUND,
        ),
        _curve(wr, "Validation IoU after the round", ["ledger/metrics_after/val/miou_1"], IOU, ROUND),
        _curve(wr, "Coverage", ["ledger/coverage/all", "ledger/probe_coverage/all"], share, ROUND),
        _curve(wr, "Coverage of the probe by size", sizes, share, ROUND),
        _curve(wr, "Images of the round, and in total", ["ledger/images", "ledger/images_total"], "images [number]", ROUND),
    ]


def _sweep(wr: Any) -> list[Any]:
    """Returns panels that compare runs by their config and their summary."""
    column = wr.ParallelCoordinatesPlotColumn
    columns = [column(metric=wr.Config(key), display_name=title, log=log) for key, title, log in SETTINGS]
    columns.append(column(metric=wr.SummaryMetric("val/miou_1"), display_name=f"validation, 1 click: {IOU}"))
    return [
        wr.ParallelCoordinatesPlot(title="Settings and validation IoU", columns=columns),
        wr.ParameterImportancePlot(with_respect_to="val/miou_1"),
        wr.ScatterPlot(
            # a scatter plot has no axis titles, so its title names the axes
            title=f"Validation at 1 click, {IOU}, over the learning rate [times the recipe's]",
            x=wr.Config("optim.learning_rate_factor"),
            y=wr.SummaryMetric("val/miou_1"),
            log_x=True,
        ),
        wr.BarPlot(title="Test IoU at 1 click", metrics=["test/miou_1"], title_x=IOU, title_y="run [name]"),
    ]


def _throughput(wr: Any) -> list[Any]:
    gpus = range(NUM_GPUS)
    return [
        _curve(wr, "Images per second", ["speed/images_per_s"], "images, all devices [1/s]"),
        _curve(wr, "Masks per second", ["speed/masks_per_s"], "masks, all devices [1/s]"),
        _curve(wr, "Waiting for data", ["speed/data_wait"], "share of the time [0 to 1]"),
        _curve(wr, "GPU utilisation", [f"system/gpu.{i}.gpu" for i in gpus], "time in use [%]", CLOCK),
        _curve(wr, "GPU memory", [f"system/gpu.{i}.memoryAllocated" for i in gpus], "memory in use [%]", CLOCK),
        _curve(wr, "CPU utilisation", ["system/cpu"], "time of all cores, this process [%]", CLOCK),
        _curve(wr, "CPU memory", ["system/proc.memory.rssMB"], "memory of this process [MB]", CLOCK),
    ]


def _curve(wr: Any, title: str, names: list[str], title_y: str, axis: tuple[str, str] = IMAGES, **more: Any) -> Any:
    return wr.LinePlot(title=title, x=axis[0], y=names, title_x=axis[1], title_y=title_y, **more)


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(each) for key, each in value.items() if key not in ("__id__", "id")}
    return [_without_ids(each) for each in value] if isinstance(value, list) else value


def _packages() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        raise ValueError("wandb-workspaces is not installed: pip install 'samtrain[dashboard]'") from error
    return wr, ws
