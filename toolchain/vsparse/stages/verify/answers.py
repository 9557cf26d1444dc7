"""What is found about a batch of samples, and how verdicts are entered into it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vsparse.artifact.certificate import Method, Verdict
from vsparse.bounds.photometric import Pieces
from vsparse.bounds.proof import BoundProof
from vsparse.stages.verify.device_memory import Positions


@dataclass
class BatchAnswer:
    """What was found about one batch; arrays of length n.

    `counterexamples` maps a position to the input and its prediction, `proofs` a position to what proves its searched bound, `pieces` one
    to how many pieces of brightness and contrast prove it.
    """

    verdict: list[Verdict]
    method: list[Method]
    margin_lower: NDArray[np.float64]
    predicted: NDArray[np.int64]
    time_ms: NDArray[np.float64]
    counterexamples: dict[int, tuple[NDArray[np.float32], int]] = field(default_factory=dict)
    proofs: dict[int, BoundProof] = field(default_factory=dict)
    pieces: dict[int, Pieces] = field(default_factory=dict)


@dataclass(frozen=True)
class Settled:
    """What a search decided about one sample: certified with a margin and its proof, or falsified by an input and its prediction."""

    method: Method
    margin: float = -np.inf
    proof: BoundProof | None = None
    counterexample: tuple[NDArray[np.float32], int] | None = None


def enter(answer: BatchAnswer, i: int, settled: Settled | None) -> None:
    """Enters what a search decided about a sample into the answer to its batch."""
    if settled is None:
        return
    if settled.counterexample is not None:
        falsify(answer, i, settled.method, *settled.counterexample)
    elif settled.proof is not None and settled.margin > 0:  # not where it is NaN: an answer may come from a file
        answer.verdict[i], answer.method[i], answer.margin_lower[i] = "certified", settled.method, settled.margin
        answer.proofs[i] = settled.proof


def open_positions(answer: BatchAnswer, positions: Positions) -> Positions:
    """Returns those of the positions that are still open."""
    left: Positions = positions[np.array([answer.verdict[i] == "unknown" for i in positions], dtype=bool)]
    return left


def falsify(answer: BatchAnswer, i: int, method: Method, point: NDArray[np.float32], predicted: int) -> None:
    """Enters a counterexample of a sample, and what it is predicted as, into the answer to its batch."""
    answer.verdict[i], answer.method[i] = "falsified", method
    answer.counterexamples[i] = (point.copy(), predicted)
