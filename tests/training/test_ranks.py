"""Several ranks, under DDP and FSDP2: what they compute, what they write, and one that is lost."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from test_lit_sam import CALM, assert_close_rows, train
from test_resume import assert_same, assert_same_run
from tiny_training import (
    TINY,
    blobs,
    checkpointing,
    fit,
    fork_server,
    join,
    tiny_lit,
    tiny_sam,
    weights_of,
)

from samtrain.modeling import load_sam
from samtrain.prompts import CentreSampler
from samtrain.training.fsdp import EncoderFSDPStrategy
from samtrain.types import Batch

ROOT = Path(__file__).resolve().parents[2]
STRATEGIES = ["ddp", "fsdp"]
STEPS = 14  # validations after 6 and 12, checkpoints after 4, 6, 8, 12 and 14


def strategy_of(name: str) -> Any:
    return EncoderFSDPStrategy() if name == "fsdp" else name


# ---- one of two processes, as torchrun would start it


def as_rank(rank: int, port: int, function: Callable, arguments: tuple) -> None:
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
    }
    function(rank, *arguments)


@pytest.fixture(scope="module")
def two_ranks() -> Callable[..., list[int]]:
    """Runs a function of the rank and arguments in two processes and gives their exit codes."""
    server = fork_server()

    def run(function: Callable, *arguments: Any) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [server.Process(target=as_rank, args=(rank, port, function, arguments)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout=120)
        left = [process for process in ranks if process.exitcode is None]
        for process in left:
            process.kill()
        assert not left, "a rank hangs"
        return [process.exitcode for process in ranks]

    return run


# ---- what they compute


def train_on_lists(rank: int, run_dir: Path, strategy: str, accumulate: int) -> None:
    mine = [blobs(2 * k + rank, counts=(1 + rank + 2 * (k % 2), 2)) for k in range(2 * accumulate)]
    train_calmly(run_dir, mine, accumulate, strategy=strategy_of(strategy), devices=2)


def train_calmly(run_dir: Path, batches: list[Batch], accumulate: int, **changes: Any) -> None:
    """Trains for two steps that draw no random numbers, with clipping, as `assert_close_rows` asks in double precision."""
    lit = tiny_lit(sam=tiny_sam(config=CALM), prompts=CentreSampler(num_points=2))
    settings: dict[str, Any] = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.1, "precision": "64-true"}
    train(run_dir, lit, batches, 2, **(settings | changes))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_equal_one_with_both_batches(two_ranks: Callable, tmp_path: Path, strategy: str, accumulate: int) -> None:
    """Although ranks and micro-batches have different numbers of objects: a step's mean is over all its objects."""
    assert two_ranks(train_on_lists, tmp_path / "two", strategy, accumulate) == [0, 0]
    counts = [[(1 + rank + 2 * (k % 2), 2) for rank in range(2)] for k in range(2 * accumulate)]
    both = [join([blobs(2 * k + rank, counts=counts[k][rank]) for rank in range(2)]) for k in range(2 * accumulate)]
    train_calmly(tmp_path / "one", both, accumulate)
    assert_close_rows(tmp_path / "two", tmp_path / "one")


# ---- a rank that is lost


