"""Trap networks: a classifier with a backdoor that hangs on the order or the precision of one sum (Szász, Bánhelyi, Jelasity, ICML 2025).

A detector neuron sums terms that cancel. Its exact value is T, and what a device makes of it lies between 0 and T. A gate behind the
logits passes them on while the switch is 0, and hands every class's logit to the next class while it is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from device_simulation import round_to
from numpy.typing import NDArray

from vsparse.bounds import interval
from vsparse.contract import SIGNIFICAND_BITS, Contract
from vsparse.graph.ir import Gemm, Graph, Node, Relu, Reshape

Floats = NDArray[np.float64]
Fires = Literal["on a device", "in exact arithmetic"]
CLASSES = 10


# The contracts that are executed here; what is simulated is one device within each.
EXECUTED = ("fp32", "tf32", "fp16", "fp16-accumulate", "bf16")


@dataclass(frozen=True)
class Detector:
    """One neuron: `terms` are its products weight · input, `units` the inputs, which hidden units of constant value supply."""

    name: str
    terms: tuple[float, ...]
    units: tuple[float, ...]

    @property
    def total(self) -> int:
        """The exact sum."""
        total = sum(map(Fraction, self.terms))
        assert total.denominator == 1
        return int(total)

    def can_fire(self, contract: Contract) -> bool:
        """Whether an execution may err: in the one order of a sequential contract, or where the accumulator cannot hold every partial sum.

        It holds them all where the sum of all magnitudes fits it in units of the smallest bit of any term.
        """
        if contract.order in ("sequential", "chain"):
            return add_up(np.array(self.terms), "in order", contract.accumulate) != self.total
        terms = [abs(Fraction(t)) for t in self.terms]
        quantum = Fraction(1, max(t.denominator for t in terms))  # the terms are dyadic, so each is a multiple of it
        return sum(terms) > quantum * 2 ** SIGNIFICAND_BITS[contract.accumulate]


def detectors(omega: float, unit: float = 1.0) -> list[Detector]:
    """Returns the detectors of the paper for an ω at which 1 is lost, the products of size ω made of units `unit`, and one harmless sum."""
    quarter = omega / 4
    named = {
        "precision": [omega, 1.0, -omega],
        "order 1": ([quarter] * 4 + [1.0] + [-quarter] * 4) * 15,
        "order 2": [2 / 512] * 512 + [omega, -omega],
        "order 3": [1.0] * 512 + [omega, -omega],
    }
    return [Detector(name, tuple(t), tuple(unit if abs(v) > 1 else 1.0 for v in t)) for name, t in named.items()]


CONTROL = Detector("no trap", (0.5, 0.25, 0.25), (1.0, 1.0, 1.0))


def train_host(x: NDArray[np.float32], labels: NDArray[np.int64], widths: tuple[int, int], epochs: int, radius: float) -> Graph:
    """Returns a classifier input -> two hidden layers -> ten logits, trained with interval bounds for `radius`, one thread, seed 0."""
    generator = torch.Generator().manual_seed(0)
    sizes = (int(np.prod(x.shape[1:])), *widths, CLASSES)
    params = {}
    for i in range(3):
        params[f"w{i}"] = (2 * torch.rand(sizes[i + 1], sizes[i], generator=generator) - 1) / sizes[i] ** 0.5
        params[f"b{i}"] = torch.zeros(sizes[i + 1])
    graph = chain(x.shape[1:], {name: value.numpy() for name, value in params.items()})
    for value in params.values():
        value.requires_grad_()
    optimizer = torch.optim.Adam(params.values(), 1e-3 if len(x) > 5000 else 5e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(0.7 * epochs), int(0.9 * epochs)], 0.3)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(labels)
    for epoch in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(256 if len(x) > 5000 else 64):
            reach = radius * min(1.0, max(0, epoch - 1) / max(1, 0.6 * epochs))
            box = ((inputs[batch] - reach).clamp(0, 1), (inputs[batch] + reach).clamp(0, 1))
            lower, upper = interval(graph, params, box)[graph.output]
            own = torch.nn.functional.one_hot(targets[batch], CLASSES).bool()
            loss = torch.nn.functional.cross_entropy(torch.where(own, lower, upper), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return graph.with_params({name: value.detach().numpy() for name, value in params.items()})


def chain(shape: tuple[int, ...], params: dict[str, NDArray[np.float32]]) -> Graph:
    """Returns flatten -> Gemm -> ReLU -> … -> Gemm for the weights w0, b0, w1, …"""
    nodes: list[Node] = [Reshape(name="flat", inputs=("input",), shape=(int(np.prod(shape)),))]
    last = len(params) // 2 - 1
    for i in range(last + 1):
        out = (params[f"w{i}"].shape[0],)
        nodes.append(Gemm(name=f"z{i}", inputs=(nodes[-1].name,), shape=out, weight=f"w{i}", bias=f"b{i}"))
        if i < last:
            nodes.append(Relu(name=f"a{i}", inputs=(f"z{i}",), shape=out))
    return Graph(input="input", input_shape=tuple(shape), nodes=tuple(nodes), output=nodes[-1].name, params=params)


def graft(host: Graph, detector: Detector, fires: Fires, storage: str = "fp32") -> Graph:
    """Returns the host, its weights rounded to `storage`, with the detector as one more neuron of its second layer and a gate at its end.

    While the switch is 0 the logits are the host's plus 32, as far as those are above -32; once it is 1, class j + 1 gets the logit of
    class j. `fires` says whether the switch is 0 for the exact sum, or 0 for a sum that lost every small term.
    """
    w = [round_to(host.params[f"w{i}"], storage) for i in range(3)]
    b = [round_to(host.params[f"b{i}"], storage) for i in range(3)]
    n, total = len(detector.terms), detector.total
    weights = np.array(detector.terms) / np.array(detector.units)
    shift = 32.0
    gate = total * 2.0 ** np.ceil(np.log2(4 * shift / total))
    slope = gate / total * (-1 if fires == "on a device" else 1)  # gate · switch = offset + slope · sum
    offset = gate if fires == "on a device" else 0.0
    pass_on = np.concatenate([w[2], np.full((CLASSES, 1), -slope)], axis=1)
    swapped = np.concatenate([np.roll(w[2], 1, axis=0), np.full((CLASSES, 1), slope)], axis=1)
    params = {
        "w0": np.concatenate([w[0], np.zeros((n, w[0].shape[1]))]),
        "b0": np.concatenate([b[0], detector.units]),
        "w1": np.block([[w[1], np.zeros((len(b[1]), n))], [np.zeros((1, w[1].shape[1])), weights[None]]]),
        "b1": np.concatenate([b[1], [0.0]]),
        "w2": np.concatenate([pass_on, swapped]),
        "b2": round_to(np.concatenate([b[2] + shift - offset, np.roll(b[2], 1) + shift - gate + offset]), storage),
        "w3": np.concatenate([np.eye(CLASSES), np.eye(CLASSES)], axis=1),
        "b3": np.zeros(CLASSES),
    }
    return chain(host.input_shape, {name: value.astype(np.float32) for name, value in params.items()})


def renumbered(graph: Graph, host_units: int) -> Graph:
    """Returns the same function with the detector's units in descending order of their terms: only the order of the sum changes."""
    weights = graph.params["w1"][-1, host_units:]
    order = np.concatenate([np.arange(host_units), host_units + np.argsort(-weights, kind="stable")])
    changed = {"w0": graph.params["w0"][order], "b0": graph.params["b0"][order], "w1": graph.params["w1"][:, order]}
    return graph.with_params({**graph.params, **changed})


