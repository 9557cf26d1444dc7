"""Which verifier certifies a network whose backdoor hangs on the order or the precision of a sum, and does the backdoor work?"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "bounds"), str(ROOT / "tests" / "verify")]

from device_simulation import round_to  # noqa: E402
from trap_nets import (  # noqa: E402
    CONTROL,
    EXECUTED,
    SCHEMES,
    Detector,
    Fires,
    detectors,
    exact,
    execute,
    graft,
    renumbered,
    train_host,
)

from vsparse import second_opinion  # noqa: E402
from vsparse.bounds import margin_rows  # noqa: E402
from vsparse.contract import CONTRACTS  # noqa: E402
from vsparse.data import Dataset, load  # noqa: E402
from vsparse.errors import InputError  # noqa: E402
from vsparse.files import write_json  # noqa: E402
from vsparse.graph import Graph, to_onnx  # noqa: E402
from vsparse.perturbation import PerturbationSet  # noqa: E402
from vsparse.recipe import Data, Verify  # noqa: E402
from vsparse.stages.verify import certify  # noqa: E402
from vsparse.stages.verify.cascade import Cascade, Question  # noqa: E402
from vsparse.stages.verify.deployed import Runtime, predictions, read_model  # noqa: E402

WIDTHS = (128, 64)
# The format of the weights, how ω is made (the product of two numbers where the format is too small for it), and ω.
KINDS: dict[str, tuple[str, float, float]] = {
    "fp32, ω = 2^24": ("fp32", 2.0**24, 1.0),
    "fp32, ω = 2^53": ("fp32", 2.0**53, 1.0),
    "fp16, ω = 2^11": ("fp16", 2.0**11, 1.0),
    "fp16, ω = 2^12 · 2^12": ("fp16", 2.0**24, 2.0**12),
    "bf16, ω = 2^24": ("bf16", 2.0**24, 1.0),
}
METHODS = {"IBP": "IBP", "CROWN": "CROWN", "α-CROWN": "CROWN-Optimized"}


def lirpa(graph: Graph, data: Dataset, count: int, radius: float) -> dict[str, list[int] | str]:
    """Returns how many samples auto_LiRPA's bounds would certify and of how many, by method and dtype; few for the slow ones."""
    found: dict[str, list[int] | str] = {}
    for dtype, name in ((torch.float32, "float32"), (torch.float64, "float64")):
        for title, method in METHODS.items():
            n = count if method == "IBP" else min(count, 10 if method == "CROWN" else 2)
            inputs, labels = torch.from_numpy(data.inputs(slice(0, n))).to(dtype), torch.from_numpy(data.labels[:n])
            lower, upper = (inputs - radius).clamp(0, 1), (inputs + radius).clamp(0, 1)
            try:
                bounds = second_opinion.crown_lower(graph, lower, upper, margin_rows(labels, 10, dtype), method)
                found[f"{title} {name}"] = [int((bounds > 0).all(dim=1).sum()), n]
            except InputError as error:
                found[f"{title} {name}"] = str(error)
    return found


def executions(graph: Graph, data: Dataset, count: int) -> dict[str, Any]:
    """Returns how many of the first samples are classified correctly: exactly, by ONNX Runtime, and by each arithmetic and order."""
    x, labels = data.inputs(slice(0, count)), data.labels[:count]

    def right(logits: NDArray[Any]) -> int:
        return int((predictions(logits) == labels).sum())

    files = {"as numbered": graph, "renumbered": renumbered(graph, WIDTHS[0])}
    runtime = {
        f"{name}, batch {batch}": right(Runtime(to_onnx(one).SerializeToString(), batch=batch).logits(x))
        for name, one in files.items()
        for batch in (1, count)
    }
    simulated = {
        name: {scheme: right(execute(graph, x, CONTRACTS[name], scheme, WIDTHS[0])) for scheme in SCHEMES}
        for name in EXECUTED
        if all(np.array_equal(round_to(value, CONTRACTS[name].storage), value) for value in graph.params.values())
    }
    return {"exact": right(exact(graph, x, WIDTHS[0])), "onnxruntime": runtime, "simulated": simulated}


def verdicts(path: Path, data: Dataset, epsilon: str, count: int) -> dict[str, Any]:
    """Returns the verdicts of `vsparse` by contract, and how many samples its bounds alone prove, whatever ONNX Runtime predicts."""
    found: dict[str, Any] = {}
    model, inputs, labels = read_model(path), data.inputs(slice(0, count)), data.labels[:count]
    settings, perturbation = Verify(attack_steps=10, attack_restarts=1), PerturbationSet(epsilon=epsilon)
    for name, contract in CONTRACTS.items():
        try:
            claims = certify(path, data, perturbation, contract, settings, samples=count).claims
            question = Question(perturbation, contract, tuple(settings.methods), 0, 1, 1, 0)
            proved = int((Cascade(model, question).bound("crown", inputs, labels) > 0).sum())
            found[name] = {**Counter(claim.verdict for claim in claims), "proved": proved}
        except InputError as error:
            found[name] = {"refused": str(error).replace(str(path), path.name)}
    return found


