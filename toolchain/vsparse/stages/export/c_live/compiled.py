"""A compiled network whose live certificate is called: what tests and benchmarks execute."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from vsparse.c_prefix import DEFAULT_PREFIX
from vsparse.stages.export.c_live.simulation import Verdicts
from vsparse.stages.export.c_source.compile import CompiledModel


class _Verdict(ctypes.Structure):
    _fields_ = (("label", ctypes.c_int), ("certified", ctypes.c_int), ("margin", ctypes.c_float))


class CompiledLive:
    """The functions `PREFIX_certify` and `PREFIX_radius` of a compiled model.c."""

    def __init__(self, model: CompiledModel, prefix: str = DEFAULT_PREFIX) -> None:
        """Takes them of a model that stays open as long as they are called."""
        pointer = ctypes.POINTER(ctypes.c_float)
        self._certify = getattr(model.library, f"{prefix}_certify")
        self._certify.argtypes = (pointer, ctypes.c_float, ctypes.POINTER(_Verdict))
        self._budget = getattr(model.library, f"{prefix}_certify_budget", None)
        if self._budget is not None:
            self._budget.argtypes = (pointer, ctypes.c_float, ctypes.c_int, ctypes.POINTER(_Verdict))
        self._radius = getattr(model.library, f"{prefix}_radius")
        self._radius.argtypes, self._radius.restype = (pointer,), ctypes.c_float

    def certify(self, inputs: NDArray[np.float32], epsilon: float, budget: int = 0) -> Verdicts:
        """Returns the verdicts on inputs [n, …], one after the other; with a budget, those of both tiers."""
        found = [self._one(row, epsilon, budget) for row in _rows(inputs)]
        label, certified, margin = ([getattr(one, name) for one in found] for name, _ in _Verdict._fields_)
        return Verdicts(np.array(label, np.int64), np.array(certified, np.bool_), np.array(margin, np.float32))

    def radius(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the radius [n] of each input."""
        return np.array([self._radius(_pointer(row)) for row in _rows(inputs)], np.float32)

    def _one(self, row: NDArray[np.float32], epsilon: float, budget: int) -> _Verdict:
        verdict = _Verdict()
        if budget > 0:
            assert self._budget is not None, "the C has no second tier"
            assert self._budget(_pointer(row), epsilon, budget, ctypes.byref(verdict)) == 0
            return verdict
        assert self._certify(_pointer(row), epsilon, ctypes.byref(verdict)) == 0
        return verdict


def _rows(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(inputs, np.float32).reshape(len(inputs), -1)


def _pointer(row: NDArray[np.float32]) -> ctypes._Pointer[ctypes.c_float]:
    return row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
