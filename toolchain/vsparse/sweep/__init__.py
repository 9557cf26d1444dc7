"""A sweep: many recipes trained side by side, and which of them nothing beats."""

from vsparse.sweep.halving import Halving
from vsparse.sweep.run import Sweep, train_sweep

__all__ = ["Halving", "Sweep", "train_sweep"]