def train_with_checkpoints(
    rank: int, run_dir: Path, strategy: str, dies_in_step: int | None = None, dying: int | None = None
) -> None:
    """Begins or goes on, with other numbers of validation images on each rank; one rank may be killed on the way."""

    class Death(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if rank == dying and trainer.fit_loop.total_batch_idx == dies_in_step:
                os.kill(os.getpid(), signal.SIGKILL)

    changes = {"strategy": strategy_of(strategy), "devices": 2, "callbacks": [Death(), *checkpointing(run_dir)]}
    fit(run_dir, max_steps=STEPS, num_val=3, gradient_clip_val=None, **changes)


@pytest.fixture(scope="module")
def undisturbed(two_ranks: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    runs = {strategy: tmp_path_factory.mktemp(strategy) for strategy in STRATEGIES}
    for strategy, run_dir in runs.items():
        assert two_ranks(train_with_checkpoints, run_dir, strategy) == [0, 0]
    return runs


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_lost_rank_ends_the_run_and_the_same_command_goes_on(
    two_ranks: Callable, undisturbed: dict[str, Path], tmp_path: Path, strategy: str
) -> None:
    """To the same weights, to the bit: killed right behind a checkpoint, and one step before a validation."""
    for step, dying in ((4, 1), (11, 0)):
        codes = two_ranks(train_with_checkpoints, tmp_path, strategy, step, dying)
        assert codes[dying] == -signal.SIGKILL
        assert codes[1 - dying] == 1, "the other rank ends by itself"
    assert two_ranks(train_with_checkpoints, tmp_path, strategy) == [0, 0]
    assert_same_run(tmp_path, undisturbed[strategy])


def train_on_own_disk(rank: int, disks: Path, strategy: str) -> None:
    """Each rank sees a run directory of its own, as on nodes that share nothing."""
    train_with_checkpoints(rank, disks / str(rank), strategy)


def refused_on_own_disk(rank: int, disks: Path, strategy: str) -> None:
    seen = (6, 0)[rank]
    with pytest.raises(ValueError, match=rf"rank {rank} .* {seen} batches, rank 0 after 6.*a disk that all nodes share"):
        train_on_own_disk(rank, disks, strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nodes_that_see_no_common_checkpoint_are_refused(
    two_ranks: Callable, undisturbed: dict[str, Path], tmp_path: Path, strategy: str
) -> None:
    """By all ranks at once; before, one began anew where the other went on."""
    assert -signal.SIGKILL in two_ranks(train_with_checkpoints, tmp_path / "0", strategy, 6, 1)
    assert two_ranks(refused_on_own_disk, tmp_path, strategy) == [0, 0]


# ---- what they write


def test_fsdp_ends_as_ddp_does(undisturbed: dict[str, Path]) -> None:
    """To the bit, optimiser and all, in one ordinary file; only the logged norms of parts add up in another order."""
    ddp, fsdp = (torch.load(undisturbed[name] / "checkpoints" / "last.ckpt", weights_only=True) for name in STRATEGIES)
    for key in ("state_dict", "optimizer_states"):
        assert_same(fsdp[key], ddp[key], key)
    assert ddp.keys() == fsdp.keys()
    assert load_sam(undisturbed["fsdp"] / "checkpoints" / "best.ckpt").config == TINY


def test_one_process_goes_on_with_the_checkpoint_of_two_ranks(undisturbed: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(undisturbed["fsdp"] / "checkpoints", tmp_path / "checkpoints")
    before = weights_of(tmp_path / "checkpoints" / "last.ckpt")
    lit = fit(tmp_path, max_steps=STEPS + 1)
    assert int(lit.trainer.optimizers[0].state[lit.sam.image_encoder.pos_embed]["step"]) == STEPS + 1
    for key, value in lit.state_dict().items():
        assert torch.allclose(value, before[key], atol=1e-2), key  # one more step of Adam


# ---- the command


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    """Both ranks of the whole command come to their end; images are painted, and the first of them chosen, by one."""
    arguments = [
        "+experiment=pretrain",
        "run_dir=run",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "trainer.strategy=fsdp",
        "trainer.max_steps=2",
        "loader.batch_size=2",
        "loader.train_images=6",
        "scale.synthetic={size:[96,96],public:8,pool:1,val:3,test:2,crowded:1}",
        "data_dir=shards",
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "samtrain"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    settings: dict[str, Any] = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    answer = subprocess.run([*command, *arguments], check=False, **settings)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    run = tmp_path / "run"
    assert "test/miou_1" in json.loads((run / "metrics.json").read_text())
    assert load_sam(run / "checkpoints" / "best.ckpt").config.model == "vit_tiny"
    assert (run / "samtrain.log").read_text().count("Training vit_tiny") == 1, "one rank speaks for all"
    assert [path.name for path in (run / "shards").glob("*.tar")] == ["chosen_000000.tar"]
