"""Certified training from scratch, dense or sparse: objectives, schedules, dynamic sparse search, checkpoints."""

from vsparse.stages.train.loop import train
from vsparse.stages.train.result import EpochReport, TrainResult

__all__ = ["EpochReport", "TrainResult", "train"]
