"""The graph and its node types under one name."""

from vsparse.graph.core import Graph as Graph
from vsparse.graph.core import QuantisedParameter as QuantisedParameter
from vsparse.graph.core import Shape as Shape
from vsparse.graph.operators.nodes import *  # noqa: F403
