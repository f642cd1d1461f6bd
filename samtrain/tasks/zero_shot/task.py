"""`task=zero_shot`: one of the paper's zero-shot experiments, on any number of sets; killed, it goes on by image."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samtrain.data.image_set import records
from samtrain.data.shards import Record, expand_urls
from samtrain.evaluators.learning_curve import Milestone, milestones
from samtrain.evaluators.zero_shot_edges import EdgeImage, edge_images
from samtrain.evaluators.zero_shot_points import mean_over_sets
from samtrain.files import digest, explain_full_disk, write_text
from samtrain.report.page import write_report
from samtrain.run.build import Config, device_of, loggers_of
from samtrain.run.clock import costs
from samtrain.run.directory import Metrics, num_ranks, write_metrics
from samtrain.run.image_sets import open_set
from samtrain.run.processes import CONTEXT, as_worker, run_together
from samtrain.tasks.zero_shot.protocols import PROTOCOLS, Look, Protocol, groups_of
from samtrain.training.loggers import finish

log = logging.getLogger(__name__)

INPUTS = "inputs.json"  # the files that the rows are of
ROWS = "rows*.jsonl"  # a file a process, a line an image: the set's name, the image's key and number, its rows
SAY_EVERY = 30.0  # seconds
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One set with one checkpoint; `name` is what its numbers begin with."""

    name: str
    urls: list[str]
    checkpoint: str


def run(config: Config, run_dir: Path) -> Metrics:
    """Write `rows*.jsonl`, `objects.parquet` (a row an object), `zero_shot.json`, `metrics.json` and `report.html`."""
    begin = time.perf_counter()
    _check(config)
    protocol = PROTOCOLS[config["zero_shot"]["protocol"]]
    loggers = loggers_of(config, run_dir)[1:]
    sets, missing = _sets(config)
    steps = milestones(Path(config["zero_shot"]["run"])) if _is_curve(config) else []
    parts = _parts(config, sets, steps)
    _check_groups(config, parts)
    _check_same(run_dir, _identities(config, parts))
    _look_at_all(config, run_dir, parts)

    rows = _finished(run_dir)
    metrics: Metrics = {}
    of_sets: list[dict[str, float]] = []
    for part in parts:
        found = [row for _, of_image in rows.get(part.name, []) for row in of_image]
        if not found:
            raise ValueError(f"zero_shot.sets.{part.name}: no image of it holds an object")
        of_sets.append(protocol.summary(found, config))
        metrics.update({f"{part.name}/{key}": value for key, value in of_sets[-1].items()})
        log.info("%s: %s", part.name, _line(of_sets[-1]))
    if len(of_sets) > 1 and not steps:
        metrics.update({f"mean/{key}": value for key, value in mean_over_sets(of_sets).items()})
    objects = _objects(protocol, rows)
    _write_parquet(run_dir / "objects.parquet", objects)
    told = {"missing": missing, "sets": list(sets), "milestones": [asdict(each) for each in steps]}
    write_text(run_dir / "zero_shot.json", json.dumps(told, indent=1) + "\n")
    metrics.update(costs(run_dir, begin))
    write_metrics(run_dir, metrics)
    log.info("report: %s", write_report(run_dir))
    finish(loggers, metrics, objects=objects)
    return metrics


# ---- what is looked at


def _sets(config: Config) -> tuple[dict[str, list[str]], dict[str, dict[str, Any]]]:
    """Tars by the name of their set, and the entries of known sets that are not on disk.

    Sets are those that are named, or the test split of the data; of edges, folders.
    """
    named: dict[str, Any] = config["zero_shot"]["sets"]
    if config["zero_shot"]["protocol"] == "edges":
        if not named:
            raise ValueError("zero_shot.sets is empty: name BSDS500's data folder, +zero_shot.sets.bsds500=BSDS500/data")
        return {name: [folder] for name, folder in named.items()}, {}
    if not named:
        images = open_set(config["data"], config["data_dir"])
        if not images.test:
            raise ValueError("no images are held back for the test (data.test): name sets, zero_shot.sets.NAME=SHARDS")
        return {"test": images.test}, {}
    found, missing = {}, {}
    for name, said in named.items():
        if not isinstance(said, dict):
            found[name] = expand_urls(said)
        elif tars := _on_disk(said["shards"]):
            found[name] = tars
        else:
            missing[name] = said
            how = f"licence: {said['licence']}; {' '.join(said['get'].split())}"
            log.warning("%s is not there, %s (%s)", name, said["shards"], how)
    if not found:
        raise ValueError(f"none of the {len(missing)} sets is on disk: how each is had stands above, and in zero_shot.sets")
    return found, missing


