"""Builds the parts of the site that are made from other files: the configuration reference, the 23 datasets, figures."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
CONFIG_MARKER = "<!-- every key of conf/ -->"
SETS_MARKER = "<!-- the 23 datasets -->"
FIGURES = ("stage1_round6.png", "facades_round10.jpg", "annotate.jpg")
# config groups in the order in which a reader meets them; sa23.yaml is a list of datasets and has a page of its own
GROUPS = (
    "data", "prompts", "loss", "trainer", "callbacks", "logger", "recipe", "annotator", "engine", "prefill", "detector",
    "clip_training", "generator", "generate", "generate/release", "tune", "scale", "experiment", "hydra/launcher",
)  # fmt: skip
NOT_LISTED = {"zero_shot_sets"}


@dataclass
class Key:
    """One line of a config file; a heading is a comment that stands on a line of its own."""

    path: str
    default: str
    comment: str
    is_heading: bool = False


def on_files(files: Any, config: Any) -> Any:
    """Adds the figures that experiments/ keeps, so that pages show them without a copy in docs/."""
    for name in FIGURES:
        files.append(File(f"figures/{name}", str(ROOT / "experiments"), config.site_dir, use_directory_urls=True))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the generated tables where a page has their marker."""
    if CONFIG_MARKER in markdown:
        markdown = markdown.replace(CONFIG_MARKER, config_reference())
    if SETS_MARKER in markdown:
        markdown = markdown.replace(SETS_MARKER, datasets_table())
    return markdown


def config_reference() -> str:
    """Returns one section for config.yaml and one for each config group, a table for each file."""
    parts = ["## config.yaml\n", file_section(CONF / "config.yaml", "")]
    found = {str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml")} - {".", *NOT_LISTED}
    for group in (*GROUPS, *sorted(found - set(GROUPS))):
        if group not in found:
            continue
        parts.append(f"## {group}\n")
        for path in sorted((CONF / group).glob("*.yaml")):
            parts.append(f"### {group}={path.stem}\n" if group != "experiment" else f"### +experiment={path.stem}\n")
            parts.append(file_section(path, prefix_of(path, group)))
    return "\n".join(parts)


def prefix_of(path: Path, group: str) -> str:
    """Returns where a file's keys are in the composed config: below the group's name, or at the top."""
    if "@package _global_" in path.read_text():
        return ""
    return {"recipe": f"recipes.{path.stem}."}.get(group, group.replace("/", ".") + ".")


def file_section(path: Path, prefix: str) -> str:
    """Returns a file's opening comment as text and its keys as a table."""
    title, keys = read_config(path)
    rows = [row(key, prefix) for key in keys]
    table = "\n".join(["| key | default | meaning |", "|---|---|---|", *rows]) if rows else ""
    return f"{title}\n\n{table}\n"


def row(key: Key, prefix: str) -> str:
    comment = plain(key.comment)
    if key.is_heading:
        return f"| *{comment}* | | |"
    default = f"`{key.default}`".replace("|", "\\|") if key.default else ""
    return f"| `{prefix}{key.path}` | {default} | {comment} |"


def plain(comment: str) -> str:
    """Returns a comment as Markdown that shows the same characters; what stands in backticks stays code."""
    parts = comment.replace("|", "\\|").split("`")
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*_\[\]])", r"\\\1", html.escape(parts[i], quote=False))
    return "`".join(parts)


def read_config(path: Path) -> tuple[str, list[Key]]:
    """Returns a file's opening comment and its keys in order, each with the comment beside it."""
    lines = path.read_text().splitlines()
    opening = [line for line in _leading_comments(lines) if "@package" not in line]
    keys: list[Key] = []
    document = yaml.compose("\n".join(lines))
    if isinstance(document, yaml.MappingNode):
        _collect(document, "", lines, keys, start=len(_leading_comments(lines)))
    return _opening_text(opening), keys


def _leading_comments(lines: list[str]) -> list[str]:
    found = []
    for line in lines:
        if not line.startswith("#"):
            break
        found.append(line.lstrip("#").rstrip())
    return found


def _opening_text(lines: list[str]) -> str:
    """Returns the title as a paragraph and the rest, which is laid out in columns, as a block."""
    title = plain(lines[0].strip()) if lines else ""
    rest = "\n".join(line.removeprefix(" ") for line in lines[1:]).strip("\n")
    return f"{title}\n\n```text\n{rest}\n```" if rest else title


def _collect(node: yaml.MappingNode, path: str, lines: list[str], keys: list[Key], start: int) -> None:
    """Appends the keys of a mapping to `keys`; comments from line `start` on belong to it."""
    for name, value in node.value:
        line = name.start_mark.line
        keys += [Key("", "", text, is_heading=True) for text in _comments_above(lines, start, line)]
        start = value.end_mark.line + (value.end_mark.column > 0)
        dotted = f"{path}{name.value}"
        if name.value == "defaults" and not path:
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            if comment := _comment(lines[line], name.end_mark.column):
                keys.append(Key(dotted, "", comment))
            _collect(value, f"{dotted}.", lines, keys, start=line + 1)
            continue
        last = value.end_mark.line if value.end_mark.line > line else line
        comment = _comment(lines[line], value.end_mark.column if last == line else name.end_mark.column)
        keys.append(Key(dotted, _text(value), f"{comment} {_continued(lines, line + 1, name.start_mark.column)}".strip()))


def _text(node: yaml.Node) -> str:
    """Returns a value as it is written in the file, on one line."""
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.value or node.style else "null"
    written = node.start_mark.buffer[node.start_mark.pointer : node.end_mark.pointer]  # type: ignore[index]
    return " ".join(written.rstrip("\0").split())


def _comment(line: str, column: int) -> str:
    _, found, comment = line[column:].partition("#")
    return comment.strip() if found else ""


def _continued(lines: list[str], number: int, column: int) -> str:
    """Returns comment lines that are indented below a key: its comment did not fit on one line."""
    found = []
    for line in lines[number:]:
        text = line.strip()
        if not text.startswith("#") or len(line) - len(line.lstrip()) <= column:
            break
        found.append(text.lstrip("# "))
    return " ".join(found)


def _comments_above(lines: list[str], start: int, stop: int) -> list[str]:
    """Returns the comments between two keys that stand at the key's own indentation: titles of what follows."""
    column = len(lines[stop]) - len(lines[stop].lstrip())
    above = lines[start:stop]
    return [line.strip().lstrip("# ") for line in above if line.strip().startswith("#") and line.index("#") == column]


def datasets_table() -> str:
    """Returns the 23 datasets of the paper's single-point evaluation with licence, split and where to get each."""
    sets = yaml.safe_load((CONF / "zero_shot_sets" / "sa23.yaml").read_text())
    rows = ["| dataset | split | images | masks | licence | how to get it |", "|---|---|---|---|---|---|"]
    for name, entry in sets.items():
        numbers = f"{entry['images']:,} | {entry['masks']:,}"
        words = f"{plain(entry['licence'])} | {plain(entry['get']).strip()}"
        rows.append(f"| [{name}]({entry['home']}) | {entry['split']} | {numbers} | {words} |")
    return "\n".join(rows)
