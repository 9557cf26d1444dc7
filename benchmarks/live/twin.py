"""The certifying ONNX file of finished builds: what it certifies against float64 intervals, what it takes beside inference, and attacks.

Usage: python benchmarks/live/twin.py [ARTIFACT…] [--half | --int8] [--data DIR] [--samples N] [--rounds N] [--nets N] [--untrained]
                                      [--out FILE]

Tightness: the first N test samples of each ARTIFACT's recipe at 0.25 to 2 times its radius, `certified` (right class, margin above 0, ONNX
Runtime with all optimisations) against `by_intervals`, the host's float64 intervals under the contract with the last layers folded. No
margin may exceed the host's bound. Cost: in each round the network and the certifying file run in alternation; `ratio` is the ratio of the
medians. With `--half` all of this is about networks in float16: of an artifact its own, under the contract of its certificate, and else
under fp16 and fp16-tensorrt; with `--int8` about quantised ones, and else under int8 and int8-tensorrt. `--untrained` adds the cost for
architectures with random weights. `--nets` attacks that many random networks of every operator as the tests do, at every optimisation
level. Exit code 1 where a margin is broken.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from vsparse.artifact.certificate import read_certificate
from vsparse.artifact.forms import BY_NAME, SPARSE
from vsparse.artifact.models import CERTIFYING_OF
from vsparse.data import load
from vsparse.files import write_json
from vsparse.graph import Graph, fold_batch_norm, from_onnx, from_torch, macs, to_onnx
from vsparse.networks import make
from vsparse.recipe import Network, load_recipe
from vsparse.stages.export.certify_onnx import certifying_model
from vsparse.stages.export.certify_onnx.check import CertifyingSession, MarginBounds
from vsparse.stages.export.half import half
from vsparse.stages.export.quantise import quantise
from vsparse.stages.profile.machine import describe_machine

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "export"), str(ROOT / "tests" / "bounds")]

from graph_builder import random_net  # noqa: E402
from random_graphs import random_graph  # noqa: E402
from twin_attack import Tally, attack, quantised_net  # noqa: E402

SHARES = (Fraction(1, 4), Fraction(1, 2), Fraction(1), Fraction(3, 2), Fraction(2))
UNTRAINED = (("mlp", (1, 28, 28), 1.0), ("cnn4", (1, 28, 28), 1.0), ("cnn4", (3, 32, 32), 1.0), ("resnet-small", (3, 32, 32), 1.0))
AT_ONCE = 100
HALF, INT8 = ("fp16", "fp16-tensorrt"), ("int8", "int8-tensorrt")


def tightness(artifact: Path, data: Path | None, most: int, form: str, contract: str) -> dict[str, Any]:
    """Returns how many test samples the file and the host certify at each radius, and by how much a margin came nearest to its bound."""
    recipe = load_recipe(str(artifact / "recipe.toml"))
    test = load(recipe.data, data, recipe.train.seed).test
    perturbation, count = recipe.property.perturbation, min(most, len(test))
    network = onnx.load(artifact / BY_NAME[form].model)
    made = artifact / CERTIFYING_OF[form].file
    model = onnx.load(made) if made.exists() else certifying_model(network, perturbation.clip, contract_name=contract)
    graph = from_onnx(network.SerializeToString())
    session, bounds = CertifyingSession(model.SerializeToString()), MarginBounds(graph, model, perturbation.clip, contract)
    rows = []
    for share in SHARES:
        radius = np.float32(float(share * perturbation.box_radius))
        certified = by_intervals = above = 0
        nearest = np.inf
        for start in range(0, count, AT_ONCE):
            index = slice(start, min(start + AT_ONCE, count))
            x = test.inputs(index).reshape(-1, *graph.input_shape)
            _, classes, margins = session.run(x, radius)
            host = bounds.host(x, Fraction(float(radius)), classes)
            right = classes == test.labels[index]
            certified += int((right & (margins > 0)).sum())
            by_intervals += int((right & (host > 0)).sum())
            above += int((margins > host + bounds.room).sum())
            nearest = min(nearest, float((host - margins).min()))
        rows.append(
            {
                "epsilon": float(radius),
                "share_of_recipe": float(share),
                "certified": certified,
                "by_intervals": by_intervals,
                "fraction": certified / by_intervals if by_intervals else None,
                "above_their_bound": above,
                "least_distance_to_bound": nearest,
            }
        )
        print(f"  epsilon {float(radius):.4g}: {certified} of {by_intervals}", file=sys.stderr)
    return {"samples": count, "radii": rows}


def cost(network: bytes, certifying: bytes, rounds: int) -> dict[str, Any]:
    """Returns the medians of both files, run in alternation with one thread at batch 1, and their ratio."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    plain, whole = (onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]) for data in (network, certifying))
    x = np.random.default_rng(0).random([1, *plain.get_inputs()[0].shape[1:]], dtype=np.float32)
    pairs = ((plain, {"input": x}), (whole, {"input": x, "epsilon": np.array(0.01, np.float32)}))
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds + 20):
        for kept, (session, feed) in zip(times, pairs, strict=True):
            start = time.perf_counter()
            session.run(None, feed)
            if i >= 20:
                kept.append(1e6 * (time.perf_counter() - start))
    medians = [statistics.median(one) for one in times]
    return {
        "network_us": medians[0],
        "certifying_us": medians[1],
        "ratio": medians[1] / medians[0],
        "rounds": rounds,
        "bytes": [len(network), len(certifying)],
    }


