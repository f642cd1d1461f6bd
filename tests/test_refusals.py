"""What Hydra refuses is said in one sentence with the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from samtrain.refusals import explain

CONF = Path(__file__).resolve().parents[1] / "conf"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.max_step=3"], "trainer.max_step is not a setting (did you mean max_steps?); trainer has accelerator, "),
        (["seed=1", "trainr.max_steps=3"], "trainr is not a setting (did you mean trainer?); the config has task, "),
        (["data=folder", "data.rot=x"], "data.rot is not a setting (did you mean root?); data has "),
        (["+experiment=stage1", "rounds.1.step=3"], "rounds.1.step is not a setting (did you mean steps?); rounds.1 has "),
        (["+experiment=stgae1"], "experiment=stgae1 does not exist (did you mean stage1?): choose one of clip, data_engine, "),
        (["scale=laptopp"], "scale=laptopp does not exist (did you mean laptop?): choose one of gpu_80gb, gpu_8gb, "),
        (["+trainer.max_steps=3"], "trainer.max_steps is a setting that exists, so give it without a plus sign"),
        (["optim.trainable=a,b"], "optim.trainable=a,b has a comma: for a list give 'optim.trainable=[a,b]'"),
        (["optim.trainable=[a"], "an argument cannot be read ("),
    ],
)
def test_the_key_and_the_nearest_name(overrides: list[str], message: str) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(Exception) as error:  # noqa: B017, PT011
        compose("config", overrides=overrides)
    assert explain(error.value, overrides, CONF).startswith(message), str(error.value)
