"""Granularities: what is removed as one, how it is scored, and what follows for the parameters."""

from vsparse.graph.ir import Graph
from vsparse.recipe import Train
from vsparse.stages.train.granularity.block import BlockPattern
from vsparse.stages.train.granularity.channel import ChannelPattern
from vsparse.stages.train.granularity.element import ElementPattern
from vsparse.stages.train.granularity.pattern import Pattern
from vsparse.stages.train.granularity.two_four import TwoFourPattern

__all__ = ["Pattern", "make_pattern"]


def make_pattern(spec: Train, graph: Graph) -> Pattern:
    """Returns the granularity that a recipe asks for, on a graph; raises InputError that names the layer when its budget cannot be met."""
    match spec.sparse.granularity:
        case "channel":
            return ChannelPattern(graph, spec)
        case "element":
            return ElementPattern(graph, spec)
        case "block":
            return BlockPattern(graph, spec)
        case "2:4":
            return TwoFourPattern(graph, spec)
