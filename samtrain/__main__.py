"""The command `python -m samtrain`: prints an overview when called alone, otherwise runs the task that is asked for."""

from __future__ import annotations

import sys
from pathlib import Path

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
  python -m samtrain task=annotate checkpoint=FILE annotate.images=IMAGES
      Open a page for people: they click in the browser, and the model draws the masks.
  python -m samtrain task=preview data=folder data.root=IMAGES
      Draw the images and masks that a training would see.
"""
HINTS = """\
Set anything with key=value. Add --cfg job to print the settings instead of running the task. Put -m
first to run several values, such as seed=0,1,2. run_dir=RUN alone resumes a run. --version prints the
version, and --hydra-help lists Hydra's own options.
"""


def main() -> None:
    """Runs the command line; the overview is printed before Hydra and torch are imported, because they take seconds."""
    if sys.argv[1:] in ([], ["-h"], ["--help"], ["help"]):
        print(overview(), end="")
        return
    if sys.argv[1:] in (["--version"], ["-V"], ["version"]):
        from samtrain.version import commit, version

        print(f"samtrain {version()}" + (f" (commit {found[:12]})" if (found := commit()) else ""))
        return
    if sys.argv[1:2] == ["--completion"]:
        print(completion(), end="")
        return
    from samtrain.arguments import understood

    try:
        sys.argv[1:] = understood(sys.argv[1:])
    except ValueError as error:
        sys.exit(str(error))
    from samtrain.entry import compose_and_run

    compose_and_run(conf_dir())


def conf_dir() -> Path:
    """Returns the folder of the configs: a wheel has it inside the package, a checkout beside the package."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


COMPLETION = """\
# for bash; in zsh give autoload -U bashcompinit && bashcompinit before it
_samtrain() {{
  COMPREPLY=($(compgen -W "{words}" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=}}
complete -o default -F _samtrain samtrain
"""


def completion() -> str:
    """Returns the shell code that completes `task=`, `+experiment=` and the like for the command `samtrain`."""
    return COMPLETION.format(words=" ".join(prefix + name for _, prefix, lines in _choices() for name in lines))


def _choices() -> list[tuple[str, str, dict[str, str]]]:
    """Returns what can be chosen by name: a heading, what is typed before the name, and {name: its line}."""
    from samtrain.tasks import TASKS

    return [
        ("experiments", "+experiment=", _titles("experiment")),
        ("tasks", "task=", TASKS),
        ("scales", "scale=", _titles("scale")),
        ("data", "data=", _titles("data")),
        ("search spaces of task=tune", "tune=", {name: title for name, title in _titles("tune").items() if name != "base"}),
    ]


def overview() -> str:
    """Returns the page that `--help` prints: commands to start with, then a line for each name that can be chosen."""
    parts = _choices()
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


if __name__ == "__main__":
    main()
