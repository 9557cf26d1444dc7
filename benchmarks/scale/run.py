"""What bounds of large networks cost on one core: interval bounds and refined CROWN of one sample, beside a forward pass and auto_LiRPA.

Every row is a process of its own, so that its peak memory is its own; ours and theirs take turns within it. Rows that results.json holds
already are not measured again, so that the run can be cut into pieces.

    OMP_NUM_THREADS=1 python benchmarks/scale/run.py [--peer DIR] [--only interval,samples,refined] [--limit SECONDS]

DIR is a source checkout of auto_LiRPA that is imported in place of an installed one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from vsparse.bounds import Box, Rounding, crown, interval, lowest_margin, margin_rows, refine
from vsparse.contract import contract
from vsparse.files import write_json
from vsparse.graph import Graph, from_torch, run
from vsparse.graph.cost import macs, weight_count
from vsparse.graph.fold import fold_batch_norm
from vsparse.networks import make
from vsparse.recipe import Network
from vsparse.recipe import Verify as Settings

HERE = Path(__file__).parent
EPSILON = 2 / 255
CLASSES = 10
# Refined bounds are measured in so many turns, in one where a turn takes more than so many seconds.
TURNS, LONG = 5, 20.0
NAMES = ("cnn4", "cnn5", "cnn7", "resnet-small", "resnet18", "vgg16", "wrn-28-4", "mobile")
# (part, architecture, width, side of the input, samples)
ROWS: list[tuple[str, str, float, int, int]] = [
    *(("interval", name, 1.0, 32, 1) for name in NAMES),
    *(("interval", name, 1.0, 64, 1) for name in ("cnn7", "resnet18", "mobile")),
    *(("samples", "cnn7", 1.0, 32, count) for count in (1, 2, 4, 8, 16)),
    *(("refined", name, 0.25, 32, 1) for name in NAMES),
]


def network(name: str, width: float, side: int) -> nn.Module:
    """Returns a named architecture with weights of He's initialisation, drawn from a fixed seed, and batch norm that changes nothing."""
    module = make(Network(architecture=name, width=width), (3, side, side), CLASSES)
    draws = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            size = (2 / layer.weight[0].numel()) ** 0.5
            layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=draws) * size)
            if layer.bias is not None:
                layer.bias.data.zero_()
    return module.eval()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the processor time of a call in seconds, and its result."""
    started = process_time()
    result = work()
    return process_time() - started, result


def in_turns(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Returns the median processor time of each call, taken in turns after one that warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            taken = timed(work)[0]
            if turn:
                times[name].append(taken)
    return {name: median(found) for name, found in times.items()}


def peer(module: nn.Module, x: Tensor) -> tuple[str, Callable[[str], Tensor]] | None:
    """Returns the version of auto_LiRPA and a function from its method to its bounds of all margins to class 0; None where it is not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import auto_LiRPA as library  # type: ignore[import-not-found, unused-ignore]  # an extra of this benchmark
    except Exception as error:
        print(f"no peer: {error}", file=sys.stderr)
        return None
    bounded = library.BoundedModule(module, torch.zeros_like(x), bound_opts={"relu": "adaptive", "conv_mode": "patches"}, verbose=False)
    rows = margin_rows(torch.zeros(len(x), dtype=torch.int64), CLASSES, torch.float32)

    def bound(method: str) -> Tensor:
        lower, upper = (x - EPSILON).clamp(0, 1), (x + EPSILON).clamp(0, 1)
        point = library.BoundedTensor(x, library.PerturbationLpNorm(norm=float("inf"), eps=EPSILON, x_L=lower, x_U=upper))
        found: Tensor = bounded.compute_bounds(x=(point,), C=rows, method=method, bound_upper=False)[0]
        return found

    return str(getattr(library, "__version__", "0.3")), bound


def refined(graph: Graph, rounding: Rounding, box: Box) -> tuple[Tensor, int, int]:
    """Returns the least margin to class 0 by refined CROWN [batch], and how many ReLU inputs are unstable before and after."""
    before = interval(graph, rounding.params, box, rounding)
    boxes = refine(graph, rounding.params, box, before, rounding, work=Settings().refine_work * 1e9)
    rows = margin_rows(torch.zeros(len(box[0]), dtype=torch.int64), CLASSES)
    read = sorted({node.inputs[0] for node in graph.nodes if type(node).__name__ == "Relu"})
    counts = [sum(int(((ends[name][0] < 0) & (ends[name][1] > 0)).sum()) for name in read) for ends in (before, boxes)]
    return lowest_margin(crown(graph, rounding.params, box, rows, boxes, rounding)), counts[0], counts[1]


