"""The samples that claims are about: those that the artifact holds, those of a data file, and what the network answers to them."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsparse_check.bounds import Bounds
from vsparse_check.certificate import read_arrays
from vsparse_check.execution import elements
from vsparse_check.limits import Budget
from vsparse_check.model import ROWS, Network
from vsparse_check.refusal import Refused, need, reading
from vsparse_check.region import Property, Region
from vsparse_check.rounding import CONTRACTS, Rounding

Inputs = dict[int, NDArray[np.float32]]
COUNTEREXAMPLES = {"ids": "<i8", "inputs": "<f4", "originals": "<f4", "labels": "<i8", "predictions": "<i8"}
AT_ONCE = 256


class Data(NamedTuple):
    """Samples that a caller gives: inputs float32 [n, …], labels int64 [n]; the first of them should be those of a certificate."""

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]


def read_data(path: Path) -> Data:
    """Returns the samples of an .npz file with the arrays `inputs` (float32 [n, …]) and `labels` (int64 [n])."""
    arrays = read_arrays(path, {"inputs": "<f4", "labels": "<i8"})
    inputs, labels = arrays["inputs"], arrays["labels"]
    need(labels.ndim == 1 <= inputs.ndim and len(inputs) == len(labels) > 0, f"{path.name} has other than one label for each input")
    return Data(inputs, labels)


def samples_sha256(data: Data, count: int, shape: tuple[int, ...]) -> str:
    """Returns the hash of the first samples, in the shape that a network takes them, that certificates state as data.inputs_sha256."""
    inputs, labels = data.inputs[:count].reshape(-1, *shape), data.labels[:count]
    digest = hashlib.sha256(f"{inputs.shape} {labels.shape}\n".encode())
    digest.update(np.ascontiguousarray(inputs, dtype="<f4").tobytes())
    digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    return digest.hexdigest()


def read_inputs(path: Path, size: int, budget: Budget) -> Inputs:
    """Returns the flat float32 inputs by sample id."""
    arrays = read_arrays(path, {"ids": "<i8", "inputs": "<f4"}, budget=budget)
    with reading(path.name):
        return dict(zip(arrays["ids"].tolist(), arrays["inputs"].reshape(len(arrays["ids"]), size), strict=True))


def read_counterexamples(path: Path, stated: str, size: int, budget: Budget) -> dict[str, Any]:
    """Returns the arrays of counterexamples.npz, inputs flat; {} where it holds none. Refused unless their hash is the one stated."""
    digest, arrays = hashlib.sha256(), dict[str, Any]()
    if path.stat().st_size > 22:  # the length of an archive without members
        arrays = read_arrays(path, COUNTEREXAMPLES, budget=budget)
        for name, value in arrays.items():
            digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
            digest.update(value.tobytes())
    need(digest.hexdigest() == stated, f"{path.name} does not hold the arrays that the certificate is about")
    with reading(path.name):
        for name in [name for name in ("inputs", "originals") if name in arrays]:
            arrays[name] = arrays[name].reshape(len(arrays["ids"]), size)
        need(len({len(value) for value in arrays.values()}) <= 1, f"{path.name}: its arrays do not belong together")
    return arrays


def at_once(network: Network) -> int:
    """Returns how many samples fit side by side: boxes, costs and an execution of each, and a few rows for each pair of classes."""
    each = 8 * (elements(network) + 4 * network.largest + ROWS * network.size_of_output**2)
    return int(max(1, min(AT_ONCE, network.budget.memory // (8 * each))))


class Answers:
    """What the network answers to single points in every execution that a contract allows."""

    def __init__(self, network: Network, contract: dict[str, str]) -> None:
        """Takes the contract of a certificate; predictions under `real` are those of a runtime all the same, so of fp32 or int8."""
        rules = CONTRACTS["int8" if network.grids else "fp32"] if contract["storage"] == "real" else contract
        self.network, self.rounding = network, Rounding(network, rules)
        farthest = float(np.finfo(np.float32).max)
        self.nothing = Property("linf", Fraction(0), Fraction(0), Fraction(0), (-farthest, farthest))

    def predicted(self, points: NDArray[np.float32]) -> NDArray[np.int64]:
        """Returns the class of each point [n, size], −1 where rounding leaves it open; Refused where the bounds contradict themselves."""
        found, step = [np.zeros(0, dtype=np.int64)], at_once(self.network)
        for start in range(0, len(points), step):
            some = points[start : start + step].astype(np.float64)
            lower, upper = Bounds(self.network, self.rounding, Region(self.nothing, some), refine=False).boxes[self.network.output]
            best = lower.argmax(axis=1)
            others = upper.copy()
            others[np.arange(len(some)), best] = -np.inf
            found.append(np.where(lower.max(axis=1) > others.max(axis=1), best, -1))
        return np.concatenate(found)

    def broken(self, xs: NDArray[np.float32], labels: list[int], allowed: Property) -> int:
        """Returns how many samples of an l∞ ball one step along the sign of the gradient, from the sample to a corner, certainly breaks."""
        corners, radius = xs.copy(), float(allowed.epsilon) * (1 - 2.0**-20)
        for place, (x, label) in enumerate(zip(xs.astype(np.float64), labels, strict=True)):
            bounds = Bounds(self.network, self.rounding, Region(self.nothing, x[None]), refine=False)
            logits = bounds.executed.values[self.network.output][0].copy()
            of_label, logits[label] = np.eye(len(logits))[label], -np.inf
            gradient = bounds.slopes_at_input((of_label - np.eye(len(logits))[int(logits.argmax())])[None])[0]
            corners[place] = np.clip(x - radius * np.sign(gradient), *allowed.clip)
        predicted = self.predicted(corners)
        return int(((predicted >= 0) & (predicted != np.array(labels))).sum())


def check_counterexamples(found: dict[str, Any], claims: dict[int, dict[str, Any]], allowed: Property, answers: Answers) -> Inputs:
    """Returns the samples of the falsified claims; Refused where a counterexample is none, or is about another sample.

    A point of an l∞ ball is compared exactly; of other regions only what lies far outside of the box around them is refused.
    """
    originals = dict[int, NDArray[np.float32]]()
    if not found:
        return originals
    predicted = answers.predicted(found["inputs"])
    region = Region(allowed, found["originals"].astype(np.float64))
    for place, number in enumerate(found["ids"].tolist()):
        claim, x, point = claims.get(number), found["originals"][place], found["inputs"][place]
        need(claim is not None and claim["verdict"] == "falsified", f"counterexamples.npz is about sample {number}, which is not falsified")
        assert claim is not None
        same = hashlib.sha256(x.tobytes()).hexdigest() == claim["input_sha256"] and found["labels"][place] == claim["label"]
        need(same, f"counterexamples.npz holds another input or label of sample {number} than the claim is about")
        lower, upper = region.box[0][place], region.box[1][place]
        inside = ((point >= lower) & (point <= upper)).all()
        if inside and region.is_box:
            inside = all(abs(Fraction(float(p)) - Fraction(float(v))) <= allowed.epsilon for p, v in zip(point, x, strict=True))
        need(inside, f"the counterexample of sample {number} does not lie in its region")
        if predicted[place] == claim["label"]:
            raise Refused(f"the counterexample of sample {number} is classified as its label, {claim['label']}")
        originals[number] = x
    return originals


def size_of(network: Network) -> int:
    """Returns the number of elements of one input."""
    return prod(network.shape)