def _on_disk(shards: str) -> list[str]:
    """The tars of a known set, none where it was not brought."""
    try:
        return expand_urls(shards)
    except (ValueError, OSError):
        return []


def _parts(config: Config, sets: dict[str, list[str]], steps: list[Milestone]) -> list[Part]:
    if not steps:
        return [Part(name, urls, str(config["checkpoint"])) for name, urls in sets.items()]
    return [Part(f"{name}/{step.name}", urls, step.checkpoint) for name, urls in sets.items() for step in steps]


def _items(config: Config, part: Part) -> Iterator[tuple[int, Record | EdgeImage]]:
    """The images of a set with their numbers; ValueError where two have one key."""
    if config["zero_shot"]["protocol"] == "edges":
        items: Iterator[Any] = (
            image
            for folder in part.urls
            for image in edge_images(Path(folder), config["zero_shot"]["split"], key=f"zero_shot.sets.{part.name}")
        )
    else:
        items = records(part.urls, config["data"]["on_error"])
    seen: set[str] = set()
    for number, item in enumerate(items):
        if item.key in seen:
            raise ValueError(f"zero_shot.sets.{part.name} has two images {item.key!r}: make its shards sets of their own")
        seen.add(item.key)
        yield number, item


def _identities(config: Config, parts: list[Part]) -> dict[str, str]:
    """What decides every row: weights by their contents, tars by size and time, tables by their contents."""
    found = {part.checkpoint: digest(part.checkpoint) for part in parts}
    for tar in sorted({url for part in parts for url in part.urls}):
        stat = os.stat(tar)
        found[tar] = f"{stat.st_size} bytes of {stat.st_mtime_ns}"
    for key in ("boxes", "groups"):
        if (table := config["zero_shot"][key]) is not None:
            found[table] = digest(table)
    return found


def _check_same(run_dir: Path, identities: dict[str, str]) -> None:
    """ValueError where a run that is gone on with would mix rows of other files."""
    path = run_dir / INPUTS
    stored = json.loads(path.read_text()) if path.is_file() else identities
    changed = sorted(name for name in stored.keys() | identities.keys() if stored.get(name) != identities.get(name))
    if changed:
        raise ValueError(f"{changed[0]} has changed since {run_dir} was begun, and its rows with it: take another run_dir")
    write_text(path, json.dumps(identities, indent=1) + "\n")


def _check_groups(config: Config, parts: list[Part]) -> None:
    """ValueError, before anything is encoded, where no object has a group."""
    if config["zero_shot"]["protocol"] != "fairness":
        return
    group_of = groups_of(config)
    for part in parts:
        records_of = records(part.urls, config["data"]["on_error"])
        if not any(group_of(each, a) is not None for each in records_of for a in each.annotation["annotations"]):
            name, table = config["zero_shot"]["group_by"], config["zero_shot"]["groups"]
            where = f"in {table} (zero_shot.groups), by key and id" if table else "as a field of its annotations"
            raise ValueError(f"zero_shot.group_by is {name!r}: no object of {part.name} has it {where}")


# ---- who looks at it


def _look_at_all(config: Config, run_dir: Path, parts: list[Part]) -> None:
    """Every image that has no rows yet, by `zero_shot.num_workers` processes, one a GPU where there are any."""
    count, done = config["zero_shot"]["num_workers"], {(each["set"], each["image"]) for each in _read(run_dir)}
    if count == 1:
        _look(config, run_dir / "rows.jsonl", parts, done, 0, 1)
        return
    run_together(
        [
            CONTEXT.Process(target=_worker, args=(config, run_dir / f"rows_{i}.jsonl", parts, done, i, count), name=f"part {i}")
            for i in range(count)
        ],
        f"with run_dir={run_dir}",
    )


def _worker(config: Config, path: Path, parts: list[Part], done: set[tuple[str, str]], index: int, count: int) -> None:
    """What a process of several does."""
    with as_worker(count):
        _look(config, path, parts, done, index, count)


