"""`task=zero_shot`: one of the paper's zero-shot experiments, on any number of sets; killed, it goes on by picture."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from samtrain.data.once import naming_full_disk
from samtrain.data.shards import Record, expand_urls
from samtrain.evaluators.edge_matching import EdgeCounts, edge_metrics
from samtrain.evaluators.masks import ScoredMasks, mask_metrics
from samtrain.evaluators.zero_shot_edges import EdgePicture, edge_pictures, edge_row
from samtrain.evaluators.zero_shot_instances import instance_row, read_detections
from samtrain.evaluators.zero_shot_points import mean_over_sets, point_rows, summarise
from samtrain.evaluators.zero_shot_proposals import proposal_row
from samtrain.modeling.build import load_sam
from samtrain.report.page import write_report
from samtrain.tasks.build import Config, device_of, make_predictor
from samtrain.tasks.fit import costs
from samtrain.tasks.generate import make_generator
from samtrain.tasks.run_dir import Metrics, write_metrics
from samtrain.tasks.sets import open_set, records

log = logging.getLogger(__name__)

PROTOCOLS = ("points", "proposals", "instances", "edges")
ROWS = "rows.jsonl"  # a line a picture: the set's name, the picture's key, its rows
Item = Record | EdgePicture
Look = Callable[[Any], list[dict[str, Any]]]


def run(config: Config, run_dir: Path) -> Metrics:
    """Write `rows.jsonl`, `objects.parquet` (points: a row an object), `metrics.json` and `report.html`."""
    begin, settings = time.perf_counter(), config["zero_shot"]
    _check(config)
    sets = _sets(config)
    look, summary = _protocol(config)
    done = dict(_finished(run_dir / ROWS))
    metrics: Metrics = {}
    of_sets: list[dict[str, float]] = []
    with open(run_dir / ROWS, "a", encoding="utf-8") as file:
        for name, urls in sets.items():
            found: list[dict[str, Any]] = []
            seen: set[str] = set()
            for item in _items(config, name, urls):
                key = f"{name}/{item.key}"
                if key in seen:
                    raise ValueError(f"zero_shot.sets.{name} has two pictures {item.key!r}: make its shards sets of their own")
                seen.add(key)
                if key not in done:
                    done[key] = look(item)
                    with naming_full_disk(run_dir / ROWS):
                        file.write(json.dumps({"picture": key, "rows": done[key]}) + "\n")
                        file.flush()
                found += done[key]
            if not found:
                raise ValueError(f"zero_shot.sets.{name}: no picture of it holds an object")
            of_sets.append(summary(found))
            metrics.update({f"{name}/{key}": value for key, value in of_sets[-1].items()})
            log.info("%s: %s", name, _line(of_sets[-1]))
    if len(of_sets) > 1:
        metrics.update({f"mean/{key}": value for key, value in mean_over_sets(of_sets).items()})
    if settings["protocol"] == "points":
        _write_parquet(run_dir / "objects.parquet", done)
    metrics.update(costs(run_dir, begin))
    write_metrics(run_dir, metrics)
    log.info("report: %s", write_report(run_dir))
    return metrics


def _protocol(config: Config) -> tuple[Look, Callable[[list[dict[str, Any]]], dict[str, float]]]:
    """What is done with a picture, and what is made of all its rows."""
    settings, seed = config["zero_shot"], config["seed"]
    if settings["protocol"] in ("proposals", "edges"):
        generator = make_generator(config, device_of(config))
        if settings["protocol"] == "edges":
            return lambda picture: [edge_row(generator, picture)], lambda rows: edge_metrics([EdgeCounts(**r) for r in rows])
        return lambda record: [proposal_row(generator, record)], lambda rows: mask_metrics(_scored(rows))
    predictor = make_predictor(load_sam(config["checkpoint"]).to(device_of(config)), native=False)
    if settings["protocol"] == "instances":
        boxes = settings["boxes"]
        detections = None if boxes is None else read_detections(json.loads(Path(boxes).read_text()), str(boxes))
        return (
            lambda record: [instance_row(predictor, record, detections)],
            lambda rows: mask_metrics(_scored(rows), max_masks=[1, 10, 100]),
        )
    return (
        lambda record: point_rows(predictor, record, max_masks=settings["max_masks"], seed=seed),
        lambda rows: summarise(rows, seed),
    )


def _scored(rows: list[dict[str, Any]]) -> list[ScoredMasks]:
    return [ScoredMasks(row["objects"], row["found"], row["scores"], row["crowd"]) for row in rows]


def _items(config: Config, name: str, urls: list[str]) -> Iterator[Item]:
    """The pictures of a set."""
    if config["zero_shot"]["protocol"] != "edges":
        yield from records(urls, config["data"]["on_error"])
        return
    for folder in urls:
        yield from edge_pictures(Path(folder), config["zero_shot"]["split"], key=f"zero_shot.sets.{name}")


def _sets(config: Config) -> dict[str, list[str]]:
    """Tars by the name of their set: those that are named, or the test split of the data; of edges, folders."""
    named = config["zero_shot"]["sets"]
    if config["zero_shot"]["protocol"] == "edges":
        if not named:
            raise ValueError("zero_shot.sets is empty: name BSDS500's data folder, +zero_shot.sets.bsds500=BSDS500/data")
        return {name: [folder] for name, folder in named.items()}
    if named:
        return {name: expand_urls(urls) for name, urls in named.items()}
    pictures = open_set(config["data"], config["data_dir"])
    if not pictures.test:
        raise ValueError("no pictures are held back for the test (data.test): name sets, zero_shot.sets.NAME=SHARDS")
    return {"test": pictures.test}


def _finished(path: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Pictures of an interrupted run; a line that was cut is taken off the file."""
    if not path.is_file():
        return
    whole = 0
    with open(path, "rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            content = json.loads(line)
            yield content["picture"], content["rows"]
        file.truncate(whole)


def _write_parquet(path: Path, done: dict[str, list[dict[str, Any]]]) -> None:
    """A row an object, with its set."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        log.warning("%s is not written, %s has the same rows: pip install 'samtrain[parquet]'", path.name, ROWS)
        return
    rows = [{"set": key.split("/")[0], **row} for key, of_picture in done.items() for row in of_picture]
    partial = path.with_name(f"{path.name}.partial")
    pq.write_table(pa.Table.from_pylist(rows), partial)
    partial.replace(path)


def _check(config: Config) -> None:
    settings = config["zero_shot"]
    if config["checkpoint"] is None:
        raise ValueError("checkpoint is null: task=zero_shot needs one, checkpoint=FILE")
    if settings["protocol"] not in PROTOCOLS:
        raise ValueError(f"zero_shot.protocol is {settings['protocol']!r}: take one of {', '.join(PROTOCOLS)}")
    if settings["boxes"] is not None and not Path(settings["boxes"]).is_file():
        raise ValueError(f"zero_shot.boxes is {settings['boxes']!r}, which is no file: a COCO result JSON, or null")


def _line(metrics: dict[str, float]) -> str:
    names = ("miou_1", "oracle_miou_1", "miou_3", "box_miou", "noc_90", "mask_ar_1000", "mask_ap", "mask_ap50", "ods", "ois")
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in names if name in metrics)
