"""Arrays with labels: built-in datasets and files of the user's own, checked, split and hashed."""

from vsparse.data.augment import augment
from vsparse.data.dataset import Dataset, Splits
from vsparse.data.load import load

__all__ = ["Dataset", "Splits", "augment", "load"]