def measure(part: str, name: str, width: float, side: int, samples: int, theirs: bool) -> dict[str, Any]:
    """Returns one row, of either side alone where memory is measured: that of the process is the peak."""
    torch.set_num_threads(1)
    module = network(name, width, side)
    x = torch.rand(samples, 3, side, side, generator=torch.Generator().manual_seed(1))
    graph = fold_batch_norm(from_torch(module, (3, side, side)))
    units = sum(node.size for node in graph.nodes)
    row: dict[str, Any] = {"weights": weight_count(graph), "units": units, "macs": macs(graph)}
    params32, radius = graph.tensors(), torch.tensor(EPSILON, dtype=torch.float64)
    box = ((x.double() - radius).clamp(0, 1), (x.double() + radius).clamp(0, 1))
    with torch.no_grad():
        other = peer(module, x) if theirs else None
        if part == "refined" and theirs:
            if other is None:
                return row
            seconds, found = timed(lambda: other[1]("CROWN"))
            row |= {"peer": other[0], "peer_s": seconds, "peer_lower": float(found.min()), "peer_mib": peak()}
            return row
        rounding = Rounding(graph, contract("fp32"))
        if part == "refined":
            seconds, (lower, before, after) = timed(lambda: refined(graph, rounding, box))
            return row | {"s": seconds, "lower": float(lower.min()), "unstable": before, "unstable_refined": after, "mib": peak()}
        works: dict[str, Callable[[], Any]] = {
            "forward": lambda: run(graph, params32, x),
            "interval": lambda: interval(graph, rounding.params, box, rounding),
        }
        if other is not None:
            row["peer"] = other[0]
            works["peer"] = lambda: other[1]("IBP")
        times = in_turns(works, 5)
        row |= {f"{key}_ms": 1000 * value for key, value in times.items()}
        row["to_forward"] = times["interval"] / times["forward"]
        if "peer" in times:
            row["to_peer"] = times["interval"] / times["peer"]
    return row


def peak() -> float:
    """Returns the most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def versions() -> dict[str, str]:
    """Returns what the times hang on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"python": platform.python_version(), "torch": torch.__version__, "processor": model}


def child(arguments: list[str], limit: float, path: str) -> dict[str, Any]:
    """Returns what a process of its own has measured, or that it did not end in time."""
    search = os.pathsep.join([one for one in (path, os.environ.get("PYTHONPATH", "")) if one])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": search}
    command = [sys.executable, __file__, "--one", *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"ended": f"not within {limit:.0f} s"}
    if done.returncode:
        return {"ended": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def refined_in_turns(arguments: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Returns the row of refined bounds: medians over processes of ours and of theirs in turns, one each where they take long."""
    ours, theirs = [], []
    for _ in range(TURNS):
        ours.append(child([*arguments, "ours"], options.limit, options.peer))
        theirs.append(child([*arguments, "theirs"], options.peer_limit, options.peer))
        if any("ended" in one for one in (ours[-1], theirs[-1])) or ours[-1]["s"] + theirs[-1].get("peer_s", 0.0) > LONG:
            break
    row = ours[-1] | {(f"peer_{k}" if k == "ended" else k): v for k, v in theirs[-1].items() if k.startswith("peer") or k == "ended"}
    for key, found in (("s", ours), ("peer_s", theirs)):
        if all(key in one for one in found):
            row[key] = median(one[key] for one in found)
    if "s" in row and "peer_s" in row:
        row |= {"turns": len(ours), "to_peer": median(one["s"] / other["peer_s"] for one, other in zip(ours, theirs, strict=True))}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="", help="source checkout of auto_LiRPA")
    parser.add_argument("--only", default="interval,samples,refined", help="parts to measure")
    parser.add_argument("--names", default=",".join(NAMES), help="architectures to measure")
    parser.add_argument("--limit", type=float, default=600, help="seconds that one row may take")
    parser.add_argument("--peer-limit", type=float, default=600, help="seconds that auto_LiRPA's refined bounds may take")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        part, name, width, side, samples, whose = options.one
        print(json.dumps(measure(part, name, float(width), int(side), int(samples), whose == "theirs")))
        return
    found = json.loads(options.out.read_text()) if options.out.exists() else {"rows": {}}
    for part, name, width, side, samples in ROWS:
        key = f"{part} {name} {width:g} {side} {samples}"
        if part not in options.only.split(",") or name not in options.names.split(",") or key in found["rows"]:
            continue
        arguments = [part, name, str(width), str(side), str(samples)]
        row = refined_in_turns(arguments, options) if part == "refined" else child([*arguments, "theirs"], options.limit, options.peer)
        found["rows"][key] = row
        found["versions"] = versions()
        write_json(options.out, found)
        print(key, row, file=sys.stderr)


if __name__ == "__main__":
    main()
