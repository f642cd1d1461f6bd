"""People who annotate the rounds: who they are, and the page that stays open between the rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samtrain.annotator.rounds import WebAnnotator
from samtrain.data_engine.engine_files import identify
from samtrain.data_engine.interface import RoundAnnotator
from samtrain.data_engine.ledger import promoted, read_ledger
from samtrain.run.build import device_of
from samtrain.run.settings import Config
from samtrain.run.targets import build, find_target
from samtrain.tasks.annotate import check_installed
from samtrain.tasks.rounds.tools import EngineTools, show_model
from samtrain.tasks.rounds.unlabelled import by_people


def make_people(config: Config, run_dir: Path, tools: EngineTools) -> RoundAnnotator | None:
    """Returns the annotator of the config if it takes whole rounds (annotator=web, or the user's own class); else None."""
    if not by_people(config):
        return None
    if find_target(config["annotator"], "annotator") is WebAnnotator:
        check_installed("annotator=web")
    return build(
        config["annotator"],
        "annotator",
        methods=["annotate_round"],
        seed=config["seed"],
        run_dir=str(run_dir),
        annotate=config["annotate"],
        device=str(device_of(config)),
        frame=tools.frame,
        max_image_pixels=config["max_image_pixels"],
    )


@contextmanager
def at_work(people: RoundAnnotator | None, run_dir: Path, initial: Path, tools: EngineTools) -> Iterator[None]:
    """Keeps the page of people open, with the model that is in use, as long as the rounds run."""
    page: Any = people
    if not hasattr(page, "open_page"):  # a simulation, or a user's annotator without a page
        yield
        return
    if ledger := read_ledger(run_dir):
        show_model(page, run_dir, promoted(ledger))
    else:
        page.show_model(initial, identify(initial)[0], "the first model", {})
    with page.open_page():
        tools.people = page
        yield
