"""The tables of a comparison: the runs, their final numbers, and the settings in which they differ."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from samtrain.report.compare_charts import Compared
from samtrain.report.tables import METRICS, duration, table
from samtrain.report.zero_shot import NAMES

# words in the name of a metric that say whether higher or lower is better; other metrics are not judged
HIGHER = {"miou", "ap", "ar", "pq", "sq", "rq", "ods", "ois", "r", "precision", "coverage"}
LOWER = {"seconds", "noc", "failures"}
OF_THE_DATA = {"ceiling", "flood", "start"}  # these measure the data or the model before the run
# METRICS come last, because their words fit a comparison better
WORDS = {name: words for name, words, *_ in (*METRICS, *NAMES)} | {name: words for name, words in METRICS}
RANKS = {name: i for i, name in enumerate(WORDS)}
ORDER = ("test/", "mean/", "", "val/", "time/", "memory/")  # "" stands for all others
OWN = re.compile(r"(run_dir|hydra)(\.|$)")  # settings that no two runs share
MISSING = "–"


def runs_table(known: Sequence[Compared]) -> str:
    """Returns a table with a row per run, which begins with the line that the charts draw for it."""
    rows = []
    for each in known:
        run = each.run
        line = f'<i class="key k{each.colour} {"dashed" if each.dashed else "line"}"></i>' if each.drawn else ""
        state = "" if run.metrics else ' <span class="going">has not ended</span>'
        commit = run.commit.replace(" with uncommitted changes", ", changed")
        rows.append(
            [
                f"{line}{escape(each.title)}{state}",
                f"<code>{escape(str(run.run_dir))}</code>",
                f"<code>{escape(re.sub(r'[0-9a-f]{40}', lambda found: found[0][:10], commit) or MISSING)}</code>",
                duration(run.seconds) if run.seconds else MISSING,
                escape(run.hardware or MISSING),
            ]
        )
    return table(["run", "directory", "commit", "time", "hardware"], rows, "words")


def metrics_tables(known: Sequence[Compared]) -> str:
    """Returns the final numbers; metrics that are not judged are collapsed."""
    keys = sorted({key for each in known for key in each.run.metrics}, key=_place)
    keys = [key for key in keys if not (key.endswith(("_low", "_high")) and key.rsplit("_", 1)[0] in keys)]
    judged = [key for key in keys if better(key)]
    heads = ["", *(each.title for each in known)]
    shown = table(heads, [_metric_row(key, known) for key in judged]) if judged else ""
    note = '<p class="note">Green is the best value of its row.</p>' if "<b" in shown else ""
    others = [_metric_row(key, known) for key in keys if key not in judged]
    return shown + note + _collapsed(f"other numbers ({len(others)})", table(heads, others) if others else "")


def better(key: str) -> int:
    """Returns 1 if a higher value of the metric is better, -1 if a lower one is, and 0 if that is not known."""
    group, name = f"/{key}".rsplit("/", 1)
    words = set(re.sub(r"\d+", "", name).split("_")) | ({"coverage"} & set(group.split("/")))
    if words & OF_THE_DATA:
        return 0
    return -1 if words & LOWER else int(bool(words & HIGHER))


def _metric_row(key: str, known: Sequence[Compared]) -> list[str]:
    """Returns the name and a cell per run; the best is marked if the displayed values differ."""
    # mark the best value
    values = [_measured(each, key) for each in known]
    texts, numbers = [_number(value) for value in values], [value for value in values if value is not None]
    best = ""
    if (way := better(key)) and len({text for text in texts if text != MISSING}) > 1:
        best = _number(max(numbers, key=lambda value: way * value))
    cells = [f'<b class="good">{text}</b>' if text == best else text for text in texts]
    # add the intervals
    ends = [[_measured(each, f"{key}_{end}") for end in ("low", "high")] for each in known]
    cells = [f"{c} ({_number(e[0])} to {_number(e[1])})" if None not in e else c for c, e in zip(cells, ends, strict=True)]
    words = WORDS.get(key.rsplit("/", 1)[-1].removeprefix("start_"), "")
    return [f"<code>{escape(key)}</code>" + (f"<br><small>{escape(words)}</small>" if words else ""), *cells]


def _measured(each: Compared, key: str) -> float | None:
    """Returns the value of a metric, or None if it is missing or not finite."""
    value = each.run.metrics.get(key)
    return value if value is not None and math.isfinite(value) else None


def _place(key: str) -> tuple[int, str, int, str]:
    """Returns a sort key: first by `ORDER`, then by set, then as in the tables of a single run."""
    group = next((i for i, prefix in enumerate(ORDER) if prefix and key.startswith(prefix)), ORDER.index(""))
    of, name = f"/{key}".rsplit("/", 1)
    return group, of, RANKS.get(name, len(RANKS)), key


def _number(value: float | None) -> str:
    """Formats a measure with three digits and a count without any."""
    if value is None:
        return MISSING
    if value == int(value) and abs(value) > 1:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3f}" if abs(value) >= 0.001 or not value else f"{value:.1e}"


def settings_tables(known: Sequence[Compared]) -> str:
    """Returns the settings that differ; those below `scale` are collapsed, because other settings repeat them."""
    stored = [each for each in known if each.run.config]
    missing = ", ".join(each.letter for each in known if not each.run.config)
    note = f'<p class="note">The settings of {missing} are not stored.</p>' if missing else ""
    if len(stored) < 2:
        return note
    configs = [flat(each.run.config) for each in stored]
    keys = sorted({key for config in configs for key in config if not OWN.match(key)})
    differing = [key for key in keys if any(config.get(key, MISSING) != configs[0].get(key, MISSING) for config in configs)]
    rows = {key: [f"<code>{escape(key)}</code>", *(_setting(config, key) for config in configs)] for key in differing}
    heads = ["setting", *(each.title for each in stored)]
    main, scale = ([row for key, row in rows.items() if key.startswith("scale.") == inside] for inside in (False, True))
    shown = table(heads, main, "words") if main else '<p class="note">All settings are the same.</p>'
    return shown + note + _collapsed(f"numbers of the scale ({len(scale)})", table(heads, scale, "words") if scale else "")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"a.b": value} for nested dicts; lists and empty dicts count as values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def _setting(config: dict[str, Any], key: str) -> str:
    """Formats a setting as one line of YAML."""
    if key not in config:
        return "not set"
    value = config[key]
    return f"<code>{escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))}</code>"


def _collapsed(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>{body}</details>" if body else ""