def _look(config: Config, path: Path, parts: list[Part], done: set[tuple[str, str]], index: int, count: int) -> None:
    """Those images whose number leaves `index` when divided by `count`; a line each is added to the file."""
    parent, said = multiprocessing.parent_process(), time.monotonic()
    protocol = PROTOCOLS[config["zero_shot"]["protocol"]]
    looks: dict[str, Look] = {}  # of the checkpoint at work
    with open(path, "a", encoding="utf-8") as file:
        for part in parts:
            for number, item in _items(config, part):
                if number % count != index or (part.name, item.key) in done:
                    continue
                if part.checkpoint not in looks:
                    looks = {part.checkpoint: protocol.open(config, part.checkpoint, device_of(config, index))}
                rows = looks[part.checkpoint](item)
                if parent is not None and not parent.is_alive():
                    return  # another one may be at this image by now
                with explain_full_disk(path):
                    file.write(json.dumps({"set": part.name, "number": number, "image": item.key, "rows": rows}) + "\n")
                    file.flush()
                if time.monotonic() - said > SAY_EVERY:
                    said = time.monotonic()
                    log.info("%s: image %d", part.name, number + 1)


def _read(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The lines of all processes, now and of an interrupted run; one that was cut is taken off its file."""
    for path in sorted(run_dir.glob(ROWS)):
        whole = 0
        with open(path, "rb+") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                yield json.loads(line)
            file.truncate(whole)


def _finished(run_dir: Path) -> dict[str, list[tuple[int, list[Row]]]]:
    """All rows by set, in the order of the images, whoever looked at them; of two that did, one counts."""
    found: dict[str, dict[int, list[Row]]] = {}
    for content in _read(run_dir):
        found.setdefault(content["set"], {})[content["number"]] = content["rows"]
    return {name: sorted(images.items()) for name, images in found.items()}


def _objects(protocol: Protocol, rows: dict[str, list[tuple[int, list[Row]]]]) -> list[Row]:
    """A row an object, with its set."""
    return [
        {"set": name, **_typed(each)}
        for name, images in rows.items()
        for _, of_image in images
        for row in of_image
        for each in protocol.objects(row)
    ]


def _write_parquet(path: Path, objects: list[Row]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        log.warning("%s is not written, rows.jsonl has the same rows: pip install 'samtrain[parquet]'", path.name)
        return
    if not objects:
        return
    partial = path.with_name(f"{path.name}.partial")
    pq.write_table(pa.Table.from_pylist(objects), partial)
    partial.replace(path)


def _typed(row: Row) -> Row:
    """Ids as text: of some sets they are numbers, of others names."""
    return {**row, "id": None if row["id"] is None else str(row["id"])} if "id" in row else row


# ---- what must be so


def _is_curve(config: Config) -> bool:
    return config["zero_shot"]["protocol"] == "learning_curve"


def _check(config: Config) -> None:
    settings = config["zero_shot"]
    if num_ranks() > 1:
        raise ValueError(f"task=zero_shot is one process and {num_ranks()} ranks were launched: set zero_shot.num_workers")
    if settings["protocol"] not in PROTOCOLS:
        raise ValueError(f"zero_shot.protocol is {settings['protocol']!r}: take one of {', '.join(PROTOCOLS)}")
    if _is_curve(config):
        if settings["run"] is None or not Path(settings["run"]).is_dir():
            raise ValueError(f"zero_shot.run is {settings['run']!r}: give the directory of a run that has trained")
    elif config["checkpoint"] is None:
        raise ValueError("checkpoint is null: task=zero_shot needs one, checkpoint=FILE")
    if settings["protocol"] == "fairness" and settings["group_by"] is None:
        raise ValueError("zero_shot.group_by is null: name the field of the annotations, or the column of zero_shot.groups")
    clicked = ("points", "fairness", "learning_curve")
    if settings["native"] and settings["protocol"] not in clicked:
        raise ValueError(f"zero_shot.native is for {', '.join(clicked)}; {settings['protocol']} resizes images to the input")
    for key in ("boxes", "groups"):
        if settings[key] is not None and not Path(settings[key]).is_file():
            raise ValueError(f"zero_shot.{key} is {settings[key]!r}, which is no file")
    if not isinstance(settings["num_workers"], int) or settings["num_workers"] < 1:
        raise ValueError(f"zero_shot.num_workers is {settings['num_workers']!r}: take a whole number of 1 and more")


def _line(metrics: dict[str, float]) -> str:
    names = (
        "miou_1", "oracle_miou_1", "miou_3", "box_miou", "noc_90", "mask_ar_1000", "mask_ap", "mask_ap50", "ods", "ois",
        "ar_100", "precision_50", "nuclei_ap", "pq", "gap_1", "gap_3",
    )  # fmt: skip
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in names if name in metrics)
