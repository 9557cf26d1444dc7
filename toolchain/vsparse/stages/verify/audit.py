"""The audit: tries to break, on this machine, what the contract and the bounds say about its arithmetic (docs/numerics.md, section 11.1).

Points of certified regions are executed under several settings of the runtime. Logits must lie inside their proved enclosure, and every
readable intermediate value within E of the exact result of its operator on the inputs that the device itself computed. One violation voids
the certificate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.artifact.certificate import Certificate
from vsparse.artifact.checks import AuditRecord
from vsparse.bounds import Box, Region, Rounding, box_of, crown, interval, member, region
from vsparse.bounds.interval import propagate
from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.errors import GateError
from vsparse.perturbation import PerturbationSet
from vsparse.reading.shapes import inferred
from vsparse.stages.verify.attack import Attack, pgd
from vsparse.stages.verify.certify import take_samples
from vsparse.stages.verify.deployed import Deployed, Level, Runtime, predictions, read_model, session_variants
from vsparse.stages.verify.regression import furthest
from vsparse.stages.verify.spaces import BoxSpace, space

RANDOM_POINTS = 6
CORNERS = 4
MAX_SHOWN = 20
NONE = Fraction(0)


@dataclass
class Audit:
    """What an audit did and found. `closest` is the largest fraction of an allowed error E that any intermediate value used."""

    contract: str
    samples: int
    points: int
    executions: int = 0
    sessions: int = 0
    logits_checked: int = 0
    values_checked: int = 0
    closest: float = 0.0
    closest_at: str = ""
    violations: int = 0
    shown: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether there was something to check, and nothing violated."""
        return self.violations == 0 and self.logits_checked > 0

    @property
    def reason(self) -> str:
        """Why it did not pass, in a few words; empty where it did."""
        if self.violations:
            return f"{self.violations} violation(s), the first: {self.shown[0]}"
        return "" if self.logits_checked else "nothing could be checked"

    def violate(self, text: str, count: int = 1) -> None:
        """Records violations."""
        self.violations += count
        if len(self.shown) < MAX_SHOWN:
            self.shown.append(text)

    def record(self) -> AuditRecord:
        """Returns the result as audit.json holds it."""
        return AuditRecord(
            passed=self.passed,
            reason=self.reason,
            contract=self.contract,
            samples=self.samples,
            points=self.points,
            sessions=self.sessions,
            executions=self.executions,
            logits_checked=self.logits_checked,
            values_checked=self.values_checked,
            largest_share=self.closest,
            largest_share_at=self.closest_at,
            violations=self.violations,
            shown=tuple(self.shown),
        )


def audit(onnx_path: Path, dataset: Dataset, certificate: Certificate, samples: int = 16, seed: int = 0) -> Audit:
    """Executes points of the first certified regions (of the first samples where none is certified) and checks them against the bounds.

    Raises GateError when the file is not the one the certificate is about. A certificate under `real` is audited under the contract
    that the runtime executes the file in, since real arithmetic is a claim about no machine; then the predicted labels are not checked.
    """
    model = read_model(onnx_path, certificate.model.file, certificate.property.regression)
    if model.sha256 != certificate.model.sha256:
        raise GateError(f"model {onnx_path} is not the one that was certified (its content has another hash); build the artifact again")
    contract = CONTRACTS[model.executes] if certificate.contract["name"] == "real" else CONTRACTS[certificate.contract["name"]]
    certified = [claim.id for claim in certificate.claims if claim.verdict == "certified"]
    chosen = (certified or [claim.id for claim in certificate.claims])[:samples]
    inputs, labels = take_samples(dataset, model, max(chosen) + 1)
    x, y = inputs[chosen], labels[chosen]
    perturbation = certificate.property
    rounding = Rounding(model.graph, contract)
    with torch.no_grad():
        boxes, logits = enclosure(model, rounding, region(torch.from_numpy(x), perturbation))
    points = region_points(model, x, y, perturbation, chosen, seed)
    result = Audit(contract.name, len(chosen), points.shape[0] * points.shape[1])
    check_labels = bool(certified) and certificate.contract["name"] != "real"
    for level, threads, batch in session_variants(model.levels):
        if batch > 1 and not any_batch(model.data):
            continue
        where = f"{level} optimisation, {threads} thread(s), batch {batch}"
        runtime = Runtime(model.data, level, threads, batch)
        _check_logits(result, runtime, points, logits, y if check_labels else None, where, perturbation.delta)
    exposed, names = expose(model)
    levels: tuple[Level, ...] = tuple(dict.fromkeys((model.levels[0], model.levels[-1])))
    for level in levels:
        runtime = Runtime(exposed, level)
        _check_values(result, model, rounding, runtime, names, points, boxes, level)
    return result