def untrained(name: str, shape: tuple[int, int, int], width: float, rounds: int, contract: str) -> dict[str, Any]:
    """Returns the cost of an architecture with random weights, in float32 or as a contract stores it."""
    torch.manual_seed(0)
    graph: Graph = fold_batch_norm(from_torch(make(Network(architecture=name, width=width), shape, 10).eval(), shape))
    if contract in INT8:
        graph = quantise(graph, np.random.default_rng(0).random((64, *shape), dtype=np.float32), contract)
    model = to_onnx(half(graph, wide_sums=contract == "fp16-tensorrt") if contract in HALF else graph)
    made = certifying_model(model, (0.0, 1.0), contract_name=contract)
    return {"macs": macs(graph), **cost(model.SerializeToString(), made.SerializeToString(), rounds)}


def attacked(nets: int, contract: str) -> dict[str, Any]:
    """Returns what an attack on random networks of every operator looked at; AssertionError where a margin is broken."""
    rng, tally, storage = np.random.default_rng(0), Tally(), "fp16" if contract in HALF else "fp32"
    for i in range(nets):
        if contract in INT8:
            graph = quantised_net(rng, contract)
        else:
            graph = random_graph(rng, storage, spread=float(rng.choice([1.0, 30.0]))) if i % 2 else random_net(rng, storage)
        attack(graph, rng, tally, rational=i % 5 == 0, contract=contract)
    return {key: sorted(value) if isinstance(value, set) else value for key, value in vars(tally).items()}


def main() -> int:
    """Measures what is asked for, writes it, and returns 1 where a margin is no bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", type=Path)
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--half", action="store_true", help="networks in float16, and the files that certify these")
    others.add_argument("--int8", action="store_true", help="quantised networks, and the files that certify these")
    parser.add_argument("--data", type=Path, help="folder of the datasets")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--nets", type=int, default=0)
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    machine, results = describe_machine(), {"artifacts": {}, "untrained": {}}  # type: tuple[Any, dict[str, Any]]
    results["machine"] = {key: machine.get(key) for key in ("processor", "architecture", "cores")}
    results["onnxruntime"] = onnxruntime.__version__
    good, further = True, given.half or given.int8
    for artifact in given.artifacts:
        recipe = load_recipe(str(artifact / "recipe.toml"))
        print(artifact.name, file=sys.stderr)
        form, contract = SPARSE.name, "fp32"
        if further:
            form = "fp16" if given.half else "int8"
            contract = read_certificate(artifact / BY_NAME[form].certificate).contract["name"]
        network = onnx.load(artifact / BY_NAME[form].model)
        made = certifying_model(network, recipe.property.perturbation.clip, contract_name=contract)
        found = {
            "contract": contract,
            "nodes": len(made.graph.node),
            "tightness": tightness(artifact, given.data, given.samples, form, contract),
            "cost": cost(network.SerializeToString(), made.SerializeToString(), given.rounds),
        }
        good &= all(row["above_their_bound"] == 0 for row in found["tightness"]["radii"])
        results["artifacts"][f"{recipe.name} {contract}" if further else recipe.name] = found
    contracts = HALF if given.half else INT8 if given.int8 else ("fp32",)
    for contract in contracts if given.untrained else ():
        for name, shape, width in UNTRAINED:
            key = f"{name} {shape} {width}" + (f" {contract}" if further else "")
            results["untrained"][key] = untrained(name, shape, width, given.rounds, contract)
    told = [(contract, attacked(given.nets, contract)) for contract in contracts if given.nets]
    if told:
        results["attack"] = dict(told) if further else told[0][1]
    if given.out is not None:
        write_json(given.out, results)
    for name, found in [*results["artifacts"].items(), *((name, {"cost": one}) for name, one in results["untrained"].items())]:
        print(f"{name}: {found['cost']['ratio']:.2f} times inference ({found['cost']['network_us']:.0f} us)")
        for row in found.get("tightness", {}).get("radii", []):
            print(f"  epsilon {row['epsilon']:.4g}: {row['certified']} of {row['by_intervals']} that intervals certify")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
