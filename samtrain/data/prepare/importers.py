"""`task=prepare` converts your images and masks to a prepared set: `{pool,val,test}/*.tar` and `prepare.json`.

There are two passes. The first checks every record and stores the results in files of `CHUNK` images, because which images are
held back depends on all usable ones. The second writes the shards. A killed run resumes after the last complete file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.progress import track

from samtrain.data.channels import chosen_channels
from samtrain.data.coco_fields import id_text
from samtrain.data.contents import CONTENTS, contents_text
from samtrain.data.prepare.config import PrepareConfig, mask_source
from samtrain.data.prepare.formats import Entry, MaskSource
from samtrain.data.prepare.holdout import Grouping, group_csv, grouping, hold_back, joined_groups
from samtrain.data.prepare.mask_files import IMAGES, Refused
from samtrain.data.prepare.record_checks import NO_OBJECTS, ONLY_CROWDS, check_record, image_bytes
from samtrain.data.prepare.segmentations import whole_number
from samtrain.data.prepare.unread import unread_files
from samtrain.data.shards import ShardWriter, safe_key
from samtrain.files import build_once, digest, printable, write_text

__all__ = ["PrepareConfig", "prepare"]
log = logging.getLogger(__name__)

MANIFEST = "prepare.json"
PREPARE_VERSION = 7  # raise it if the same input gives other shards: the folder of a set is named by it
CHUNK = 32  # images per file of checked records
CROWDS_HINT = "set data.crowds=objects if each region with iscrowd 1 is one object, as in CVAT's export of brush masks"
EXAMPLES = 20  # examples per reason in prepare.json; the log has all refusals


def prepare(root: str | Path, config: PrepareConfig) -> Path:
    """Prepares the set of `config` below `root` and returns its folder, `<root>/<name of the source>_<digest>`.

    The digest covers the parameters and the names, sizes and times of the input files: the same call again does nothing, and
    changed input gives another folder. An interrupted call resumes, and the result is the same to the byte. prepare.json and
    the log say what was refused and why. Raises ValueError if nothing is usable, at the first refusal if `strict`, and if a
    shard of an earlier call is gone.
    """
    folder = Path(config.absolute().root)
    if folder in (out := Path(os.path.abspath(root)), *out.parents):
        raise ValueError(f"data_dir is {out}, inside of data.root: give a data_dir outside of {folder}, or shards become input")
    source = mask_source(config)
    entries = source.entries()
    if not entries:
        raise ValueError(f"data.root is {config.root!r}, which holds no images: give a folder with {', '.join(sorted(IMAGES))}")
    _log_unread(config, entries)
    target = Path(root) / f"{safe_key(folder.name)}_{_digest(config, entries)[:10]}"
    made = build_once(target, partial(_make, config=config, source=source, entries=entries), MANIFEST)
    _check_shards(made)
    return made


def num_left_out(folder: Path) -> int:
    """Returns the number of images without objects that are not in a prepared set; 0 for a folder that is none."""
    path = folder / MANIFEST
    refused = json.loads(path.read_text())["refused"]["images"] if path.is_file() else {}
    return sum(refused[reason]["count"] for reason in (NO_OBJECTS, ONLY_CROWDS) if reason in refused)


def _log_unread(config: PrepareConfig, entries: list[Entry]) -> None:
    """Says which files of data.root are neither images nor masks of the set, such as formats that cannot be read, and tars."""
    read = [path for entry in entries for path in (entry.image, *entry.evidence)]
    if found := group_csv(config.group_by, Path(config.root)):
        read.append(found[0])
    if unread := unread_files(Path(config.root), read):
        log.warning("Files below %s that are not read: %s.", config.root, unread)


def _check_shards(folder: Path) -> None:
    """Raises ValueError if a shard that prepare.json names is gone, for example after an incomplete copy."""
    splits = json.loads((folder / MANIFEST).read_text())["splits"]
    named = [folder / split / name for split, content in splits.items() for name in content["shards"]]
    if gone := [path for path in named if not path.is_file()]:
        raise ValueError(
            f"{gone[0]} is gone ({len(gone)} of {len(named)} shards): restore it, or delete {folder} and run the same command "
            "again to prepare it"
        )


def _digest(config: PrepareConfig, entries: list[Entry]) -> str:
    """Returns a digest of everything that decides the result; files count by name, size and time instead of content."""
    # the chosen channels are not in the digest of a set without them
    parts = [PREPARE_VERSION, config.absolute().parameters(), *filter(None, [chosen_channels()])]
    state = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    files = {path for entry in entries for path in (entry.image, *entry.evidence)}
    for path in sorted(files):
        stat = path.stat() if path.is_file() else None
        state.update(f"{path}|{stat and stat.st_size}|{stat and stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    for entry in entries:
        state.update(f"{entry.name}\n".encode(errors="surrogateescape"))
    if found := group_csv(config.group_by, Path(config.root)):
        state.update(digest(found[0]).encode())
    return state.hexdigest()


def _make(folder: Path, config: PrepareConfig, source: MaskSource, entries: list[Entry]) -> dict[str, Any]:
    """Runs both passes and returns the content of prepare.json."""
    # pass 1: check every record
    chunks = _check_all(folder / "checked", config, source, entries)
    names = {entry.name: entry for entry in entries}
    groups = _groups(chunks)
    if not groups:
        reasons = _refusals(chunks)["images"]
        shutil.rmtree(folder)
        listed = "; ".join(f"{why}: {found['count']}, for example {found['examples'][0]}" for why, found in reasons.items())
        hint = CROWDS_HINT if ONLY_CROWDS in reasons else "correct them"
        raise ValueError(f"data.root is {config.root!r} and all its images were refused ({listed}): {hint}")

    # choose the split of each group
    chosen = hold_back(groups.values(), fractions={"val": config.val, "test": config.test}, seed=config.seed)
    splits = {name: chosen[group] for name, group in groups.items()}

    # pass 2: write the shards of each split
    report = _report(config, chunks, splits)
    new_ids = _new_image_ids(chunks)
    for split in ("pool", "val", "test"):
        records = (_renumbered(line, new_ids) for line in _lines(chunks) if splits.get(line["name"]) == split)
        contents = [line["content"] for line in _lines(chunks) if splits.get(line["name"]) == split]
        names_of_shards = [f"{split}_{i // config.max_count:06d}.tar" for i in range(len(contents))]
        write_text(folder / split / CONTENTS, contents_text(contents, names_of_shards))
        shards = _write_split(folder / split, config, records, names, report["splits"][split]["images"])
        report["splits"][split]["shards"] = {path.name: digest(path) for path in shards}
    shutil.rmtree(folder / "checked")
    return report


def _groups(chunks: list[Path]) -> dict[str, str]:
    """Returns the group of each usable image by its name; groups that share an image, by its pixels, are one.

    Images of one value, which have no digest, join nothing.
    """
    lines = [(line["name"], line["group"], line["content"]) for line in _lines(chunks) if "annotation" in line]
    joined = joined_groups((group, content or name) for name, group, content in lines)
    known = [content for _, _, content in lines if content]
    if copies := len(known) - len(set(known)):
        log.warning("%d images have the same pixels as another one; copies are always in the same split.", copies)
    return {name: joined[group] for name, group, _ in lines}


def _new_image_ids(chunks: list[Path]) -> dict[str, int]:
    """Returns an image_id, by the image's name, for each image without one and for each that has that of an image before it.

    An image without one gets its number in the set, if no image has that id.
    """
    lines = [(line["name"], line["number"], _own_id(line)) for line in _lines(chunks) if "annotation" in line]
    # ids are compared as text, as detections are joined by them: 7 and "7" are one id
    seen: set[str] = set()
    again = []
    for name, _, own in lines:
        if own is None:
            continue
        if id_text(own) in seen:
            again.append(name)
        seen.add(id_text(own))
    if again:
        example = printable(again[0])
        log.warning("%d images have the image_id of another one and get a new one, for example %s.", len(again), example)
    new_ids = {name: number for name, number, own in lines if own is None and str(number) not in seen}
    lacking = [*(name for name, _, own in lines if own is None and name not in new_ids), *again]
    numbers = [*new_ids.values(), *(int(text) for text in seen if text.isdecimal())]
    return new_ids | {name: max(numbers, default=0) + 1 + i for i, name in enumerate(lacking)}


def _own_id(line: dict[str, Any]) -> int | str | None:
    return line["annotation"]["image"].get("image_id")


def _renumbered(line: dict[str, Any], new_ids: Mapping[str, int]) -> dict[str, Any]:
    image = line["annotation"]["image"]
    image["image_id"] = new_ids.get(line["name"], image.get("image_id"))
    return line


def _check_all(folder: Path, config: PrepareConfig, source: MaskSource, entries: list[Entry]) -> list[Path]:
    """Runs the first pass and returns a file of checked records for each chunk of images."""
    folder.mkdir(exist_ok=True)
    group_of = grouping(config.group_by, Path(config.root), [entry.name for entry in entries])
    keys = _keys(entries)
    chunks = [folder / f"{start // CHUNK:06d}.jsonl" for start in range(0, len(entries), CHUNK)]
    for number, path in enumerate(_progress(chunks, "checking records")):
        if path.is_file():  # an interrupted run has checked these images
            continue
        lines = []
        for place in range(number * CHUNK, min((number + 1) * CHUNK, len(entries))):
            line = _checked_line(entries[place], place, keys[place], source, group_of, config)
            if config.strict:
                _raise_if_refused(line)
            lines.append(json.dumps(line) + "\n")
        write_text(path, "".join(lines))
    return chunks


def _keys(entries: list[Entry]) -> list[str]:
    """Returns a key for each image: its path below the common folder, made safe; a key in use gets a digest as suffix."""
    parents = {str(Path(entry.name).parent) for entry in entries}
    shared = f"{parents.pop()}/" if len(parents) == 1 else ""
    keys: dict[str, None] = {}
    for entry in entries:
        key = safe_key(str(Path(entry.name.removeprefix(shared)).with_suffix("")).replace("/", "__"))
        if key in keys:
            key = f"{key.encode()[:70].decode(errors='ignore')}_{hashlib.sha256(os.fsencode(entry.name)).hexdigest()[:12]}"
        keys[key] = None
    return list(keys)


def _checked_line(
    entry: Entry, place: int, key: str, source: MaskSource, group_of: Grouping, config: PrepareConfig
) -> dict[str, Any]:
    """Returns one image as a line of JSON: its annotation and the refused masks, or why the image was refused."""
    try:
        group = group_of(entry.name)
        if not group:
            raise Refused(
                "no group", "data.group_by gives this image none: add its path to the CSV, or give an expression that fits it"
            )
        checked = check_record(
            entry.image,
            source.read(entry),
            crowds_are_objects=config.crowds == "objects",
            empty_images=config.empty_images or config.form == "unlabelled",
        )
    except Refused as error:
        log.warning("Refused %s: %s", printable(entry.name), printable(str(error)))
        return {"name": entry.name, "refused": [error.reason, error.detail]}
    for refusal in checked.refused:
        log.info("Refused an object of %s: %s", printable(entry.name), refusal)
    # the JSON's own id, or none until those of all images are known
    image_id = checked.image.get("image_id")
    image_id = whole_number(image_id) if isinstance(image_id, float) else image_id
    image_id = image_id if isinstance(image_id, int) or (isinstance(image_id, str) and image_id) else None
    image = {**checked.image, "image_id": image_id, "source_name": entry.name}  # the shard changes its file_name
    annotation = {"image": image, "annotations": checked.annotations}
    if checked.evaluation_only:
        annotation["evaluation_only"] = checked.evaluation_only
    return {
        "name": entry.name,
        "number": place + 1,
        "key": key,
        # without data.group_by images are held back by their content, which other names and folders do not change
        "group": group if config.group_by else checked.content or entry.name,
        "content": checked.content,
        "annotation": annotation,
        "refused_masks": [[each.reason, each.detail] for each in checked.refused],
        "noticed": checked.notes,
    }


def _raise_if_refused(line: dict[str, Any]) -> None:
    for reason, detail in [line["refused"]] if "refused" in line else line["refused_masks"]:
        raise ValueError(f"{line['name']}: {reason} ({detail}): correct it, or set data.strict=false to leave it out")


def _lines(chunks: list[Path]) -> Iterator[dict[str, Any]]:
    for path in chunks:
        with open(path, encoding="utf-8") as file:
            yield from map(json.loads, file)


def _write_split(
    folder: Path, config: PrepareConfig, records: Iterator[dict[str, Any]], names: dict[str, Entry], count: int
) -> list[Path]:
    """Runs the second pass for one split; the shards that an interrupted run has finished stay."""
    done = sorted(folder.glob("*.tar"))
    if len(done) * config.max_count >= count:
        return done
    rest = islice(records, len(done) * config.max_count, None)
    with ShardWriter(folder, folder.name, max_count=config.max_count, start_index=len(done)) as writer:
        for line in _progress(rest, f"writing {folder.name}", count - len(done) * config.max_count):
            image = line["annotation"]["image"]
            data, extension = image_bytes(names[line["name"]].image, (image["width"], image["height"]))
            writer.write(line["key"], data, extension, line["annotation"])
    return done + writer.paths


def _report(config: PrepareConfig, chunks: list[Path], splits: dict[str, str]) -> dict[str, Any]:
    """Returns counts and refusals, which depend on the input only."""
    counts: dict[str, dict[str, Any]] = {
        s: {"images": 0, "masks": 0, "groups": set(), "images_without_objects": 0, "crowds": 0} for s in ("pool", "val", "test")
    }
    noticed: dict[str, Any] = {}
    # count the images, masks, groups and what looks wrong
    for line in (line for line in _lines(chunks) if "annotation" in line):
        split = counts[splits[line["name"]]]
        split["images"] += 1
        split["masks"] += len(line["annotation"]["annotations"])
        split["groups"].add(line["group"])
        split["images_without_objects"] += not line["annotation"]["annotations"]
        split["crowds"] += sum("iscrowd" in each for each in line["annotation"].get("evaluation_only", []))
        for note in line["noticed"]:
            _count(noticed, line["name"], *note)
    # log the splits and the refusals
    for name, content in counts.items():
        content["groups"] = len(content["groups"])
        log.info(
            "Split %s: %d image(s), %d mask(s), %d group(s); %d image(s) without objects, %d crowd region(s).",
            name, *(n for key, n in content.items() if key != "shards"),
        )  # fmt: skip
        if not content["images"]:
            log.warning("The split %s is empty, because its share is 0 or there are fewer groups than splits.", name)
    refused = _refusals(chunks)
    for kind, reasons in refused.items():
        for reason, content in reasons.items():
            log.warning("Refused %s: %d (%s), for example %s.", kind, content["count"], reason, content["examples"][0])
    nothing = config.form != "unlabelled" and not sum(content["masks"] for content in counts.values())
    if ONLY_CROWDS in refused["images"] or nothing:
        log.warning("Images hold nothing but crowd regions: %s.", CROWDS_HINT)
    for reason, content in noticed.items():
        log.warning("Noticed %d times: %s. For example %s.", content["count"], reason, content["examples"][0])
    return {
        "version": PREPARE_VERSION, "config": config.parameters(), "image_channels": chosen_channels(), "splits": counts,
        "refused": refused, "noticed": noticed,
    }  # fmt: skip


def _refusals(chunks: list[Path]) -> dict[str, dict[str, Any]]:
    """Returns the count and some examples of each reason for which images and masks were refused."""
    refused: dict[str, dict[str, Any]] = {"images": {}, "masks": {}}
    for line in _lines(chunks):
        if "refused" in line:
            _count(refused["images"], line["name"], *line["refused"])
        for refusal in line.get("refused_masks", []):
            _count(refused["masks"], line["name"], *refusal)
    return refused


def _count(reasons: dict[str, Any], name: str, reason: str, detail: str) -> None:
    content = reasons.setdefault(reason, {"count": 0, "examples": []})
    content["count"] += 1
    if len(content["examples"]) < EXAMPLES:
        content["examples"].append(printable(f"{name}: {detail}" if detail else name))


def _progress(items: Any, title: str, total: int | None = None) -> Any:
    return track(items, title, total or len(items), disable=not sys.stdout.isatty())
