"""`task=annotate`: opens a page in which people annotate a folder of images with the help of any SAM."""

from __future__ import annotations

import glob
import logging
import webbrowser
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samtrain.data.header import shown_size
from samtrain.data.kinds import FolderConfig
from samtrain.data.prepare.mask_files import IMAGES, files_below
from samtrain.files import digest, printable
from samtrain.inference.frames import make_predictor
from samtrain.modeling.build import load_sam
from samtrain.run.build import device_of
from samtrain.run.environment import resume_command
from samtrain.run.image_sets import asked_frame, data_config
from samtrain.run.settings import Config, read
from samtrain.terminal import counted, follow

if TYPE_CHECKING:
    from samtrain.annotator.config import AnnotateConfig, ServeConfig
    from samtrain.annotator.store import NewImage, Store

log = logging.getLogger(__name__)

NEEDED = ("fastapi", "uvicorn", "sqlalchemy")
AT_ONCE = 100  # images added in one transaction


def run(config: Config, run_dir: Path) -> None:
    """Adds the images that are new to the store and serves the page until it is stopped; the same command resumes.

    With `annotate.review` the images are those of shards, and the result is a folder of corrections for `task=audit`.
    """
    check_installed("task=annotate")
    from samtrain.annotator.config import AnnotateConfig
    from samtrain.annotator.review import begin_review, end_review
    from samtrain.annotator.store import open_store
    from samtrain.annotator.transfer import check_formats

    settings = read(AnnotateConfig, config, "annotate")
    check_formats(settings.export or ())  # now, and not when people have worked for a day
    serving = serve_config(config, settings, run_dir)
    if settings.close_round:
        close_round(serving.store)
        return
    with open_store(serving.store) as store:
        if settings.serve or settings.review is not None:
            set_model(store, config["checkpoint"])  # before thousands of images are read
        add_images(store, settings, skip=data_config(config["data"]).on_error == "skip")
        add_masks(store, settings, config)
        if settings.review is not None:
            begin_review(store, settings.review, partial(_predictor, config, store) if settings.disagreement else None)
        if not store.count_images():
            raise ValueError("There are no images to annotate: set annotate.images to a folder of images, or a glob")
    if settings.serve:
        serve(serving, run_dir)
    if settings.review is not None:
        with open_store(serving.store) as store:
            end_review(store, Path(settings.output or run_dir / "corrected"))
    export(serving, Path(settings.output or run_dir / "export"))


def check_installed(what: str) -> None:
    """Raises ValueError if packages of the extra `annotate` are missing."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ValueError(f"{what} needs {', '.join(missing)}: pip install 'samtrain[annotate]'")


def close_round(url: str) -> None:
    """Closes the round that is open in the store of a run of `annotator=web`; the engine then trains."""
    from samtrain.annotator.open_round import close_now
    from samtrain.annotator.store import open_store

    with open_store(url) as store:
        log.info("Round %d is closed; the engine trains on its masks.", close_now(store))


def _predictor(config: Config, store: Store) -> Any:
    """Returns the predictor of the store's model, which says where it would draw masks otherwise."""
    model = store.model()
    assert model is not None, "set_model comes first"
    return make_predictor(load_sam(model.path).to(device_of(config)), frame=asked_frame(config["data"]))


def serve_config(config: Config, settings: AnnotateConfig, run_dir: Path) -> ServeConfig:
    """Returns what the server of this run needs, with every path filled in."""
    from samtrain.annotator.config import ServeConfig

    return ServeConfig.of_run(
        run_dir,
        settings,
        device=device_of(config).type,
        frame=asked_frame(config["data"]),
        max_image_pixels=config["max_image_pixels"],
    )


def add_images(store: Store, settings: AnnotateConfig, *, skip: bool) -> None:
    """Adds the images of `annotate.images` that the store does not hold; with `skip`, leaves out those that cannot be read."""
    if settings.images is None:
        return
    paths, counts = _paths(settings.images), Counter[str]()
    known = {image.source for image in store.images()}
    new = [path for path in paths if str(path.resolve()) not in known]
    batch: list[NewImage] = []
    for image in follow(_read(new, settings, skip, counts), "reading images", len(new)):
        batch.append(image)
        if len(batch) == AT_ONCE:
            store.add_images(batch)
            batch = []
    store.add_images(batch)
    counts["existing"] = len(paths) - len(new)
    log.info(
        "Images: %d new, %d were there already, %d left out because they cannot be read.",
        counts["new"], counts["existing"], counts["left out"],
    )  # fmt: skip


