"""The command `python -m samtrain`: prints an overview when called alone, otherwise composes the config and runs its task."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from samtrain.renamed import with_new_names

if TYPE_CHECKING:
    from omegaconf import DictConfig

PACKAGE = Path(__file__).resolve().parent
USAGE = """\
samtrain trains Segment Anything models and runs SAM's data engine with them.

start here
  python -m samtrain +experiment=stage1
      Pretrain a model, then annotate and retrain for six rounds.
  python -m samtrain +experiment=stage2 stage1_run=RUN
      Continue that run for five rounds in which masks are prefilled before the annotator starts.
      Use +experiment=data_engine to run both stages.
  python -m samtrain +experiment=stage3 checkpoint=FILE generate.input=IMAGES generate.output=SHARDS
      Make masks of everything in a folder of images and write them as SA-1B's tars.
  python -m samtrain +experiment=finetune checkpoint=FILE data=folder data.root=IMAGES
      Fine-tune existing weights on your own images and masks.
  python -m samtrain task=preview data=folder data.root=IMAGES
      Draw the images and masks that a training would see.
"""
HINTS = """\
Set anything with key=value. Add --cfg job to print the settings instead of running the task. Put -m
first to run several values, such as seed=0,1,2. --hydra-help lists Hydra's own options.
"""


def main() -> None:
    """Runs the command line; the overview is printed before Hydra and torch are imported, because they take seconds."""
    if sys.argv[1:] in ([], ["-h"], ["--help"], ["help"]):
        print(overview(), end="")
        return
    sys.argv[1:] = with_new_names(sys.argv[1:])
    compose_and_run()


def conf_dir() -> Path:
    """Returns the folder of the configs: a wheel has it inside the package, a checkout beside the package."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def overview() -> str:
    """Returns the page that `--help` prints: commands to start with, then a line for each name that can be chosen."""
    from samtrain.tasks import TASKS

    parts = [
        ("experiments", "+experiment=", _titles("experiment")),
        ("tasks", "task=", TASKS),
        ("scales", "scale=", _titles("scale")),
        ("data", "data=", _titles("data")),
        ("search spaces of task=tune", "tune=", {name: title for name, title in _titles("tune").items() if name != "base"}),
    ]
    width = max(len(prefix + name) for _, prefix, lines in parts for name in lines)
    return USAGE + "".join(_table(*part, width) for part in parts) + "\n" + HINTS


def _table(title: str, prefix: str, lines: dict[str, str], width: int) -> str:
    """Returns a titled table of two columns: `prefix` with each name, `width` characters wide, and its line."""
    return f"\n{title}\n" + "".join(f"  {prefix + name:{width}}  {line}\n" for name, line in lines.items())


def _titles(group: str) -> dict[str, str]:
    """Returns the first comment of each file of a config group, which is its title."""
    found = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        comments = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
        found[path.stem] = next(line for line in comments if not line.startswith("@package"))
    return found


def compose_and_run() -> None:
    """Composes the config with Hydra, then runs its task in its run directory."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def job(config: DictConfig) -> None:
        settings = HydraConfig.get()
        with _errors_without_traceback():
            _run_task(config, Path(settings.runtime.output_dir), [*settings.overrides.task, *settings.overrides.hydra])

    job()


def _run_task(config: DictConfig, output_dir: Path, overrides: list[str]) -> None:
    from samtrain import tasks
    from samtrain.tuning.trials import end_with_parent

    # refuse what cannot run before anything is written
    tasks.check_task(config.task)
    values = tasks.resolve(config)
    keep_freed_memory()
    end_with_parent()

    # these import torch, which takes seconds
    from samtrain.run.closing import show_closing
    from samtrain.run.directory import is_first_rank, open_run
    from samtrain.terminal import console, log_through_console

    # all ranks would log the same lines, so only the first one does
    if not is_first_rank():
        logging.getLogger().setLevel(logging.WARNING)
    log_through_console()

    tasks.check(values)
    with open_run(output_dir, values, overrides) as run_dir:
        metrics = tasks.run(values, run_dir)
    if is_first_rank():
        show_closing(console(), metrics or {}, run_dir)


@contextmanager
def _errors_without_traceback() -> Iterator[None]:
    """Logs the errors that a user can cause as one message and exits with status 1; all others keep their traceback."""
    from hydra.errors import InstantiationException
    from omegaconf import MissingMandatoryValue

    try:
        yield
    except (ValueError, OSError, MissingMandatoryValue, InstantiationException) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        # Hydra wraps what the constructor of a `_target_` raises; the message inside names the setting
        cause: object = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        if isinstance(error, MissingMandatoryValue):
            cause = f"{error.full_key} is not set and has no default: set {error.full_key}=..."
        logging.getLogger("samtrain").error("%s", cause)
        sys.exit("Set HYDRA_FULL_ERROR=1 to see the full traceback.")


def keep_freed_memory() -> None:
    """Makes glibc reuse freed memory; by default it returns each large tensor to the system and faults the next one in again.

    This saves a fifth to a third of a laptop-scale training step (experiments/LOG.md, 2026-11-23). It does nothing without
    glibc. The numbers of the options are those of its malloc.h.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(mmap_threshold, 32 << 20)  # the largest value that glibc accepts; larger tensors are still mapped
    mallopt(trim_threshold, 1 << 30)
    mallopt(top_pad, 64 << 20)


if __name__ == "__main__":
    main()
