"""What compression knows of each operator, one module for each family; importing this package fills the table of `rules`.

Quantised networks are not compressed: their family has no module here, and so is refused.
"""

from vsparse.stages.compress.operators import affine, arithmetic, moves, piecewise, pooling, sigmoidal

__all__ = ["FAMILIES"]

FAMILIES = (affine, pooling, arithmetic, moves, piecewise, sigmoidal)
