"""One training: what it leaves where there is nothing to choose by."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from pytorch_lightning.plugins.environments import SLURMEnvironment

from samtrain.data.datasets import Source
from samtrain.data.transforms import NativeCrop, ResizeLongestSide
from samtrain.data_engine.stages import FitRequest
from samtrain.run import trainer, training
from samtrain.run.settings import Config, read
from samtrain.run.training import train
from samtrain.tasks import resolve
from samtrain.training.config import TrainerConfig
from samtrain.training.fsdp import EncoderFSDPStrategy
from samtrain.training.optim import OptimConfig

CONF = Path(__file__).resolve().parents[2] / "conf"


def config_of(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base=None):
        return resolve(compose("config", overrides=["run_dir=unused", *overrides]))


def test_the_last_is_the_best_and_is_copied_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed while it copies finds no half `best.ckpt` when it goes on."""
    config = config_of()
    job = FitRequest(
        directory=tmp_path,
        model="vit_tiny",
        init=None,
        train=[],
        val=[],
        steps=1,
        learning_rate_factor=1.0,
        native=False,
        large_scale_jitter=None,
    )
    job.last.parent.mkdir()

    def fit(*_: Any, **__: Any) -> None:
        job.last.write_bytes(b"whole")

    def dying(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:2])
        raise KeyboardInterrupt

    pretended = SimpleNamespace(fit=fit, is_global_zero=True)
    monkeypatch.setattr(training, "make_trainer", lambda *_, **__: pretended)
    monkeypatch.setattr(training, "batches_seen", lambda path: 0)
    monkeypatch.setattr(training, "_data", lambda *_, **__: SimpleNamespace(check_validation=lambda: None))
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(training.shutil, "copyfile", dying)
        train(config, job, [])
    assert not job.best.exists()
    assert train(config, job, []).checkpoint.read_bytes() == b"whole"


def test_a_source_is_shown_in_its_own_frame() -> None:
    config = config_of("data=shards", "data.train={a:{urls:a.tar},b:{urls:b.tar,frame:native}}", "data.val=v.tar")
    request = FitRequest(
        directory=Path("run"), model=None, init=None, train=[Source("a.tar"), Source("b.tar", frame="native")], val=[], steps=1
    )
    module = training._data(config, request, image_size=32)
    assert isinstance(module.train_transform, ResizeLongestSide) and isinstance(module.val_transform, ResizeLongestSide)
    scenes, tiles = module.train
    assert scenes.transform is None and isinstance(tiles.transform, NativeCrop)
    assert (tiles.transform.image_size, tiles.transform.flip_probability) == (32, config["loader"]["flip_probability"])


def strategy(config: Config) -> Any:
    return trainer.strategy_of(read(TrainerConfig, config, "trainer"), read(OptimConfig, config, "optim"))


def test_strategies_are_named_and_what_does_not_go_with_them_too() -> None:
    assert [strategy(config_of(f"trainer.strategy={name}")) for name in ("auto", "ddp")] == ["auto", "ddp"]
    assert isinstance(strategy(config_of("trainer.strategy=fsdp")), EncoderFSDPStrategy)
    with pytest.raises(ValueError, match="trainer.strategy is 'fsdp1': give one of auto, ddp, fsdp"):
        strategy(config_of("trainer.strategy=fsdp1"))
    for override in ("optim.ema_decay=0.9999", "trainer.compile=true"):
        key = override.split("=")[0]
        with pytest.raises(ValueError, match=rf"{key} is .*set {key}=.* or trainer.strategy=ddp"):
            strategy(config_of("trainer.strategy=fsdp", override))
        assert strategy(config_of("trainer.strategy=ddp", override)) == "ddp"


def test_lightning_writes_no_checkpoint_of_its_own_on_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `hpc_ckpt` would be gone on with in place of `last.ckpt`, and the data would not."""

    def cluster() -> Any:
        config = config_of("trainer.accelerator=cpu")
        made = trainer.make_trainer(config, tmp_path, [], [], 1, "vit_tiny", validates=False)
        return made._accelerator_connector.cluster_environment

    assert not isinstance(cluster(), SLURMEnvironment)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert not isinstance(cluster(), SLURMEnvironment), "a shell inside of a job is one process"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(ValueError, match="srun started 4 tasks.*--ntasks-per-node"):
        cluster()
    for name in ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "1")
    assert isinstance(cluster(), SLURMEnvironment) and not cluster().auto_requeue