def enclosure(model: Deployed, rounding: Rounding, box: Box | Region) -> tuple[dict[str, Box], Box]:
    """Returns proved boxes of every activation over a region, and of the logits the smaller of the interval and the CROWN ones."""
    boxes = interval(model.graph, rounding.params, box, rounding)
    identity = torch.eye(model.classes, dtype=torch.float64).expand(len(box_of(box)[0]), -1, -1)
    lower, upper = boxes[model.graph.output]
    from_below = crown(model.graph, rounding.params, box, identity, boxes, rounding)
    from_above = -crown(model.graph, rounding.params, box, -identity, boxes, rounding)
    return boxes, (torch.fmax(lower, from_below), torch.fmin(upper, from_above))


def region_points(
    model: Deployed, x: NDArray[np.float32], labels: NDArray[np.int64], perturbation: PerturbationSet, ids: Sequence[int], seed: int
) -> NDArray[np.float32]:
    """Returns float32 points of each region, [n, points, *shape]: the sample, random points, random corners, and points of an attack."""
    rng = np.random.default_rng(seed)
    seeds = [(seed, sample) for sample in ids]
    params = model.graph.tensors(torch.float32)
    there = space(x, perturbation)
    if perturbation.regression:
        delta = float(perturbation.delta)
        attacks = [_attack(*furthest(model.graph, params, x, there, seeds, delta, steps=20, restarts=count)) for count in (1, 3)]
    else:
        attacks = [pgd(model.graph, params, x, there, labels, seeds, steps=20, restarts=count) for count in (1, 3)]
    if not isinstance(there, BoxSpace):
        states = [there.random(seeds, k) for k in range(RANDOM_POINTS + CORNERS)]
        made = [(there.point(state), there.pairs(state)) for state in states] + [(one.inputs, one.pairs) for one in attacks]
        return np.stack([x, *(_members(x, inputs, pairs, perturbation) for inputs, pairs in made)], axis=1)
    lower, upper = there.lower.numpy(), there.upper.numpy()
    points = [x]
    for _ in range(RANDOM_POINTS):
        fraction = rng.random(x.shape, dtype=np.float32)
        points.append(np.clip(lower + fraction * (upper - lower), lower, upper))
    points += [lower, upper]
    points += [np.where(rng.random(x.shape) < 0.5, lower, upper) for _ in range(CORNERS - 2)]
    points += [one.inputs.numpy() for one in attacks]
    return np.stack(points, axis=1).astype(np.float32, copy=False)


def _attack(inputs: Tensor, changes: Tensor, pairs: Tensor) -> Attack:
    return Attack(inputs, -changes, pairs)


def _members(x: NDArray[np.float32], points: Tensor, pairs: Tensor, perturbation: PerturbationSet) -> NDArray[np.float32]:
    """Returns the points [n, *shape], the sample itself in place of one whose membership is not certain."""
    samples = torch.from_numpy(x)
    hints = [(b, c) for b, c in pairs.tolist()]
    sure = [member(point, sample, perturbation, hint) for point, sample, hint in zip(points, samples, hints, strict=True)]
    chosen: NDArray[np.float32] = torch.stack([p if ok else s for p, s, ok in zip(points, samples, sure, strict=True)]).numpy()
    return chosen


def expose(model: Deployed) -> tuple[bytes, dict[str, str]]:
    """Returns the model with every activation that has a tensor of its own as a further output, and the outputs' names by activation."""
    proto = onnx.ModelProto()
    proto.ParseFromString(model.data)
    made = {name for node in proto.graph.node for name in node.output}
    names = {model.graph.output: proto.graph.output[0].name}
    names |= {node.name: node.name for node in model.graph.nodes if node.name in made and node.name != model.graph.output}
    half = onnx.TensorProto.FLOAT16 if model.graph.storage == "fp16" else onnx.TensorProto.FLOAT
    types = inferred(proto, model.file) if model.graph.wide_sums else {}
    for name in list(names)[1:]:
        kind = types[name].tensor_type.elem_type if name in types else half
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, ["batch", *model.graph.shape_of(name)]))
    return proto.SerializeToString(), names


