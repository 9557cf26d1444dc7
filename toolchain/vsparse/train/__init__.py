"""Certified training from scratch, dense or sparse: objectives, schedules, dynamic sparse search, checkpoints."""

from vsparse.train.loop import train
from vsparse.train.result import EpochReport, TrainResult

__all__ = ["EpochReport", "TrainResult", "train"]
