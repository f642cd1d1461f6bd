"""Search spaces: their forms, their defaults, and values that the command line reads back unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from samtrain.tasks import resolve
from samtrain.tuning.space import override, read_space

CONF = Path(__file__).resolve().parents[2] / "conf"

CONFIG = {"optim": {"rate": 1.0}, "prompts": {"points": 3}, "jitter": [0.8, 1.25], "flip": True, "name": None}


def space(**values: Any) -> list[Any]:
    return read_space({key.replace("_dot_", "."): value for key, value in values.items()}, CONFIG, model="vit_b")


def test_defaults_come_from_the_config() -> None:
    rate, points, jitter, flip = space(
        optim_dot_rate={"low": 0.1, "high": 10, "log": True},
        prompts_dot_points={"low": 1, "high": 9, "step": 2},
        jitter={"choices": [None, [0.8, 1.25]]},
        flip={"choices": [True, False]},
    )
    assert (rate.default, points.default, jitter.default, flip.default) == (1.0, 3, "[0.8,1.25]", True)
    assert not rate.is_whole and points.is_whole
    assert [v for v in range(11) if points.contains(v)] == [1, 3, 5, 7, 9]
    assert not points.contains(3.5) and not points.contains(True) and rate.contains(10)


def test_keys_may_name_the_model() -> None:
    config = {"recipes": {"vit_b": {"decay": 0.1}}}
    (decay,) = read_space({"recipes.{model}.decay": {"low": 0.0, "high": 1.0}}, config, model="vit_b")
    assert (decay.key, decay.default) == ("recipes.vit_b.decay", 0.1)


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("optim.rate", {"low": 2.0, "high": 3.0}, "does not contain the default 1.0"),
        ("optim.rate", {"low": 3.0, "high": 2.0}, "ascending"),
        ("optim.rate", {"low": 0.0, "high": 2.0, "log": True}, "above 0"),
        ("optim.rate", {"low": 0.0}, "give {low"),
        ("optim.rate", {"choices": []}, "give {low"),
        ("optim.rate", {"low": 0.0, "high": 2.0, "hight": 2}, "give {low"),
        ("optim.rates", {"low": 0.0, "high": 2.0}, "no 'optim.rates'"),
        ("prompts.points.x", {"low": 0.0, "high": 2.0}, "no 'prompts.points.x'"),
    ],
)
def test_errors_name_the_key_of_the_space(key: str, values: dict, said: str) -> None:
    with pytest.raises(ValueError, match=f"tune.space.{key}.*{said}"):
        read_space({key: values}, CONFIG, model=None)
    with pytest.raises(ValueError, match="tune.space is empty"):
        read_space({}, CONFIG, model=None)


TEXTS = ["cosine", "[0.8,1.25]", "1", "null", "a, b", "it's", "a/b.c-d"]


@pytest.mark.parametrize("value", [1, 0.1 + 0.2, 1e-7, True, False, None, *TEXTS])
def test_the_command_line_reads_a_value_back(value: Any) -> None:
    (parsed,) = OverridesParser.create().parse_overrides([override("a.b", value)])
    wanted = [0.8, 1.25] if value == "[0.8,1.25]" else value
    assert parsed.value() == wanted and isinstance(parsed.value(), type(wanted))


@pytest.mark.parametrize("space", sorted(path.stem for path in (CONF / "tune").glob("*.yaml") if path.stem != "base"))
def test_every_search_space_contains_the_default(space: str) -> None:
    """Both ends of each dimension compose, too."""
    experiment = f"+experiment={'stage1' if space == 'rounds' else 'pretrain'}"

    def config_of(*more: str) -> dict[str, Any]:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return resolve(compose("config", overrides=[experiment, f"tune={space}", "run_dir=run", *more]))

    config = config_of()
    dimensions = read_space(config["tune"]["space"], config, model=config["model"]["name"])
    for ends in (0, -1):
        given = [override(d.key, d.choices[ends] if d.choices else (d.low, d.high)[ends]) for d in dimensions]
        composed = config_of(*given, *config["tune"]["overrides"])
        assert composed["tune"]["space"] == config["tune"]["space"]
