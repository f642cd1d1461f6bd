"""What decides a run's results but is no setting: the images, the checkpoint and the other files that it began with.

Their digests are written to `.hydra/inputs.json` when a run begins. A process that resumes the run compares them, because
files may be exchanged under the same names.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samtrain.data.image_set import ImageSet
from samtrain.data.shards import expand_urls, is_remote
from samtrain.files import digest, write_text
from samtrain.run.directory import is_first_rank
from samtrain.run.environment import started_by
from samtrain.run.settings import Config
from samtrain.text.loading import clip_files

log = logging.getLogger(__name__)

BLOCK = 1 << 16  # bytes that are read at a time
MAX_BLOCKS = 4096  # per group of shards, 256 MiB: the shards of a large data set are sampled, evenly over each file
Input = dict[str, str]  # {"name": where it is, "digest": what it holds}


def check_inputs(config: Config, run_dir: Path, images: ImageSet | None = None, **shards: Sequence[str]) -> None:
    """Stores what the run begins with; raises ValueError that names both if it has begun with something else.

    `shards` are further tars that the run reads, by what they are for.
    """
    if not is_first_rank():
        return
    path = run_dir / ".hydra" / "inputs.json"
    found = _files(config) | (_shards_of(images) if images else {})
    found |= {name: _of_shards(tars) for name, tars in shards.items()}
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found, indent=1) + "\n")
        return
    stored: dict[str, Input] = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        f"  {name}: {_told(stored.get(name))} there, {_told(found.get(name))} now"
        for name in sorted(stored.keys() | found.keys())
        if stored.get(name, {}).get("digest") != found.get(name, {}).get("digest")
    ]
    if lines:
        raise ValueError(
            f"{run_dir} contains a run that began with other files:\n"
            + "\n".join(lines)
            + f"\nIt was started by\n  {started_by(run_dir)}\n"
            "Restore the files that it began with, or set another run_dir for a new run"
        )


def _files(config: Config) -> dict[str, Input]:
    """Returns the files of weights that the config names."""
    names = {"checkpoint": config.get("checkpoint")}
    if clip := config.get("clip"):
        names |= {f"clip ({Path(file).name})": file for file in clip_files(clip) if os.path.isfile(file)}
    if config.get("model", {}).get("mae"):
        names |= {f"recipes.{model}.mae": recipe.get("mae") for model, recipe in config["recipes"].items()}
    return {key: {"name": str(name), "digest": digest(name)} for key, name in names.items() if name and os.path.isfile(name)}


def _shards_of(images: ImageSet) -> dict[str, Input]:
    """Returns the shards of an image set, by their use."""
    uses: dict[str, Sequence[str]] = {
        "training images": [tar for source in images.train for tar in expand_urls(source.urls)],
        "images to annotate": images.pool_tars() if images.public else [],
        "validation images": images.val,
        "test images": images.test,
    }
    return {use: _of_shards(tars) for use, tars in uses.items() if tars}


def _of_shards(tars: Sequence[str]) -> Input:
    """Returns the folder and a digest of shards: of their content where that is little, and else of blocks spread over it."""
    state = hashlib.sha256()
    blocks = max(2, MAX_BLOCKS // max(len(tars), 1))
    for tar in tars:
        state.update(tar.encode() if is_remote(tar) else _sampled(tar, blocks))
    folders = sorted({tar if is_remote(tar) else os.path.dirname(tar) for tar in tars})
    more = f" and {len(folders) - 1} more folders" if len(folders) > 1 else ""
    return {"name": f"{folders[0] if folders else 'nothing'}{more}", "digest": state.hexdigest()}


def _sampled(path: str, blocks: int) -> bytes:
    """Returns a digest of a file's size and of at most `blocks` blocks, evenly spread from its begin to its end."""
    size = os.path.getsize(path)
    state = hashlib.sha256(str(size).encode())
    count = -(-size // BLOCK)
    places = range(count) if count <= blocks else [i * (count - 1) // (blocks - 1) for i in range(blocks)]
    with open(path, "rb") as file:
        for place in places:
            file.seek(place * BLOCK)
            state.update(file.read(BLOCK))
    return state.digest()


def _told(each: Any) -> str:
    return f"{each['name']} (sha256 {each['digest'][:10]})" if each else "none"