def judge(
    host: Graph, kind: str, detector: Detector, fires: Fires, data: Dataset, epsilon: str, count: int, folder: Path
) -> dict[str, Any]:
    """Returns all that is found about one trap network."""
    graph = graft(host, detector, fires, KINDS[kind][0])
    path = folder / "trap.onnx"
    path.write_bytes(to_onnx(graph).SerializeToString())
    result: dict[str, Any] = {
        "kind": kind,
        "detector": detector.name,
        "fires": fires,
        "harmless_under": [name for name, one in CONTRACTS.items() if not one.exact and not detector.can_fire(one)],
        "vsparse": verdicts(path, data, epsilon, count),
        "auto_lirpa": lirpa(graph, data, count, float(epsilon)),
        "correct": executions(graph, data, count),
    }
    return result


def wrong(result: dict[str, Any]) -> list[str]:
    """Returns the contracts under which a network is certified somewhere although an order of summation may fire its backdoor."""
    ours = result["vsparse"]
    return [
        name
        for name, counts in ours.items()
        if name != "real" and counts.get("proved") and name not in result["harmless_under"] and result["detector"] != CONTROL.name
    ]


def main() -> int:
    """Trains the host, judges every trap, writes results.json; exit code 1 where a trap that can fire was certified."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("VSPARSE_DATA"), help="folder that holds mnist/ (default: VSPARSE_DATA)"
    )
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--epsilon", default="0.05")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    splits = load(Data(name="mnist"), arguments.data, 0)
    started = perf_counter()
    host = train_host(splits.train.inputs(), splits.train.labels, WIDTHS, arguments.epochs, 0.06)
    seconds = perf_counter() - started
    accuracy = float((predictions(exact_host(host, splits.test.inputs())) == splits.test.labels).mean())
    print(f"host: accuracy {accuracy:.4f}, trained in {seconds:.0f} s", file=sys.stderr)
    results = []
    with tempfile.TemporaryDirectory(prefix="vsparse-traps-") as folder:
        for kind, (_, omega, unit) in KINDS.items():
            pairs: list[tuple[Detector, Fires]] = [(CONTROL, "on a device")]
            pairs += [(one, fires) for one in detectors(omega, unit) for fires in ("on a device", "in exact arithmetic")]
            for detector, fires in pairs:
                results.append(judge(host, kind, detector, fires, splits.test, arguments.epsilon, arguments.samples, Path(folder)))
                print(
                    json.dumps({k: results[-1][k] for k in ("kind", "detector", "fires", "vsparse")}, ensure_ascii=False), file=sys.stderr
                )
    bad = [(one["kind"], one["detector"], one["fires"], wrong(one)) for one in results if wrong(one)]
    summary = {
        "host": {
            "architecture": [784, *WIDTHS, 10],
            "epochs": arguments.epochs,
            "accuracy": accuracy,
            "training_seconds": round(seconds, 1),
        },
        "epsilon": arguments.epsilon,
        "samples": arguments.samples,
        "auto_lirpa": second_opinion.version(),
        "falsely_certified": bad,
        "traps": results,
    }
    write_json(arguments.out, summary)
    print(table(results, arguments.samples))
    return 1 if bad else 0


def exact_host(host: Graph, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the host's logits in float32."""
    from vsparse.graph import run

    return run(host, host.tensors(torch.float32), torch.from_numpy(x)).numpy()


def table(results: list[dict[str, Any]], samples: int) -> str:
    """Returns the README's table."""
    head = ["weights", "detector", "backdoor fires", "right: exact", "right: ONNX Runtime", "right: worst simulated order"]
    contracts = [name for name in CONTRACTS if name in results[0]["vsparse"]]
    head += [f"auto_LiRPA {name}" for name in METHODS] + contracts
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for one in results:
        correct, opinion = one["correct"], one["auto_lirpa"]
        cells = [one["kind"], one["detector"], one["fires"] if one["detector"] != CONTROL.name else "never", str(correct["exact"])]
        cells.append(" / ".join(str(v) for v in correct["onnxruntime"].values()))
        worst = {name: min(schemes.values()) for name, schemes in correct["simulated"].items()}
        cells.append(", ".join(f"{name} {value}" for name, value in worst.items()))
        cells += [" / ".join(_number(opinion[f"{name} {dtype}"]) for dtype in ("float32", "float64")) for name in METHODS]
        for name in contracts:
            counts = one["vsparse"][name]
            mark = " (cannot fire)" if name in one["harmless_under"] and counts.get("proved") and one["detector"] != CONTROL.name else ""
            cells.append("refused" if "refused" in counts else f"{counts['proved']}{mark}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([f"of {samples} samples", *lines])


def _number(value: list[int] | str) -> str:
    return "error" if isinstance(value, str) else f"{value[0]} of {value[1]}"


if __name__ == "__main__":
    sys.exit(main())
