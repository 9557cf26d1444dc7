"""All node types, family by family: what `vsparse.graph` exports of the operators. Each family lists its own in `__all__`."""

from vsparse.graph.core import Node as Node
from vsparse.graph.core import Unary as Unary
from vsparse.graph.operators.affine import *  # noqa: F403
from vsparse.graph.operators.arithmetic import *  # noqa: F403
from vsparse.graph.operators.move import *  # noqa: F403
from vsparse.graph.operators.moves import *  # noqa: F403
from vsparse.graph.operators.piecewise import *  # noqa: F403
from vsparse.graph.operators.pooling import *  # noqa: F403
from vsparse.graph.operators.quantised import *  # noqa: F403
from vsparse.graph.operators.reshape import *  # noqa: F403
from vsparse.graph.operators.rows import *  # noqa: F403
from vsparse.graph.operators.sigmoidal import *  # noqa: F403
from vsparse.graph.operators.slices import *  # noqa: F403