def _check_logits(
    result: Audit,
    runtime: Runtime,
    points: NDArray[np.float32],
    logits: Box,
    labels: NDArray[np.int64] | None,
    where: str,
    delta: Fraction = NONE,
) -> None:
    n, count = points.shape[:2]
    computed = runtime.logits(points.reshape(n * count, *points.shape[2:])).reshape(n, count, -1)
    lower, upper = logits[0].numpy()[:, None], logits[1].numpy()[:, None]
    wide = computed.astype(np.float64)
    # Written so that a NaN, on either side, is outside.
    outside = ~((wide >= lower) & (wide <= upper))
    result.sessions += 1
    result.executions += n * count
    result.logits_checked += wide.size
    if outside.any():
        sample, _, row = np.argwhere(outside)[0]
        result.violate(f"logit {row} of a point of region {sample} is outside its proved enclosure ({where})", int(outside.sum()))
    if labels is not None and delta:
        # The first point of each region is the sample; a difference of two float32 numbers is exact in float64 but for its last bits.
        beyond = ~(np.abs(wide - wide[:, :1]) <= float(delta) * (1 + 2.0**-40))
        if beyond.any():
            result.violate(
                f"the answer in certified region {np.argwhere(beyond)[0][0]} changes by more than delta ({where})", int(beyond.sum())
            )
    elif labels is not None:
        wrong = predictions(computed.reshape(n * count, -1)).reshape(n, count) != labels[:, None]
        if wrong.any():
            result.violate(f"a point of certified region {np.argwhere(wrong)[0][0]} is misclassified ({where})", int(wrong.sum()))


def _check_values(
    result: Audit,
    model: Deployed,
    rounding: Rounding,
    runtime: Runtime,
    names: dict[str, str],
    points: NDArray[np.float32],
    boxes: dict[str, Box],
    level: str,
) -> None:
    """Checks every readable activation against E at the device's own inputs of that operator, and against the region's box."""
    n, count = points.shape[:2]
    flat = points.reshape(n * count, *points.shape[2:])
    values: dict[str, Tensor] = {model.graph.input: torch.from_numpy(flat).double()}
    for name, value in zip(names, runtime.run(flat, list(names.values())), strict=True):
        values[name] = torch.from_numpy(value.reshape(n * count, *model.graph.shape_of(name))).double()
    result.sessions += 1
    result.executions += n * count
    for node in model.graph.nodes:
        if node.name not in values or not all(name in values for name in rounding.reads(node)):
            continue
        seen = {name: (values[name], rounding.read_error(name, values[name])) for name in rounding.reads(node)}
        at = {name: (value - read, value + read) for name, (value, read) in seen.items()}
        exact = propagate(node, rounding.params, [at[name] for name in node.inputs])
        got = values[node.name]
        read = rounding.read_error(node.name, got)
        allowed = rounding.error(node, at, exact) + read
        distance = torch.maximum(got - exact[1], exact[0] - got).clamp(min=0)
        inside = (distance <= allowed) & torch.isfinite(got)
        lower, upper = (end.repeat_interleave(count, dim=0) for end in boxes[node.name])
        within = (got >= lower - read) & (got <= upper + read)
        result.values_checked += got.numel()
        fraction = (
            float((distance / allowed.clamp(min=torch.finfo(torch.float64).tiny)).nan_to_num(nan=torch.inf).max()) if got.numel() else 0.0
        )
        if fraction > result.closest:
            result.closest, result.closest_at = min(fraction, 1e300), node.name
        if not bool(inside.all()):
            result.violate(f'node "{node.name}" differs from the exact value by more than E ({level} optimisation)', int((~inside).sum()))
        if not bool(within.all()):
            result.violate(f'node "{node.name}" leaves its proved interval ({level} optimisation)', int((~within).sum()))


def any_batch(data: bytes) -> bool:
    proto = onnx.ModelProto()
    proto.ParseFromString(data)
    constants = {tensor.name for tensor in proto.graph.initializer}
    first = next(value for value in proto.graph.input if value.name not in constants)
    return not first.type.tensor_type.shape.dim[0].HasField("dim_value")