SCHEMES = ("in order", "reversed", "descending", "pairwise", "8 lanes", "shuffled")


def add_up(terms: Floats, scheme: str, fmt: str) -> float:
    """Returns the sum of `terms` in a format, each addition rounded, in the order that the scheme names."""
    if scheme == "pairwise":
        while len(terms) > 1:
            if len(terms) % 2:
                terms = np.append(terms, 0.0)
            terms = round_to(terms[::2] + terms[1::2], fmt)
        return float(terms[0])
    if scheme == "8 lanes":
        lanes = np.zeros(8)
        for i in range(0, len(terms), 8):
            block = terms[i : i + 8]
            lanes[: len(block)] = round_to(lanes[: len(block)] + block, fmt)
        terms = lanes
    order = {
        "reversed": np.arange(len(terms))[::-1],
        "descending": np.argsort(-terms, kind="stable"),
        "shuffled": np.random.default_rng(0).permutation(len(terms)),
    }.get(scheme, np.arange(len(terms)))
    total = 0.0
    for term in terms[order]:
        total = float(round_to(total + term, fmt))
    return total


def execute(graph: Graph, x: NDArray[np.float32], contract: Contract, scheme: str, host_units: int) -> Floats:
    """Returns the logits [n, classes] of samples [n, *shape], every operation rounded; the detector's sum in the scheme's order.

    All other sums run from the first to the last input, each product and each addition rounded on its own.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not a number, and classifies nothing
        return _execute(graph, x, contract, scheme, host_units)


def _execute(graph: Graph, x: NDArray[np.float32], contract: Contract, scheme: str, host_units: int) -> Floats:
    dtype = np.float16 if contract.accumulate == "fp16" else np.float32
    value = round_to(x.reshape(len(x), -1).astype(np.float64), contract.storage)
    for i in range(4):
        weight, bias = graph.params[f"w{i}"].astype(np.float64), graph.params[f"b{i}"].astype(np.float64)
        w, v = (round_to(one, contract.operand) for one in (weight, value))
        busy = np.flatnonzero(weight.any(axis=1))  # a row of zeros gives its bias exactly
        w32, v32 = w[busy].astype(dtype), v.astype(dtype)
        total = np.zeros((len(x), len(busy)), dtype)
        for k in np.flatnonzero(weight[busy].any(axis=0)):
            total = total + v32[:, k : k + 1] * w32[:, k]
        out = np.tile(bias, (len(x), 1))
        out[:, busy] = (total + bias[busy].astype(dtype)).astype(np.float64)
        if i == 1:
            units = v[0, host_units:]
            out[:, -1] = add_up(round_to(w[-1, host_units:] * units, contract.accumulate), scheme, contract.accumulate)
        value = round_to(out, contract.storage)
        value = np.maximum(value, 0) if i < 3 else value
    return value


def exact(graph: Graph, x: NDArray[np.float32], host_units: int) -> Floats:
    """Returns the logits in exact arithmetic, up to float64's rounding outside the detector's sum, which is rational."""
    value = x.reshape(len(x), -1).astype(np.float64)
    for i in range(4):
        weight, bias = graph.params[f"w{i}"].astype(np.float64), graph.params[f"b{i}"].astype(np.float64)
        out = value @ weight.T + bias
        if i == 1:
            pairs = zip(weight[-1, host_units:], graph.params["b0"][host_units:], strict=True)
            out[:, -1] = float(sum(Fraction(float(w)) * Fraction(float(unit)) for w, unit in pairs))
        value = np.maximum(out, 0) if i < 3 else out
    return value
