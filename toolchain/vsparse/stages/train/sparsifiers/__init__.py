"""Sparsifiers: one file each; `make_sparsifier` picks the one of a recipe."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.sparsifiers.base import Sparsifier, Tools
from vsparse.stages.train.sparsifiers.dense import Dense

__all__ = ["METHODS", "Dense", "Sparsifier", "Tools", "make_sparsifier"]

METHODS = {
    "gradual": "gradual:Gradual",
    "vericompress": "vericompress:VeriCompress",
    "sparsevlr": "sparsevlr:SparseVLR",
    "rigl": "rigl:RigL",
    "set": "set_:Set",
    "snip": "snip:Snip",
    "magnitude": "magnitude:Magnitude",
    "lottery": "lottery:Lottery",
    "hydra": "hydra:Hydra",
}


def make_sparsifier(spec: Train, graph: Graph, sparse: bool) -> Sparsifier:
    """Returns the sparsifier of a recipe for a graph: `Dense` where nothing is to be removed, or without `sparse`.

    Raises InputError for a budget that cannot be met.
    """
    if not (sparse and spec.is_sparse):
        return Dense(spec, graph)
    module, _, name = METHODS[spec.sparse.method].partition(":")
    made: Any = getattr(import_module(f"{__name__}.{module}"), name)(spec, graph)
    sparsifier: Sparsifier = made
    return sparsifier
