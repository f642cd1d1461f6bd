"""SLURM: what a job asks for, and the whole way from the command to two ranks on a cluster that is pretended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the slurm extra")

ROOT = Path(__file__).resolve().parents[2]

# what stands in for the cluster: a job at once, a process a task on this machine, and an end that is seen by its results
CLUSTER = {
    "sbatch": """
        cp "$1" job.sh
        export SLURM_JOB_ID=4242 SLURM_NTASKS_PER_NODE=$(sed -n "s/#SBATCH --ntasks-per-node=//p" "$1")
        (sleep 1; exec bash job.sh) >job.log 2>&1 &
        echo "Submitted batch job $SLURM_JOB_ID"
    """,
    "srun": """
        while [[ $1 == --* ]]; do [[ $1 == --unbuffered ]] || shift; shift; done
        export SLURM_NTASKS=$SLURM_NTASKS_PER_NODE SLURM_STEP_NUM_TASKS=$SLURM_NTASKS_PER_NODE SLURM_NNODES=1 SLURM_NODEID=0
        export SLURM_NODELIST=127.0.0.1 SLURM_JOB_NODELIST=127.0.0.1
        for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
            SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
        done
        wait
    """,
    "sacct": """
        echo "JobID|State|NodeList"
        echo "4242|RUNNING|localhost"
    """,
}


def launcher_of(*overrides: str) -> Any:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        given = ["hydra/launcher=slurm", "+experiment=sa1b", "data=synthetic", "run_dir=run", *overrides]
        return compose("config", overrides=given, return_hydra_config=True).hydra.launcher


def test_a_job_has_a_task_for_each_device() -> None:
    paper = launcher_of("scale=paper")
    assert (paper.nodes, paper.tasks_per_node, paper.gpus_per_node) == (16, 8, 8)
    small = launcher_of("scale=single_gpu", "trainer.devices=4", "hydra.launcher.partition=gpu")
    assert (small.nodes, small.tasks_per_node, small.gpus_per_node, small.partition) == (1, 4, 4, "gpu")


@pytest.mark.slow
def test_a_job_of_two_ranks(tmp_path: Path) -> None:
    for name, script in CLUSTER.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}")
        (tmp_path / name).chmod(0o755)
    arguments = [
        "-m",
        "hydra/launcher=slurm",
        "hydra.launcher.gpus_per_node=null",
        "+experiment=pretrain",
        "run_dir=run",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "trainer.max_steps=2",
        "loader.batch_size=2",
        "scale.synthetic={size:[96,96],public:8,pool:1,val:3,test:2,crowded:1}",
        "data_dir=shards",
    ]
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    settings: dict[str, Any] = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    answer = subprocess.run([sys.executable, "-m", "samtrain", *arguments], check=False, **settings)
    said = answer.stdout + answer.stderr + (tmp_path / "job.log").read_text()
    assert answer.returncode == 0, said
    assert "MEMBER: 2/2" in said
    run = tmp_path / "run" / "0"
    assert "test/miou_1" in json.loads((run / "metrics.json").read_text())
    command = json.loads((run / ".hydra" / "environment.json").read_text())["command"]
    assert command.startswith("python -m samtrain +experiment=pretrain run_dir=run") and "hydra/launcher=slurm" in command
    assert "export SLURM_KILL_BAD_EXIT=1" in (tmp_path / "job.sh").read_text()
