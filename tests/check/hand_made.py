"""Networks of two inputs and a few ReLUs, their exact margins in rational arithmetic, a small prover, and artifacts written by hand.

Nothing here is of the toolchain or of the checker, except the checker's two hashes: what it confirms is judged by other means.
"""

from __future__ import annotations

import copy
import hashlib
import io
import itertools
import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vsparse_check.artifact import content_sha256
from vsparse_check.certificate import digest
from vsparse_check.contracts import CONTRACTS

CLASSES = 3
CERTIFICATE, INPUTS, PROOFS, MODEL = (
    "certificate/certificate.json",
    "certificate/inputs.npz",
    "certificate/proofs.npz",
    "model/model.fp32.onnx",
)


@dataclass
class Tiny:
    """A network 2 → h ReLUs → 3 whose numbers are multiples of 1/16."""

    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator, hidden: int = 3) -> Tiny:
        def draw(*shape):
            return (rng.integers(-24, 25, shape) / 16).astype(np.float32)

        return cls(draw(hidden, 2), draw(hidden) / 2, draw(CLASSES, hidden), draw(CLASSES) / 2)

    def model(self) -> onnx.ModelProto:
        """Returns Gemm, Relu, Gemm as an ONNX file."""
        nodes = [
            helper.make_node("Gemm", ["input", "w1", "b1"], ["z"], transB=1),
            helper.make_node("Relu", ["z"], ["a"]),
            helper.make_node("Gemm", ["a", "w2", "b2"], ["logits"], transB=1),
        ]
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 2])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
            [numpy_helper.from_array(getattr(self, name), name) for name in ("w1", "b1", "w2", "b2")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def logits(self, point) -> list[Fraction]:
        """Returns the exact logits of a rational point."""
        w1, b1, w2, b2 = (
            [[Fraction(float(v)) for v in np.atleast_1d(row)] for row in part] for part in (self.w1, self.b1, self.w2, self.b2)
        )
        hidden = [max(Fraction(0), sum((w * p for w, p in zip(row, point, strict=True)), b[0])) for row, b in zip(w1, b1, strict=True)]
        return [sum((w * a for w, a in zip(row, hidden, strict=True)), b[0]) for row, b in zip(w2, b2, strict=True)]

    def exact_margin(self, x, label: int, epsilon: Fraction, clip=(0, 1)) -> Fraction:
        """Returns the least z_label − z_j over the clipped l∞ ball, exactly.

        The margin is linear on each cell that the lines of the ReLUs cut out of the box, so its least value is at a crossing of two lines.
        """
        ends = [(max(Fraction(clip[0]), Fraction(float(v)) - epsilon), min(Fraction(clip[1]), Fraction(float(v)) + epsilon)) for v in x]
        lines = [((Fraction(int(k == 0)), Fraction(int(k == 1))), -end) for k in (0, 1) for end in ends[k]]
        lines += [((Fraction(float(w[0])), Fraction(float(w[1]))), Fraction(float(b))) for w, b in zip(self.w1, self.b1, strict=True)]
        found = []
        for ((a, b), c), ((d, e), f) in itertools.combinations(lines, 2):
            scale = a * e - b * d
            if scale:
                point = ((b * f - c * e) / scale, (c * d - a * f) / scale)
                if all(low <= p <= high for p, (low, high) in zip(point, ends, strict=True)):
                    z = self.logits(point)
                    found.append(min(z[label] - other for j, other in enumerate(z) if j != label))
        return min(found)


@dataclass
class HandProof:
    """One proof as lists: units, slope sets, lemmas (unit, side, set), and trees (class, nodes, leaf sets, multipliers)."""

    units: list[int] = field(default_factory=list)
    slopes: list[list[int]] = field(default_factory=list)
    lemmas: list[tuple[int, int, int]] = field(default_factory=list)
    trees: list[tuple[int, list[int], list[int], list[float]]] = field(default_factory=list)


def arrays_of(proofs: dict[int, HandProof]) -> dict[str, np.ndarray]:
    """Returns the arrays of proofs.npz, from docs/proofs.md."""
    order = [proofs[key] for key in sorted(proofs)]
    trees = [tree for proof in order for tree in proof.trees]

    def starts(lengths):
        return np.cumsum([0, *lengths]).astype(np.int64)

    return {
        "version": np.array([1], dtype=np.int64),
        "ids": np.array(sorted(proofs), dtype=np.int64),
        "unit_start": starts(len(proof.units) for proof in order),
        "units": np.array([unit for proof in order for unit in proof.units], dtype=np.int32),
        "set_start": starts(len(proof.slopes) for proof in order),
        "slopes": np.array([q for proof in order for one in proof.slopes for q in one], dtype=np.uint8),
        "lemma_start": starts(len(proof.lemmas) for proof in order),
        **{
            name: np.array([lemma[k] for proof in order for lemma in proof.lemmas], dtype=dtype)
            for k, (name, dtype) in enumerate([("lemma_unit", np.int32), ("lemma_side", np.uint8), ("lemma_set", np.int32)])
        },
        "tree_start": starts(len(proof.trees) for proof in order),
        "tree_class": np.array([tree[0] for tree in trees], dtype=np.int32),
        "node_start": starts(len(tree[1]) for tree in trees),
        "node_unit": np.array([node for tree in trees for node in tree[1]], dtype=np.int32),
        "leaf_set": np.array([one for tree in trees for one in tree[2]], dtype=np.int32),
        "multipliers": np.array([beta for tree in trees for beta in tree[3]], dtype=np.float32),
    }


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    """Returns the bytes of an .npz."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def prove(net: Tiny, x, label: int, epsilon: float) -> tuple[HandProof, float]:
    """Returns a proof that splits every ReLU of the network that may have either sign, and what it proves in real arithmetic.

    The multipliers of a leaf are found by projected supergradient ascent: the dual is concave, any point of it is a bound.
    """
    lower, upper = np.clip(np.array(x) - epsilon, 0, 1), np.clip(np.array(x) + epsilon, 0, 1)
    w1, b1 = net.w1.astype(float), net.b1.astype(float)
    z_low = np.minimum(w1, 0) @ upper + np.maximum(w1, 0) @ lower + b1
    z_high = np.maximum(w1, 0) @ upper + np.minimum(w1, 0) @ lower + b1
    split = [int(k) for k in np.flatnonzero((z_low < 0) & (z_high > 0))]
    proof, least = HandProof(units=split, slopes=[[128] * len(split)], lemmas=[(k, side, 0) for k in split for side in (0, 1)]), np.inf
    for j in range(CLASSES):
        if j == label:
            continue
        row = (net.w2[label] - net.w2[j]).astype(float)
        nodes, sets, multipliers, worst = [], [], [], np.inf
        for signs in itertools.product((-1, 1), repeat=len(split)):
            active = (z_low >= 0).astype(float)
            active[split] = [float(sign > 0) for sign in signs]
            beta, best, best_beta = np.zeros(len(split)), -np.inf, np.zeros(len(split))
            for step in range(60):
                coefficients = row * active
                coefficients[split] -= beta * signs
                a = coefficients @ w1
                point = np.where(a > 0, lower, upper)
                value = a @ point + coefficients @ b1 + float(net.b2[label] - net.b2[j])
                if value > best:
                    best, best_beta = value, beta.copy()
                beta = np.maximum(0, beta - 0.5 / (1 + step / 10) * np.array(signs) * (w1 @ point + b1)[split])
            worst = min(worst, best)
            sets.append(0 if sum(signs) > 0 else -1)
            multipliers += [float(np.float32(value)) for value in best_beta]

        def preorder(depth, split=split):
            return [-1] if depth == len(split) else [split[depth], *preorder(depth + 1), *preorder(depth + 1)]

        nodes = preorder(0)
        proof.trees.append((j, nodes, sets, multipliers))
        least = min(least, worst)
    return proof, float(least)


def write(folder: Path, net: Tiny, samples: dict[int, tuple], proofs: dict[int, HandProof], epsilon: str, rules: str = "fp32") -> Path:
    """Writes an artifact: `samples` maps an id to (x, label, method, margin)."""
    for part in ("model", "certificate"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    model = net.model()
    (folder / MODEL).write_bytes(model.SerializeToString())
    ids = sorted(samples)
    inputs = np.array([samples[key][0] for key in ids], dtype=np.float32)
    (folder / INPUTS).write_bytes(packed({"ids": np.array(ids, dtype=np.int64), "inputs": inputs}))
    shared = {
        "model": {"file": MODEL, "sha256": content_sha256(model)},
        "property": {"norm": "linf", "epsilon": epsilon, "clip": [0.0, 1.0]},
    }
    claims = [
        {
            "id": key,
            "input_sha256": hashlib.sha256(x.tobytes()).hexdigest(),
            "label": samples[key][1],
            "predicted": samples[key][1],
            **copy.deepcopy(shared),
            "contract": rules,
            "verdict": "certified",
            "margin_lower": samples[key][3],
            "method": samples[key][2],
            "time_ms": 1.0,
            "proof": "proofs.npz" if key in proofs else "derivable",
        }
        for key, x in zip(ids, inputs, strict=True)
    ]
    content = {"schema_version": 1, **shared, "contract": CONTRACTS[rules], "void": "", "claims": claims}
    content |= {"data": {"classes": [str(j) for j in range(CLASSES)]}, "proofs_sha256": None}
    if proofs:
        (folder / PROOFS).write_bytes(packed(arrays_of(proofs)))
    return forge(folder, content)


def forge(folder: Path, content: dict) -> Path:
    """Writes a certificate and makes everything around it fit, as a forger who knows the format would."""
    claims = content["claims"]
    counts = {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in ("certified", "falsified", "unknown")}
    rows = []
    for label in range(CLASSES):
        own = [claim for claim in claims if claim["label"] == label]
        correct = [claim for claim in own if claim["predicted"] == label]
        attacked, certified = (sum(test(claim["verdict"]) for claim in correct) for test in ("falsified".__ne__, "certified".__eq__))
        rows.append({"samples": len(own), "correct": len(correct), "attacked": attacked, "certified": certified})
    correct, attacked, certified = (sum(row[key] for row in rows) for key in ("correct", "attacked", "certified"))
    n = max(1, len(claims))
    shares = {"clean_accuracy": correct / n, "attacked_accuracy": attacked / n, "certified_accuracy": certified / n}
    content["summary"] = {"samples": len(claims), "correct": correct, **counts, **shares, "classes": rows}
    if (folder / PROOFS).exists():
        content["proofs_sha256"] = hashlib.sha256((folder / PROOFS).read_bytes()).hexdigest()
    content["certificate_sha256"] = digest(content)
    (folder / CERTIFICATE).write_text(json.dumps(content))
    return sign(folder)


def sign(folder: Path) -> Path:
    """Writes the manifest of what is there."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "manifest.json").write_text(json.dumps({"files": hashes}))
    return folder


def claimed(folder: Path, seed: int, epsilon: str = "1/4", hidden: int = 3, wanted: int = 3, rules: str = "fp32") -> tuple[Path, Tiny]:
    """Writes an artifact whose claims need their proofs: CROWN alone misses each of them by far."""
    rng = np.random.default_rng(seed)
    while True:
        net = Tiny.random(rng, hidden)
        samples, proofs = {}, {}
        for key in range(40):
            x = (rng.integers(0, 17, 2) / 16).astype(np.float32)
            z = net.logits([Fraction(float(v)) for v in x])
            label = max(range(CLASSES), key=lambda j, z=z: z[j])
            if net.exact_margin(x, label, Fraction(epsilon)) > Fraction(1, 20):
                proof, least = prove(net, x, label, float(Fraction(epsilon)))
                if least > 0.02 and len(proof.units) >= 2 and _by_crown(net, x, label, float(Fraction(epsilon))) < least - 0.02:
                    samples[key], proofs[key] = (x, label, "branch-and-bound", least - 2e-5), proof
            if len(samples) == wanted:
                return write(folder, net, samples, proofs, epsilon, rules), net


def _by_crown(net: Tiny, x, label: int, epsilon: float) -> float:
    """Returns what linear bounds without a search prove: one pass with the usual slopes over exact boxes of the ReLUs' inputs."""
    lower, upper = np.clip(x - epsilon, 0, 1), np.clip(x + epsilon, 0, 1)
    centre, radius = (lower + upper) / 2, (upper - lower) / 2
    z, reach = net.w1 @ centre + net.b1, np.abs(net.w1) @ radius
    low, high = z - reach, z + reach
    found = []
    for j in range(CLASSES):
        if j != label:
            row, constant = (net.w2[label] - net.w2[j]).astype(float), float(net.b2[label] - net.b2[j])
            folded = constant + np.where(row > 0, row * np.maximum(low, 0), row * np.maximum(high, 0)).sum()
            unstable, active = (low < 0) & (high > 0), low >= 0
            slope = np.where(unstable, high / np.where(unstable, high - low, 1), active)
            alpha = np.where(unstable, high > -low, active)
            a = np.where(row > 0, row * alpha, row * slope)
            constant += np.where((row < 0) & unstable, -row * slope * low, 0).sum()
            found.append(max(folded, constant + a @ net.b1 + (a @ net.w1) @ centre - np.abs(a @ net.w1) @ radius))
    return min(found)
