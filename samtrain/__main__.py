"""`python -m samtrain`: alone it says what there is; with arguments it composes the config and does its task."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
USAGE = """\
samtrain trains Segment Anything models and runs SAM's data engine with them.

  python -m samtrain +experiment=stage1
                                      pretrain a model, then six rounds of annotating and retraining
  python -m samtrain +experiment=stage2 stage1_run=RUN
                                      five rounds more, with masks filled in before anybody looks; both: +experiment=data_engine
  python -m samtrain +experiment=stage3 checkpoint=FILE generator.input=IMAGES generator.output=SHARDS
                                      masks of everything in a folder of images, as SA-1B's tars
  python -m samtrain +experiment=finetune checkpoint=FILE data=folder data.root=IMAGES
                                      train existing weights on your own images with masks
  python -m samtrain task=preview data=folder data.root=IMAGES
                                      see what training would see
"""
HINTS = """\
Any setting is given as key=value. See them with --cfg job, run grids with -m first; Hydra's own options: --hydra-help.
"""


def main() -> None:
    """The console's entry; the overview is answered before Hydra and torch are imported."""
    if sys.argv[1:] in ([], ["-h"], ["--help"], ["help"]):
        print(overview(), end="")
        return
    compose_and_run()


def conf_dir() -> Path:
    """The configs: inside the package where a wheel put them, beside it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def overview() -> str:
    """Commands, experiments, tasks and scales, a line each."""
    from samtrain.tasks import TASKS

    parts = [
        ("experiments", "+experiment=", _headers("experiment")),
        ("tasks", "task=", TASKS),
        ("scales", "scale=", _headers("scale")),
        ("data", "data=", _headers("data")),
        ("what task=tune searches", "tune=", {name: line for name, line in _headers("tune").items() if name != "base"}),
    ]
    return USAGE + "".join(_table(*part) for part in parts) + "\n" + HINTS


def _table(title: str, prefix: str, lines: dict[str, str]) -> str:
    width = max(28, *(len(prefix + name) for name in lines))
    return f"\n{title}\n" + "".join(f"  {prefix + name:{width}} {line}\n" for name, line in lines.items())


def _headers(group: str) -> dict[str, str]:
    """The first comment of each file of a config group."""
    found = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        comments = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
        found[path.stem] = next(line for line in comments if not line.startswith("@package"))
    return found


def compose_and_run() -> None:
    """Hydra's part: compose, then do the task in its run directory."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import InstantiationException
    from omegaconf import DictConfig, MissingMandatoryValue

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def job(config: DictConfig) -> None:
        from samtrain import tasks

        settings = HydraConfig.get()
        overrides = [*settings.overrides.task, *settings.overrides.hydra]
        try:
            tasks.check_task(config.task)
            values = tasks.resolve(config)
            keep_freed_memory()
            from samtrain.tuning.trials import end_with_parent

            end_with_parent()
            from samtrain.run.closing import show_closing  # from here on it takes seconds: torch
            from samtrain.run.directory import is_first_rank, open_run
            from samtrain.terminal import console, log_through_console

            if not is_first_rank():  # what the first one says is true of all
                logging.getLogger().setLevel(logging.WARNING)
            log_through_console()
            with open_run(Path(settings.runtime.output_dir), values, overrides) as run_dir:
                metrics = tasks.run(values, run_dir)
            if is_first_rank():
                show_closing(console(), metrics or {}, run_dir)
        except (ValueError, OSError, MissingMandatoryValue, InstantiationException) as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            said = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
            logging.getLogger("samtrain").error("%s", said)
            sys.exit("HYDRA_FULL_ERROR=1 shows where this came from")

    job()


def keep_freed_memory() -> None:
    """Tell glibc to reuse what is freed; it hands each large tensor back to the system, and the next one faults in anew.

    Of a laptop-scale training step that is a fifth to a third (experiments/LOG.md, 2026-11-23). Elsewhere than on glibc
    nothing happens. The numbers of the settings are those of its malloc.h.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(mmap_threshold, 32 << 20)  # the largest that glibc takes; larger tensors are mapped as before
    mallopt(trim_threshold, 1 << 30)
    mallopt(top_pad, 64 << 20)


if __name__ == "__main__":
    main()
