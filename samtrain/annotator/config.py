"""The settings of the browser annotator: the `annotate` node, and what a server process is started with."""

from __future__ import annotations

import getpass
import hashlib
import ipaddress
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samtrain.data.opening import MAX_PIXELS
from samtrain.plain import from_plain

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig:
    """The `annotate` node; conf/annotate/default.yaml says what each key does."""

    images: str | None = None
    store: str | None = None
    output: str | None = None
    embeddings: str | None = None
    import_masks: bool | str | list[str] = False
    export: list[str] | None = None
    serve: bool = True
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: list[str] = field(default_factory=list)
    annotators: list[str] = field(default_factory=list)
    annotator: str | None = None
    open_browser: bool = False
    seconds_per_mask: float = 30
    idle_seconds: float = 20
    lease_seconds: float = 120
    labels: bool = False
    disjoint: bool = False
    opinions: float = 0.0
    review: str | list[str] | None = None
    disagreement: bool = True
    val: float | str | list[str] = 0.1
    test: float | str | list[str] = 0.1
    close_round: bool = False
    prefetch: int = 3
    max_upload_mb: float = 32
    max_points: int = 200
    image_cache_mb: float = 1024

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_shares()
        if len(set(self.annotators)) < len(self.annotators) or not all(name.strip() for name in self.annotators):
            raise ValueError(f"annotate.annotators is {self.annotators}: give each annotator a name of their own")
        if self.close_round and self.store is None:
            raise ValueError("annotate.close_round is true and annotate.store is null: give the annotations.db of the run")
        if self.review is not None and self.images is not None:
            words = "annotate.review and annotate.images are both set"
            raise ValueError(f"{words}: shards bring their images, so set annotate.images=null")
        if self.serve and not is_loopback(self.host) and not self.annotators:
            raise ValueError(
                f"annotate.host is {self.host!r}, which lets other machines in, and nobody is named in annotate.annotators, so "
                "anybody could write: set annotate.annotators=[NAME, ...] (each gets a link with a token), or "
                "annotate.host=127.0.0.1"
            )

    def _check_numbers(self) -> None:
        for name, low, high in (
            ("port", 0, 65535), ("seconds_per_mask", 0, 86_400), ("idle_seconds", 0, 86_400), ("lease_seconds", 5, 86_400),
            ("opinions", 0, 1), ("prefetch", 0, 1000), ("max_upload_mb", 0.01, 4096), ("max_points", 1, 10_000),
            ("image_cache_mb", 0, 1 << 20),
        ):  # fmt: skip
            if not low <= (value := getattr(self, name)) <= high:
                raise ValueError(f"annotate.{name} is {value}: give a number from {low} to {high}")

    def _check_shares(self) -> None:
        """Raises ValueError unless `val` and `test`, where they are shares of the images, leave something to train on."""
        shares = {name: value for name in ("val", "test") if isinstance(value := getattr(self, name), (int, float))}
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise ValueError(f"annotate.{name} is {value}: give a share of the images from 0 to below 1, or shards")
        if sum(shares.values()) >= 1:
            raise ValueError(f"annotate.val and annotate.test are {self.val} and {self.test}: give shares with a sum below 1")

    @property
    def local_annotator(self) -> str:
        """Returns the name of the one annotator on this machine."""
        return self.annotator or _login_name()


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What one server process needs: the `annotate` node with its paths filled in, and how images are shown to the model.

    store:             URL of the database
    embeddings:        folder of the image embeddings
    links:             file with the links of the annotators, which only its owner can read; None: no file
    device:            "cpu" or "cuda"
    frame:             "native" shows images in tiles of their own pixels; None: as the checkpoint was trained
    max_image_pixels:  larger images are refused
    read_only:         nothing can be written, as for a page that only shows a finished run
    """

    annotate: AnnotateConfig
    store: str
    embeddings: str
    links: str | None = None
    device: str = "cpu"
    frame: str | None = None
    max_image_pixels: int = MAX_PIXELS
    read_only: bool = False

    @classmethod
    def of_run(cls, run_dir: Path, annotate: AnnotateConfig, **more: Any) -> ServeConfig:
        """Returns the settings of a run's server: what `annotate` leaves open is in the run directory."""
        return cls(
            annotate=annotate,
            store=annotate.store or str((run_dir / "annotations.db").resolve()),
            embeddings=annotate.embeddings or str((run_dir / "embeddings").resolve()),
            links=str((run_dir / "links.json").resolve()),
            **more,
        )

    def to_json(self) -> str:
        """Returns the text that `read_serve_config` takes."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_serve_config(path: Path) -> ServeConfig:
    """Reads the settings of a server process; raises ValueError that names the file for one that is not valid."""
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as the settings of a server ({error})") from error
    return from_plain(ServeConfig, values, "")


def wants_second_opinion(key: str, share: float) -> bool:
    """Returns whether an image belongs to the share that two people annotate: a function of its key."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big") < share * 2**64


def is_loopback(host: str) -> bool:
    """Returns whether a host to listen on can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "annotator"
