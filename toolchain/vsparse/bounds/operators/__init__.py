"""The rules of all operators, one module for each family; importing this package puts them into the table of `vsparse.bounds.rules`."""

from vsparse.bounds.operators import affine, arithmetic, moves, piecewise, pooling, quantised, sigmoidal

__all__ = ["FAMILIES"]

FAMILIES = (affine, pooling, arithmetic, moves, piecewise, sigmoidal, quantised)
