"""The roundoffs of one contract, and of float64 in this checker.

docs/numerics.md, sections 2 and 3.1.

u is the unit roundoff of a format, η its smallest normal number, γ_n = n·u / (1 − n·u). A product
of n factors 1 + δ with |δ| <= u is 1 + θ with |θ| <= γ_n (Higham, *Accuracy and Stability of
Numerical Algorithms*, 2nd ed., lemma 3.1), so n roundings in a row cost at most γ_n of each term.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vsparse_check.arrays import FloatArray
from vsparse_check.contracts import FORMATS, SIGNIFICAND


def gamma(n: FloatArray | float, u: float) -> FloatArray:
    """Returns γ_n = n·u / (1 − n·u), infinite where n·u is near 1 or above."""
    nu = np.asarray(n) * u
    return np.asarray(np.where(nu < 0.99, nu / (1 - nu), np.inf))


def any_order(n: FloatArray | float, u: float) -> FloatArray:
    """Returns n·u·(1 + u), what n terms err by in any order, each step rounded to nearest.

    Jeannerod and Rump, SIAM J. Matrix Anal. Appl. 34(2), 2013; docs/numerics.md, section 8.2.
    """
    return np.asarray(np.asarray(n) * (u * (1 + u)))


class ContractArithmetic:
    """The roundoffs that the operators of one network are charged under one contract."""

    def __init__(self, contract: Mapping[str, str], quantised: bool, terms: float) -> None:
        """Takes whether the network is quantised, and how many terms any of its bounds adds up.

        Three formats: of stored values (u, η), of what products read (operand), and of the running
        sum (accumulate).

        - Operands are not rounded where their format holds what is stored. tf32 counts twice, as
          hardware may truncate to it instead of rounding.
        - Matrix units of narrow formats align a block of products to the largest and truncate: a
          term errs by up to 2u of it, and a block of k terms has k + 1 of them, so 4u for each term
          cover every k (docs/numerics.md, section 3.1).
        - g is γ_K of float64, K above the number of all terms that any bound adds up, so that one
          factor covers every sum formed here (docs/checker.md, section 5).
        """
        storage, operand, accumulate = (
            FORMATS[contract[key]] for key in ("storage", "operand", "accumulate")
        )
        self.least_normal = storage.eta
        if contract["subnormals"] == "gradual" and contract["order"] == "chain":
            storage, operand, accumulate = (
                one._replace(eta=one.subnormal) for one in (storage, operand, accumulate)
            )
        self.storage = contract["storage"]
        self.quantised = quantised
        self.sequential = contract["order"] == "sequential"
        self.chain = contract["order"] == "chain"
        # Of stored values.
        self.u, self.eta, self.greatest = storage.u, storage.eta, storage.greatest
        # Of operands, where they are converted.
        self.eta_operand = operand.eta
        twice = 2 if contract["operand"] == "tf32" else 1
        self.u_operand = 0.0 if operand.u <= storage.u else operand.u * twice
        # Of running sums of numbers, and of sums of products.
        self.u_accumulate, self.eta_sum = accumulate.u, accumulate.eta
        truncated = operand.u > accumulate.u
        self.u_sum = accumulate.u * (4 if truncated else 1)
        # Whether partial sums are rounded to nearest in the format of all that is stored.
        self.nearest = (
            contract["accumulate"] == contract["operand"] == contract["storage"] == "fp16"
        )
        # Whether a sum is rounded once more when it is stored.
        self.stored_again = contract["storage"] != contract["accumulate"]
        self.limit = min(storage.greatest, operand.greatest, accumulate.greatest)
        self.g = terms * 2.0**-53 / (1 - terms * 2.0**-53) * 1.01

    def finite(self, error: FloatArray, reach: FloatArray) -> FloatArray:
        """Returns the error, infinite where |value| + error may overflow, with 2 % to spare.

        docs/numerics.md, section 3.1: every bound that depends on such a value proves nothing.
        """
        return np.asarray(np.where((reach + error) * 1.02 < self.limit, error, np.inf))

    def growth(self, n: FloatArray) -> FloatArray:
        """Returns what a sum of products with n roundings errs by, relative to its magnitudes."""
        return any_order(n, self.u_sum) if self.nearest else gamma(n, self.u_sum)

    def once(self, magnitude: FloatArray) -> FloatArray:
        """Returns the error of one rounding to storage, for |exact or executed| <= magnitude.

        u·|exact| bounds it, and so does u/(1 − u)·|executed| <= u·(1 + 2u)·|executed|.
        """
        return np.asarray(self.u * (1 + 2 * self.u) * magnitude)

    def constant_error(self, value: float) -> float:
        """Returns how far a constant may be from the storage format's number for it.

        0 where the format holds it, infinite beyond the format (docs/numerics.md, section 3.1).
        """
        if not self.u or value == 0:
            return 0.0
        if abs(value) >= self.greatest:
            return np.inf
        if abs(value) < self.least_normal:
            return self.eta
        significand = np.frexp(abs(value))[0] * 2.0 ** SIGNIFICAND[self.storage]
        return 0.0 if significand == np.floor(significand) else abs(value) * self.u
