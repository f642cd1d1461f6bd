"""What samtrain says to people: every setting that a message names exists, and every error is a sentence."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_configs import EXPERIMENTS, MISSING, config_of, experiment_of, options, overrides_of

from samtrain.renamed import RENAMED
from samtrain.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "samtrain").rglob("*.py"))
ANY = "*"  # stands for a part of a text that is known only when the message is made


class Text(NamedTuple):
    """A literal text of the source; ANY stands where an f-string inserts a value."""

    place: str
    text: str


def texts_of(tree: ast.AST, place: str) -> Iterator[Text]:
    """Yields every text below `tree` that a person may read: all literals but docstrings, f-strings as one text."""
    if isinstance(tree, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else ANY for part in tree.values]
        yield Text(f"{place}:{tree.lineno}", "".join(map(str, parts)))
    elif isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        yield Text(f"{place}:{tree.lineno}", tree.value)
    elif not (isinstance(tree, ast.Expr) and isinstance(tree.value, ast.Constant)):  # a bare text is a docstring
        for child in ast.iter_child_nodes(tree):
            yield from texts_of(child, place)


@cache
def all_texts() -> list[Text]:
    return [text for path in SOURCES for text in texts_of(ast.parse(path.read_text()), str(path.relative_to(ROOT)))]


# ---- the settings that a message may name


def keys_of(values: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the parts of the name of every node and value of a config; the user fills what is empty."""
    if prefix:
        yield prefix
    if values == {} or values == []:
        yield (*prefix, ANY)
    for key, value in values.items() if isinstance(values, dict) else ():
        yield from keys_of(value, (*prefix, str(key)))


@cache
def known_keys() -> frozenset[tuple[str, ...]]:
    """The keys of the composed config, over all experiments and the options of all groups."""
    groups = ("data", "prompts", "loss", "logger", "annotator", "generator", "tune")
    configs = [experiment_of(name) for name in EXPERIMENTS]
    for chosen in zip_longest(*(overrides_of(group) for group in groups)):  # the n-th option of every group together
        given = [override for override in chosen if override is not None]
        configs.append(config_of(*given, *(value for override in given for value in MISSING.get(override, []))))
    return frozenset(key for config in configs for key in keys_of(config)) | CHOSEN_BY_USER | OPTIONAL


# the user chooses the names below these nodes
CHOSEN_BY_USER = {("zero_shot", "sets", ANY), ("tune", "space", ANY)}
# nodes that are null until a group such as +generate/release=sa1b fills them, and arguments that conf/ leaves at their default
OPTIONAL = {("generate", "release", "detectors"), ("data", "_target_"), ("annotator", "leaves_image")}
# `model.safetensors` is a file and no setting
ENDINGS = {"ckpt", "csv", "db", "html", "json", "jsonl", "log", "md", "png", "pth", "py", "safetensors", "tar", "yaml"}
# words in parentheses that name no setting; names before "=" that are arguments of functions or stand for any setting
WORDS = {"background", "foreground", "last", "logarithmic", "median", "people"}
ARGUMENTS = {
    "check_val_every_n_epoch", "foreign_keys", "journal_mode", "key", "sync_dist", "synchronous", "token", "val_check_interval",
    "width",
}  # fmt: skip


def is_key(parts: list[str]) -> bool:
    """True if some key has these parts; ANY fits any text, and NAME or <name> any part."""
    patterns = [ANY if part.isupper() or part.startswith("<") else part for part in parts]
    return any(
        len(key) == len(parts) and all(fnmatchcase(*pair) or pair[0] == ANY for pair in zip(key, patterns, strict=True))
        for key in known_keys()
    )


def settings_in(text: str) -> Iterator[tuple[str, bool]]:
    """Yields each setting that a text names, and whether it exists.

    Settings are named as `node.key`, as `(key)` behind what is wrong, and as `key=value`.
    """
    nodes = {key[0] for key in known_keys() if len(key) > 1}
    for name in re.findall(r"(?<![\w./*<-])[a-z]\w*(?:\.(?:[\w*]+|<\w+>))+(?!\w*\()", text):
        node, *parts = name.split(".")
        if node in nodes and parts[-1] not in ENDINGS:
            yield name, is_key([node, *parts])
    for name in re.findall(r"(?<=[\s*]\()([a-z]\w*)(?=\))", text):
        if name not in WORDS:
            yield f"({name})", is_key([name])
    for plus, name, value in re.findall(r"(?<![\w.<*/-])(\+?)([a-z]\w*)=(?![\"'=>])(\w*)", text):
        if name not in ARGUMENTS:
            choices = list(TASKS) if name == "task" else options(name)  # a group of conf/ is chosen by the name of a file
            is_choice = value in choices or not value.islower()
            yield f"{plus}{name}={value}", is_choice if choices else is_key([name])


