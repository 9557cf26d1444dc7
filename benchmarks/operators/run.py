"""Random networks over all operators, asked random properties through the real entry: does one crash, or give a wrong answer?"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from fractions import Fraction
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from networks import KINDS, network, query
from vsparse.contract import CONTRACTS
from vsparse.errors import VsparseError
from vsparse.files import write_json
from vsparse.graph import Graph, run, to_onnx
from vsparse.stages.verify.query import answer_query
from vsparse.vnnlib import Case, Constraint, Query, read_vnnlib, satisfied, write_vnnlib

HERE = Path(__file__).resolve().parent
# Sampled points of each box, starts and steps of gradient descent against each conjunction.
SAMPLES, STARTS, STEPS = 4000, 64, 60
CLI_EVERY = 25
# By how much float64 may differ from exact arithmetic, relative to the sizes of outputs: within it no verdict is called wrong.
CLOSE = 1e-9
# The same where inputs had to be rounded to float32 first.
FAR = 1e-4


def one(seed: int, number: int, timeout: float, folder: Path, kind: str = "") -> dict[str, Any]:
    """Returns what one network gave; `wrong` says why an answer cannot be right, `crash` holds a traceback."""
    rng = np.random.default_rng([seed, number])
    kind, graph = network(rng, kind)
    asked = query(rng, graph)
    contract = str(rng.choice(["int8", "real"] if kind == "quantised" else ["fp32", "fp32", "real", "sequential"]))
    model, file = folder / "m.onnx", folder / "p.vnnlib"
    model.write_bytes(to_onnx(graph).SerializeToString())
    write_vnnlib(file, asked)
    types = sorted({type(node).__name__ for node in graph.nodes})
    found: dict[str, Any] = {"number": number, "kind": kind, "contract": contract, "types": types, "crash": "", "wrong": "", "refused": ""}
    started = perf_counter()
    try:
        answer = answer_query(model, file, CONTRACTS[contract], timeout=timeout, seed=number)
    except VsparseError as error:
        # Refused in a sentence, before any work; a bound that an execution contradicts is no refusal.
        wrong = str(error) if "a bound is wrong" in str(error) else ""
        reason = str(error).replace(str(folder), "")
        return {**found, "verdict": "refused", "refused": reason, "wrong": wrong, "seconds": perf_counter() - started}
    except Exception:
        return {**found, "verdict": "crash", "crash": traceback.format_exc(), "seconds": perf_counter() - started}
    found |= {"verdict": answer.verdict, "domains": answer.domains, "seconds": round(perf_counter() - started, 3)}
    exact = read_vnnlib(file)
    session = onnxruntime.InferenceSession(model.read_bytes(), providers=["CPUExecutionProvider"])
    if answer.verdict == "unsat":
        found["wrong"] = refutation(exact, graph, session, contract, rng)
    if answer.verdict == "sat":
        assert answer.witness is not None
        found["wrong"] = replay(exact, graph, session, answer.witness)
    if number % CLI_EVERY == 0:
        found["wrong"] = found["wrong"] or command_line(model, file, contract, timeout, answer.verdict)
    return found


def replay(asked: Query, graph: Graph, session: Any, witness: Any) -> str:
    """Returns why a witness is none, or nothing: it must be a member of a box and unsafe there, both by exact arithmetic.

    Where a box holds no float32 number a device is given an end of it, rounded: such an input may be so far outside. A witness under
    `real` is then an exact point, and must be unsafe in float64 up to its rounding.
    """
    inputs = witness.inputs.ravel()
    point = getattr(witness, "exact", None)
    values = [Fraction(value) for value in (point or inputs.tolist())]
    outputs = session.run(None, {"input": inputs.reshape(1, *graph.input_shape)})[0].ravel()
    if point:
        x = torch.tensor([float(value) for value in values], dtype=torch.float64)
        outputs = run(graph, graph.tensors(torch.float64), x.view(1, *graph.input_shape)).numpy().ravel()
    slack = CLOSE * (1 + float(np.abs(outputs).max())) if point else 0.0
    for case in asked.cases:
        outside = [max(low - x, x - high, Fraction(0)) for x, low, high in zip(values, case.box.lower, case.box.upper, strict=True)]
        given = (
            [Fraction(float(np.spacing(np.abs(x)))) for x in inputs]
            if getattr(witness, "rounded", 0) and not point
            else [Fraction(0)] * len(values)
        )
        member = all(far <= most for far, most in zip(outside, given, strict=True))
        if member and any(all(one_holds(one, outputs, slack) for one in conjunction) for conjunction in case.unsafe):
            return ""
    return "the witness does not replay"


def one_holds(constraint: Constraint, outputs: NDArray[Any], slack: float) -> bool:
    """Whether outputs satisfy a constraint, by exact arithmetic, or up to `slack` where that is positive."""
    if slack == 0:
        return constraint.holds(outputs)
    return sum(float(c) * float(outputs[j]) for j, c in constraint.coefficients) <= float(constraint.bound) + slack


def command_line(model: Path, file: Path, contract: str, timeout: float, verdict: str) -> str:
    """Returns why the command says something else, or nothing."""
    arguments = [str(model), "--property", str(file), "--timeout", str(timeout), "--contract", contract, "--json"]
    done = subprocess.run([sys.executable, "-m", "vsparse", "verify", *arguments], capture_output=True, text=True)
    try:
        said = json.loads(done.stdout)["verdict"]
    except (ValueError, KeyError):
        # The command also looks at what the runtime makes of the file, and may refuse what the function takes, in a sentence.
        refused = done.returncode in (1, 2) and done.stderr.startswith("vsparse: ") and "bug in vsparse" not in done.stderr
        return "" if refused else f"the command ends with {done.returncode}: {(done.stderr or done.stdout)[-500:]}"
    opposite = {said, verdict} == {"sat", "unsat"}
    return f"the command says {said}, the function {verdict}" if opposite else ""


def refutation(asked: Query, graph: Graph, session: Any, contract: str, rng: np.random.Generator) -> str:
    """Returns why `unsat` is wrong: a point of a box with unsafe outputs, found by sampling and gradient descent, or nothing.

    Under `fp32` (and `int8`) the outputs are ONNX Runtime's, by exact comparison. Elsewhere they are those of float64, and must be unsafe
    by more than its rounding.
    """
    for place, case in enumerate(asked.cases):
        # What a device is given where a box holds no float32 number: an end, rounded.
        lower, upper = case.box.executable()[:2] if hasattr(case.box, "executable") else case.box.inward()
        if not (lower <= upper).all():
            continue
        decimals = not (case.box.contains(lower) and case.box.contains(upper))
        points = [sampled(lower, upper, rng)]
        points += [descended(graph, case, c, lower, upper, rng) for c in range(len(case.unsafe))]
        x = np.concatenate(points).reshape(-1, *graph.input_shape)
        if contract in ("fp32", "int8"):
            outputs = session.run(None, {"input": x})[0].reshape(len(x), -1)
        else:
            outputs = run(graph, graph.tensors(torch.float64), torch.from_numpy(x).double()).flatten(1).numpy()
        slack = 0.0 if contract in ("fp32", "int8") else (FAR if decimals else CLOSE) * (1 + float(np.abs(outputs).max()))
        for c, conjunction in enumerate(case.unsafe):
            values = np.stack([sum(float(k) * outputs[:, j] for j, k in one.coefficients) - float(one.bound) for one in conjunction])
            worst = int(values.max(axis=0).argmin())
            unsafe = satisfied(conjunction, outputs[worst]) if slack == 0 else bool(values[:, worst].max() < -slack)
            if unsafe and (decimals or case.box.contains(x[worst].ravel())):
                return f"case {place}, conjunction {c}: unsafe at {x[worst].ravel().tolist()}"
    return ""


def sampled(lower: NDArray[np.float32], upper: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Returns points of a box of float32 numbers: corners, uniform ones, and some on faces."""
    share = rng.random((SAMPLES, len(lower)))
    share[: SAMPLES // 3] = share[: SAMPLES // 3].round()
    share = np.where((rng.random(share.shape) < 0.5) & (np.arange(SAMPLES)[:, None] > 2 * SAMPLES // 3), share.round(), share)
    return np.clip((lower + share * (upper.astype(np.float64) - lower)).astype(np.float32), lower, upper)


def descended(
    graph: Graph, case: Case, conjunction: int, lower: NDArray[np.float32], upper: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Returns where signed gradient descent on the largest violation ends from random starts, and on its way."""
    rows = torch.zeros(len(case.unsafe[conjunction]), graph.node(graph.output).size)
    for i, constraint in enumerate(case.unsafe[conjunction]):
        for j, coefficient in constraint.coefficients:
            rows[i, j] = float(coefficient)
    bounds = torch.tensor([float(constraint.bound) for constraint in case.unsafe[conjunction]])
    low, high = torch.from_numpy(lower), torch.from_numpy(upper)
    x = low + torch.from_numpy(rng.random((STARTS, len(lower))).astype(np.float32)) * (high - low)
    params, kept = graph.tensors(), []
    for step in range(STEPS):
        x = torch.minimum(torch.maximum(x, low), high).detach().requires_grad_(True)
        values = (run(graph, params, x.view(-1, *graph.input_shape)).flatten(1) @ rows.T - bounds).amax(1)
        (gradient,) = torch.autograd.grad(values.sum(), x, allow_unused=True)
        kept.append(x.detach())
        if gradient is None:
            break
        x = x.detach() - (0.5 * 0.93**step) * (high - low) * 0.5 * torch.nan_to_num(gradient).sign()
    return torch.minimum(torch.maximum(torch.cat(kept), low), high).numpy()


def main() -> int:
    """Runs a part, adds its lines to the file of lines, and writes a summary of all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=4.0)
    parser.add_argument("--kind", default="", choices=("", *KINDS), help="networks of one kind alone")
    parser.add_argument("--part", default="1/1", help="k/n: the networks whose number leaves k − 1 when divided by n")
    parser.add_argument("--lines", type=Path, default=None, help="kept line by line, so that an interrupted run goes on where it stopped")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    part, parts = map(int, options.part.split("/"))
    lines = options.lines or options.results.with_suffix(".jsonl")
    done = {entry["number"]: entry for entry in map(json.loads, lines.read_text().splitlines())} if lines.exists() else {}
    with tempfile.TemporaryDirectory() as folder, lines.open("a") as log:
        for number in range(part - 1, options.networks, parts):
            if number in done:
                continue
            entry = one(options.seed, number, options.timeout, Path(folder), options.kind)
            done[number] = entry
            log.write(json.dumps(entry) + "\n")
            log.flush()
            if entry["crash"] or entry["wrong"]:
                print(f"network {number}: {entry['crash'] or entry['wrong']}", file=sys.stderr)
    entries = list(done.values())
    failures = [entry for entry in entries if entry["crash"] or entry["wrong"]]
    late = [entry for entry in entries if entry["seconds"] > options.timeout * 1.1 + 2]
    counts = {kind: Counter(e["verdict"] for e in entries if e["kind"] == kind) for kind in sorted({e["kind"] for e in entries})}
    summary = {
        "schema_version": 1,
        "networks": len(entries),
        "seed": options.seed,
        "timeout": options.timeout,
        "verdicts": dict(Counter(entry["verdict"] for entry in entries)),
        "by_kind": {kind: dict(count) for kind, count in counts.items()},
        "by_contract": dict(Counter(f"{entry['contract']} {entry['verdict']}" for entry in entries)),
        "types": dict(Counter(name for entry in entries for name in entry["types"]).most_common()),
        "crashes": sum(bool(entry["crash"]) for entry in entries),
        "wrong": sum(bool(entry["wrong"]) for entry in entries),
        "over_the_limit": len(late),
        "refusals": dict(Counter(entry["refused"] for entry in entries if entry["refused"])),
        "failures": failures,
    }
    write_json(options.results, summary)
    shown = {key: value for key, value in summary.items() if key not in ("failures", "types")}
    print(json.dumps(shown, indent=2, ensure_ascii=False))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
