"""Loggers of scalars, images and files: always `metrics.csv`, and W&B or TensorBoard if they are set."""

from samtrain.training.loggers.appending_csv import AppendingCSVLogger
from samtrain.training.loggers.ledger import LedgerLogger
from samtrain.training.loggers.lineage import RoundFiles, log_round
from samtrain.training.loggers.make import LoggerConfig, WandbConfig, finish, make_loggers
from samtrain.training.loggers.wandb_run import AXIS, ROUND, SamWandbLogger

__all__ = [
    "AXIS", "ROUND", "AppendingCSVLogger", "LedgerLogger", "LoggerConfig", "RoundFiles", "SamWandbLogger", "WandbConfig",
    "finish", "log_round", "make_loggers",
]  # fmt: skip
