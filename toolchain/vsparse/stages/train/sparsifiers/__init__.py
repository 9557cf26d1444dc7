"""Sparsifiers: one file each; `make_sparsifier` makes the one of a recipe."""

from __future__ import annotations

from vsparse.graph.ir import Graph
from vsparse.recipe_train import METHODS, Train
from vsparse.stages.train.named_classes import named_class
from vsparse.stages.train.sparsifiers.base import Sparsifier, Tools
from vsparse.stages.train.sparsifiers.dense import DenseTraining

__all__ = ["DenseTraining", "Sparsifier", "Tools", "make_sparsifier", "sparsifier_class"]


def sparsifier_class(spec: Train) -> type[Sparsifier]:
    """Returns the class of a recipe's sparsifier, whether anything is to be removed or not; loaded when asked for.

    Raises InputError for a class of the user's own that cannot be imported.
    """
    return named_class(spec.sparse.method, METHODS, __name__, Sparsifier, "train.sparse.method")  # type: ignore[type-abstract]


def make_sparsifier(spec: Train, graph: Graph, sparse: bool) -> Sparsifier:
    """Returns the sparsifier of a recipe for a graph: `DenseTraining` where nothing is to be removed, or without `sparse`.

    Raises InputError for a budget that cannot be met.
    """
    if not (sparse and spec.is_sparse):
        return DenseTraining(spec, graph)
    return sparsifier_class(spec)(spec, graph)
