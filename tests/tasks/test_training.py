"""One training: what it leaves where there is nothing to choose by."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from samtrain.tasks import resolve, training
from samtrain.tasks.training import Training, train

CONF = Path(__file__).resolve().parents[2] / "conf"


def test_the_last_is_the_best_and_is_copied_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed while it copies finds no half `best.ckpt` when it goes on."""
    with initialize_config_dir(str(CONF), version_base=None):
        config = resolve(compose("config", overrides=["run_dir=unused"]))
    job = Training(
        directory=tmp_path,
        model="vit_tiny",
        init=None,
        train=[],
        val=[],
        steps=1,
        learning_rate=1e-3,
        native=False,
        large_scale_jitter=None,
    )
    job.last.parent.mkdir()

    def fit(*_: Any, **__: Any) -> None:
        job.last.write_bytes(b"whole")

    def dying(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:2])
        raise KeyboardInterrupt

    trainer = SimpleNamespace(fit=fit, is_global_zero=True)
    monkeypatch.setattr(training, "make_trainer", lambda *_, **__: trainer)
    monkeypatch.setattr(training, "batches_seen", lambda path: 0)
    monkeypatch.setattr(training, "_data", lambda *_, **__: None)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(training.shutil, "copyfile", dying)
        train(config, job, [])
    assert not job.best.exists()
    assert train(config, job, []).checkpoint.read_bytes() == b"whole"
