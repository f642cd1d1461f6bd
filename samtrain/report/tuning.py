"""A sweep on the page: its winner, its course, the influence of each setting, and all trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from samtrain.report.figures import Axis, Point, Series, line_chart
from samtrain.report.tables import duration, table

STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
Trial = dict[str, Any]


def tuning_section(tune: dict[str, Any]) -> str:
    """Returns the content of `tune.json`, or "" if the run was not a sweep."""
    if not tune:
        return ""
    charts = "".join([_history(tune), *(_slice(tune, each) for each in tune["dimensions"])])
    return f'{_outcome(tune)}<div class="charts">{charts}</div>{_importances(tune)}<h3>All trials</h3>{_trials(tune)}'


def _outcome(tune: dict[str, Any]) -> str:
    """Returns the winner's command, and its gain over the default settings with other seeds."""
    best, again = tune["best"], tune["again"]
    if best is None:
        return '<p class="note">No trial has finished yet.</p>'
    which = "the default" if best["default"] else f"trial {best['number']}"
    text = (
        f"<p>The best is {which} with {escape(tune['metric'])} {best['value']:.4f}. Its command is:</p>"
        f'<pre class="wrapped">{escape(best["command"])}</pre>'
    )
    if not again:
        return text
    seeds = list(again["by_seed"])
    rows = [
        [name, *(f"{again[name][seed]:.4f}" for seed in seeds), f"{sum(again[name].values()) / len(seeds):.4f}"]
        for name in ("default", "winner")
    ]
    rows.append(["difference", *(f"{again['by_seed'][seed]:+.4f}" for seed in seeds), f"{again['difference']:+.4f}"])
    return text + table([again["metric"], *(f"seed {seed}" for seed in seeds), "mean"], rows)


def _history(tune: dict[str, Any]) -> str:
    """Returns a chart of each trial's value, and of the best so far."""
    finished = [t for t in tune["trials"] if t["state"] == "COMPLETE"]
    pruned = [t for t in tune["trials"] if t["state"] == "PRUNED" and t["value"] is not None]
    better = max if tune["direction"] == "maximize" else min
    best: list[Point] = []
    for trial in finished:
        value = trial["value"] if not best else better(best[-1][1], trial["value"])
        best.append((float(trial["number"]), value))
    series = [
        Series("best so far", [best], 2),
        Series("finished", [[(float(t["number"]), t["value"])] for t in finished], 1, dots=True),
        _pruned([(float(t["number"]), t["value"]) for t in pruned]),
    ]
    return line_chart("Trials", Axis("trial"), Axis(tune["metric"]), series, note=_note(pruned))


def _slice(tune: dict[str, Any], dimension: dict[str, Any]) -> str:
    """Returns a chart of the values over one setting."""
    # the finished and pruned trials that have a value
    key = dimension["key"]
    ended = [t for t in tune["trials"] if t["state"] in ("COMPLETE", "PRUNED")]
    shown = [t for t in ended if t["value"] is not None and key in t["params"]]
    if not shown:
        return ""
    # the default settings are drawn in a colour of their own
    place, axis = _scale(dimension, [t["params"][key] for t in shown])
    points = {
        state: [(place(t["params"][key]), t["value"]) for t in shown if t["state"] == state and not t["default"]]
        for state in ("COMPLETE", "PRUNED")
    }
    default = [[(place(t["params"][key]), t["value"])] for t in shown if t["default"]]
    series = [
        Series("finished", [[point] for point in points["COMPLETE"]], 1, dots=True),
        _pruned(points["PRUNED"]),
        Series("default", default, 2, dots=True),
    ]
    return line_chart(key, axis, Axis(tune["metric"]), series)


def _pruned(points: Sequence[Point]) -> Series:
    return Series("pruned", [[point] for point in points], 3, dots=True, hollow=frozenset(range(len(points))))


def _note(pruned: Sequence[Trial]) -> str:
    return "Rings are pruned trials, at their last value." if pruned else ""


def _scale(dimension: dict[str, Any], values: Sequence[Any]) -> tuple[Any, Axis]:
    """Returns a function for the place of a value, and the axis: choices in a row, or logarithmic if the search is."""
    key = dimension["key"].rsplit(".", 1)[-1]
    if choices := dimension["choices"]:
        return lambda value: float(choices.index(value)), Axis(key, {float(i): str(c) for i, c in enumerate(choices)})
    if dimension["log"]:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        marks = [m * 10.0**p for p in range(low, high + 1) for m in (1, 2, 5)]
        return math.log10, Axis(f"{key} (logarithmic)", {math.log10(m): f"{m:g}" for m in marks})
    return float, Axis(key)


def _importances(tune: dict[str, Any]) -> str:
    """Returns bars of importance: how much of the variation among the finished trials goes along with each setting."""
    if not tune["importances"]:
        return '<p class="note">The importance of settings is computed from four finished trials on, if they differ.</p>'
    most = max(tune["importances"].values()) or 1.0
    rows = [
        [f"<code>{escape(key)}</code>", f'<i class="bar" style="width:{100 * value / most:.0f}px"></i> {value:.2f}']
        for key, value in sorted(tune["importances"].items(), key=lambda item: -item[1])
    ]
    return "<h3>Importance of the settings</h3>" + table(["setting", "importance (PED-ANOVA)"], rows)


def _trials(tune: dict[str, Any]) -> str:
    """Returns a table of all trials, best first."""
    keys = [each["key"] for each in tune["dimensions"]]
    sign = -1 if tune["direction"] == "maximize" else 1
    order = {state: i for i, state in enumerate(STATES)}
    trials = sorted(
        tune["trials"], key=lambda t: (order[t["state"]], sign * t["value"] if t["value"] is not None else 0.0, t["number"])
    )
    rows = [
        [
            f"{t['number']}{' (default)' if t['default'] else ''}",
            escape(_state(t)),
            "–" if t["value"] is None else f"{t['value']:.4f}",
            *(escape(_value(t["params"].get(key))) for key in keys),
            "–" if t["seconds"] is None else duration(t["seconds"]),
        ]
        for t in trials
    ]
    return table(["trial", "", tune["metric"], *keys, "time"], rows)


def _state(trial: Trial) -> str:
    """Returns the state in words; a trial that failed without a reason was killed, and another one resumes its run."""
    return "killed, resumed by another trial" if trial["state"] == "FAIL" and not trial["reason"] else STATES[trial["state"]]


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