def test_every_setting_that_a_message_names_exists() -> None:
    texts = [each for each in all_texts() if each.text not in RENAMED]  # the old names no longer exist
    named = [(each.place, name, exists) for each in texts for name, exists in settings_in(each.text)]
    missing = [f"{place}: {name}" for place, name, exists in named if not exists]
    assert not missing, "these settings do not exist:\n" + "\n".join(missing)
    # a number of the scale is set by the node that uses it: a message names that one
    assert not [(place, name) for place, name, _ in named if name.startswith("scale.")]


def test_every_setting_that_a_comment_of_conf_or_the_documentation_names_exists() -> None:
    """Only `node.key`: the pages have Python code and shell commands, which a test of the documentation runs."""
    comments = {path: re.findall(r"(?<!\S)# (.*)", path.read_text()) for path in (ROOT / "conf").rglob("*.yaml")}
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    prose = {path: re.sub(r"```python.*?```", "", path.read_text(), flags=re.S).splitlines() for path in pages}
    named = [
        (str(path.relative_to(ROOT)), name, exists)
        for path, lines in {**comments, **prose}.items()
        for line in lines
        for name, exists in settings_in(line)
        if "." in name and "=" not in name
    ]
    assert len(named) > 100
    # docs/extending.md: fields of the points that a sampler returns, and a setting of data sets that users write
    of_users = {"prompts.coords", "prompts.labels", "data.version"}
    missing = {f"{path}: {name}" for path, name, exists in named if not exists and name not in of_users}
    assert not missing, "these settings do not exist:\n" + "\n".join(sorted(missing))


@pytest.mark.parametrize(
    "text",
    [
        "optim.layer_decay is 2: give less than 1",
        "scale.max_mask is 0: give 1 or more",
        f"recipes.{ANY}.no_such_setting is 2",
        "set data.on_errors=skip to leave it out",
        f"there is no file {ANY} (checkpoints): give another",
        "set on_error=skip",
        "choose data=folders",
        "run task=fitt",
        "start with +experiment=stage7",
    ],
)
def test_a_setting_that_does_not_exist_is_found(text: str) -> None:
    assert [exists for _, exists in settings_in(text)] == [False]


@pytest.mark.parametrize(
    "text",
    [
        f"recipes.{ANY}.layer_decay is 2, rounds.<n>.model is {ANY}",
        "set data.on_error=skip, checkpoint=FILE or +zero_shot.sets.NAME=SHARDS",
        f"there is no file {ANY} (checkpoint): set data=folder data.root={ANY}",
        'detector.pth in model.json <p class="note">',
    ],
)
def test_settings_and_files_that_exist_are_accepted(text: str) -> None:
    assert all(exists for _, exists in settings_in(text))


# ---- errors are sentences

VERBS = re.findall(
    r"\w+",
    """
    accept accepts allowed answers are ask asks begins belongs blurs can cannot carries changes check choose comes
    compares contain contains could counts covers cut cuts decodes did differ differs divide do does encode ended ends
    exceeds exist exists expected expects failed falls fits found gave give gives goes got grow grows had has have hold
    holds install is knows leaves list lists lost made makes matches mixes must name names need needs read reads restore
    run runs said say says set shares stands stopped take takes trains use uses want wanted wants was were will works
    wrote
    """,
)


def raised_texts(tree: ast.AST, place: str) -> Iterator[Text]:
    """Yields the text of each `raise`, the literals of its expression joined.

    `Refused` carries a label that reports count, and no sentence.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None and not ast.unparse(node.exc).startswith("Refused("):
            yield Text(f"{place}:{node.lineno}", " ".join(each.text for each in texts_of(node.exc, place)))


def is_sentence(text: str) -> bool:
    """True if the clause that says what is wrong, the first of two words or more, has a verb; single words pass."""
    words_only = re.sub(r"\([^)]*\)|[\w*]*[*._/=][\w*.=]*", " ", text.lower())  # no values, keys or asides
    clauses = [re.findall(r"[a-z]+", clause) for clause in re.split(r"[:;]", words_only)]
    first = next((words for words in clauses if len(words) > 1), [])
    return not first or bool(set(first) & set(VERBS))


def test_every_error_says_in_a_sentence_what_is_wrong() -> None:
    raised = [text for path in SOURCES for text in raised_texts(ast.parse(path.read_text()), str(path.relative_to(ROOT)))]
    assert len(raised) > 200
    missing = [f"{each.place}: {each.text}" for each in raised if not is_sentence(each.text)]
    assert not missing, "these errors have no verb (or one that VERBS lacks):\n" + "\n".join(missing)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{ANY}: its image cannot be read: replace it", True),
        (f"optim.schedule is {ANY}: take one of {ANY}", True),
        (ANY, True),
        (f"no whole records in {ANY}: prepare the set", False),
        ("mask of zero area", False),
        (f"{ANY}: {ANY} half records, the first {ANY}; write it again", False),
    ],
)
def test_a_clause_without_a_verb_is_found(text: str, expected: bool) -> None:
    assert is_sentence(text) == expected
