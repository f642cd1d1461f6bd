"""Pieces of work that are done once, however often a run is killed: each leaves a JSON file, whole or not at all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtrain.modeling.checkpoints import replaced_whole


@dataclass(frozen=True)
class Done:
    """What a piece of work gave, as plain JSON, and the seconds on the wall clock that it took."""

    result: Any
    wall: float


def do_once(path: Path, work: Callable[[], Any]) -> Done:
    """What `path` holds from an earlier time, or else the result of `work()`, which is then there.

    The result comes back as JSON gives it, so that it is the same the first time and later.
    """
    if not path.is_file():
        begin = time.monotonic()
        result = work()
        text = json.dumps({"result": result, "wall": round(time.monotonic() - begin, 3)}, allow_nan=False)
        with replaced_whole(path) as temporary:
            temporary.write_text(text)
    return Done(**json.loads(path.read_text()))