def _read(paths: list[Path], settings: AnnotateConfig, skip: bool, counts: Counter[str]) -> Iterator[NewImage]:
    """Yields what the store needs to know of each image; a damaged one is found now, as far as its file shows that."""
    from samtrain.annotator.config import wants_second_opinion
    from samtrain.annotator.store import NewImage

    root = Path(settings.images or "").resolve()
    for path in paths:
        try:
            _check_name(path)
            height, width = shown_size(path)
        except ValueError as error:
            if not skip:
                raise
            log.warning("An image is left out: %s", printable(str(error)))
            counts["left out"] += 1
            continue
        counts["new"] += 1
        place = path.resolve()
        name = place.relative_to(root).as_posix() if place.is_relative_to(root) else place.name
        opinions = 2 if wants_second_opinion(str(place), settings.opinions) else 1
        yield NewImage(
            key=str(place), name=name, source=str(place), width=width, height=height, opinions_wanted=opinions
        )  # fmt: skip


def _check_name(path: Path) -> None:
    """Raises ValueError for a name that a database cannot hold."""
    try:
        str(path.resolve()).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{printable(str(path))}: its name is not UTF-8: rename it, or set data.on_error=skip") from error


def add_masks(store: Store, settings: AnnotateConfig, config: Config) -> None:
    """Adds images with masks that people shall correct, as `annotate.import_masks` says."""
    from samtrain.annotator.transfer import import_masks, import_shards

    if settings.import_masks is False:
        return
    if settings.import_masks is True:
        folder = data_config(config["data"])
        if not isinstance(folder, FolderConfig):
            raise ValueError(
                "annotate.import_masks is true, which takes the images and masks of data=folder data.root=FOLDER: give these, "
                "or set annotate.import_masks to shards"
            )
        found = import_masks(store, folder)
    else:
        found = import_shards(store, settings.import_masks, "annotate.import_masks")
    log.info("Imported: %s.", found)


def export(config: ServeConfig, folder: Path) -> None:
    """Writes the accepted masks in the forms of `annotate.export`."""
    from samtrain.annotator.store import open_store
    from samtrain.annotator.transfer import export_store

    if not config.annotate.export:
        return
    with open_store(config.store) as store:
        for each in export_store(store, folder, config.annotate.export):
            log.info("Exported %s.", each)


def _paths(images: str) -> list[Path]:
    """Returns the images below the folder, or those that the glob matches, sorted."""
    found = files_below(Path(images), IMAGES) if Path(images).is_dir() else map(Path, glob.glob(images, recursive=True))
    if paths := sorted(path for path in found if path.is_file()):
        return paths
    raise ValueError(
        f"annotate.images is {images!r}, and no image was found there: give a folder of {', '.join(sorted(IMAGES))}, or a glob"
    )


def set_model(store: Store, checkpoint: str | None) -> None:
    """Tells the servers of the store to answer clicks with this checkpoint; None leaves the model that is set."""
    from samtrain.annotator.store import Model

    if checkpoint is None:
        if store.model() is None:
            raise ValueError("checkpoint is null: task=annotate needs checkpoint=FILE, any SAM that load_sam reads")
        return
    path = Path(checkpoint).resolve()
    model = Model(path=str(path), digest=digest(path), name=f"{path.parent.name}/{path.name}")
    known = store.model()
    if known is None or known.digest != model.digest:
        store.set_model(model)
    elif known.path != model.path:
        store.set_model(replace(known, path=model.path))


def serve(config: ServeConfig, run_dir: Path) -> None:
    """Serves until Ctrl-C or SIGTERM, and then says what was done."""
    from samtrain.annotator.serve import Server, links_of, stop_by_signals

    with stop_by_signals() as stopped, Server(config) as server:
        links = links_of(config, server.store, server.url)
        log.info("The page is at %s. Ctrl-C ends it; everything that was accepted is on disk.", server.url)
        for name, link in links.items():  # printed and not logged, because the links are secret
            print(f"  {name}: {link}", flush=True)
        if config.annotate.open_browser:
            webbrowser.open(next(iter(links.values()), server.url))
        while not stopped.wait(1.0) and server.thread.is_alive():
            pass
        found, counts, saved = server.store.statistics(), server.service.encoder.counts, server.service.saved
        hit_rate = server.service.encoder.hit_rate
    log.info(
        "The server has ended. %s in this session; in the store: %s in %d of %s. %s encoded, %d embeddings were found on disk, "
        "and the prefetch hit rate is %s.",
        counted(saved, "mask"), counted(found["masks"]["done"], "mask"), found["images"]["done"],
        counted(found["images"]["total"], "image"), counted(counts["encoded"], "image"), counts["found"],
        "unknown, because no image was opened" if hit_rate is None else f"{100 * hit_rate:.0f} %",
    )  # fmt: skip
    log.info("To continue: %s", resume_command(run_dir))
