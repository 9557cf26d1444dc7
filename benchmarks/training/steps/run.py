"""Time of whole training steps, ours and auto_LiRPA's, interleaved in one process with one thread.

A step is forward, bounds, loss, backward and Adam on a batch of 128 samples of 1×28×28, on cnn4 of width 1, if nothing else is asked for.
The variants take turns in
rounds; each round times a few steps of every variant in processor and in wall time, and what is reported are medians over the rounds,
and medians of the ratios within a round.

    OMP_NUM_THREADS=1 python benchmarks/training/steps/run.py [--rounds 40] [--steps 5] [--architecture cnn4] [--width 1] [--batch 128]
        [--input 1x28x28] [--peer DIR] [--only ours-ibp,lirpa-ibp]

DIR is a source checkout of auto_LiRPA that is imported in place of an installed one.

On an accelerator (--device cuda) the wall time counts, taken when the device has finished its work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsparse import second_opinion
from vsparse.compute_device import choose_device, exact_products
from vsparse.graph import from_torch, run
from vsparse.graph.ir import BatchNorm
from vsparse.networks import make
from vsparse.recipe import Network
from vsparse.recipe_train import Train
from vsparse.stages.train.objectives import TrainingBatch, make_objective

CLASSES = 10
ALPHA, ATTACK = 0.01, {"attack_steps": 1, "attack_step": 2.0}
EPSILON, EPSILON_MAX = 0.1, 0.2
Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Setting:
    """What every variant of one run works on: the network, the shape of its inputs, and the device."""

    architecture: str
    shape: tuple[int, int, int]
    device: torch.device
    width: float = 1.0
    samples: int = 128

    def network(self, part: float = 1.0) -> nn.Module:
        """Returns the network, or one of a part of its width, with its initial weights."""
        return make(Network(architecture=self.architecture, width=self.width * part), self.shape, CLASSES)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Returns one batch of random images and labels, the same for every variant."""
        generator = torch.Generator().manual_seed(1)
        x, labels = (
            torch.rand(self.samples, *self.shape, generator=generator),
            torch.randint(0, CLASSES, (self.samples,), generator=generator),
        )
        return x.to(self.device), labels.to(self.device)

    def wait(self) -> None:
        """Returns when the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


# (name of the ratio, numerator, denominator, the most that is wanted)
WANTED: list[tuple[str, str, str, float | None]] = [
    ("IBP, ours to theirs as in its own example", "ours-ibp", "lirpa-ibp-clean", 0.8),
    ("IBP, ours to theirs without the clean pass", "ours-ibp", "lirpa-ibp", 0.8),
    ("IBP, ours with the clean loss to theirs as in its own example", "ours-ibp-clean", "lirpa-ibp-clean", None),
    ("CROWN-IBP, ours to theirs without loss fusion", "ours-crown-ibp", "lirpa-crown-ibp", 0.5),
    ("CROWN-IBP, ours to theirs with loss fusion", "ours-crown-ibp", "lirpa-crown-ibp-fused", 1.0),
    ("MTL-IBP, ours to the same loss on theirs", "ours-mtl-ibp", "lirpa-mtl-ibp", 0.75),
    ("IBP at 25 % of the channels to dense", "ours-ibp-quarter", "ours-ibp", 0.5),
]


def adam(leaves: list[Tensor]) -> torch.optim.Optimizer:
    """Returns the optimiser that every variant uses: the training loop's, in one kernel."""
    return torch.optim.Adam(leaves, lr=5e-4, fused=True)


def optimised(loss_of: Callable[[], Tensor], leaves: list[Tensor]) -> Step:
    """Returns a step that minimises `loss_of` and returns the loss."""
    optimizer = adam(leaves)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        return loss.detach()

    return step


def ours(spec: dict[str, Any], kappa: float, on: Setting, part: float = 1.0) -> Step:
    """Returns a step of one of our objectives; kappa 1 is the clean loss alone."""
    graph = from_torch(on.network(part), on.shape)
    params = {name: value.to(on.device) for name, value in graph.tensors().items()}
    objective = make_objective(Train.model_validate(spec), graph, params)
    x, labels = on.batch()
    fixed = {name for node in graph.nodes if isinstance(node, BatchNorm) for name in (node.mean, node.variance)}
    leaves = [value.requires_grad_(True) for name, value in params.items() if name not in fixed]
    now = TrainingBatch(x, labels, EPSILON, EPSILON_MAX, kappa, False, torch.Generator().manual_seed(0))
    return optimised(lambda: objective(params, now).value, leaves)


def clean(on: Setting) -> Step:
    """Returns a step of the clean cross-entropy."""
    graph = from_torch(on.network(), on.shape)
    params = {name: value.to(on.device) for name, value in graph.tensors().items()}
    x, labels = on.batch()
    fixed = {name for node in graph.nodes if isinstance(node, BatchNorm) for name in (node.mean, node.variance)}
    leaves = [value.requires_grad_(True) for name, value in params.items() if name not in fixed]
    return optimised(lambda: F.cross_entropy(run(graph, params, x, batch_statistics={}), labels), leaves)


def lirpa(method: str, on: Setting, with_clean: bool, mode: str = "patches") -> Step:
    """Returns a step of auto_LiRPA's IBP or CROWN-IBP without loss fusion, written as in its own training example.

    The margins to all other classes are its specification, the loss their cross-entropy. CROWN-IBP mixes CROWN's lower bounds with those of
    IBP by (ε_max − ε)/ε_max, here one half. Its example also runs the clean forward pass in every step (`with_clean`), to report the clean
    loss; it takes no part in the gradient. "MTL-IBP" adds the cross-entropy of attacked samples (De Palma et al., ICLR 2024), by one step
    of 2 ε from a random point, as ours. Batch norm, where there is one, has the statistics of the forward pass, so there is always one.
    """
    module = on.network().to(on.device)
    x, labels = on.batch()
    with second_opinion.quietly() as library:
        bounded = library.BoundedModule(
            module, torch.zeros_like(x), bound_opts={"relu": "adaptive", "conv_mode": mode}, device=str(on.device)
        )
    bounded.train()  # batch norm on the statistics of the batch, as ours
    draws = torch.Generator(on.device).manual_seed(0)
    with_clean = with_clean or any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
    eye = torch.eye(CLASSES, device=on.device)
    factor = (EPSILON_MAX - EPSILON) / EPSILON_MAX

    def loss() -> Tensor:
        rows = eye[labels].unsqueeze(1) - eye.unsqueeze(0)
        rows = rows[labels.unsqueeze(1) != torch.arange(CLASSES, device=on.device)].view(on.samples, CLASSES - 1, CLASSES)
        lower, upper = (x - EPSILON).clamp(0, 1), (x + EPSILON).clamp(0, 1)
        point = library.BoundedTensor(x, library.PerturbationLpNorm(norm=float("inf"), eps=EPSILON, x_L=lower, x_U=upper))
        if with_clean:
            F.cross_entropy(bounded(point), labels)
            inputs: dict[str, Any] = {}
        else:
            inputs = {"x": (point,)}
        bound, _ = bounded.compute_bounds(IBP=True, C=rows, method=None, **inputs)
        if method == "CROWN-IBP":
            linear, _ = bounded.compute_bounds(IBP=False, C=rows, method="backward", bound_upper=False)
            bound = linear * factor + bound * (1 - factor)
        padded = torch.cat((bound.new_zeros(on.samples, 1), bound), dim=1)
        interval = F.cross_entropy(-padded, torch.zeros(on.samples, dtype=torch.int64, device=on.device))
        if method != "MTL-IBP":
            return interval
        start = (lower + torch.rand(x.shape, generator=draws, device=on.device) * (upper - lower)).requires_grad_(True)
        (ascent,) = torch.autograd.grad(F.cross_entropy(module(start), labels, reduction="sum"), start)
        attacked = (start.detach() + ATTACK["attack_step"] * EPSILON * ascent.sign()).clamp(lower, upper)
        return (1 - ALPHA) * F.cross_entropy(module(attacked), labels) + ALPHA * interval

    return quiet(optimised(loss, list(bounded.parameters())))


class Fused(nn.Module):
    """Maps (x, labels) to the sum of exp(logit_j − logit_label)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns the sums, [batch, 1]."""
        logits = self.network(x)
        return torch.exp(logits - torch.gather(logits, 1, labels.unsqueeze(1))).sum(1, keepdim=True)


def lirpa_fused(on: Setting, mode: str = "patches") -> Step:
    """Returns a step of auto_LiRPA's CROWN-IBP with loss fusion, as in its own example: forward, IBP, one backward pass, the two mixed."""
    module = on.network().to(on.device)
    x, labels = on.batch()
    with second_opinion.quietly() as library:
        options = {"relu": "adaptive", "loss_fusion": True, "conv_mode": mode}
        bounded = library.BoundedModule(Fused(module), (torch.zeros_like(x), labels), bound_opts=options, device=str(on.device))
    bounded.train()
    exponential = next(node for node in bounded.modules() if type(node).__name__ == "BoundExp")
    factor = (EPSILON_MAX - EPSILON) / EPSILON_MAX

    def loss() -> Tensor:
        lower, upper = (x - EPSILON).clamp(0, 1), (x + EPSILON).clamp(0, 1)
        point = library.BoundedTensor(x, library.PerturbationLpNorm(norm=float("inf"), eps=EPSILON, x_L=lower, x_U=upper))
        bounded(point, labels)
        _, interval = bounded.compute_bounds(x=(point, labels), IBP=True, C=None, method=None)
        _, linear = bounded.compute_bounds(IBP=False, C=None, method="backward", bound_lower=False, bound_upper=True)
        mixed = linear * factor + interval * (1 - factor)
        return (torch.log(mixed) + exponential.max_input).mean()

    return quiet(optimised(loss, list(bounded.parameters())))


def quiet(step: Step) -> Step:
    """Returns the step with auto_LiRPA's printing held back."""

    def silenced() -> Tensor:
        with second_opinion.quietly():
            return step()

    return silenced


def variants(on: Setting) -> dict[str, Callable[[], Step]]:
    """Returns what is measured: a maker of each step by name."""
    found: dict[str, Callable[[], Step]] = {
        "clean": lambda: clean(on),
        "ours-ibp": lambda: ours({"objective": "ibp"}, 0.0, on),
        "ours-ibp-clean": lambda: ours({"objective": "ibp"}, 0.5, on),
        "ours-crown-ibp": lambda: ours({"objective": "crown-ibp"}, 0.0, on),
        "ours-mtl-ibp": lambda: ours({"objective": "mtl-ibp", "loss": {"alpha": ALPHA, **ATTACK}}, 0.0, on),
        "ours-ibp-quarter": lambda: ours({"objective": "ibp"}, 0.0, on, 0.25),
    }
    if second_opinion.is_available():
        found |= {
            "lirpa-ibp": lambda: lirpa("IBP", on, False),
            "lirpa-ibp-clean": lambda: lirpa("IBP", on, True),
            "lirpa-mtl-ibp": lambda: lirpa("MTL-IBP", on, False),
            "lirpa-crown-ibp": lambda: lirpa("CROWN-IBP", on, True),
            "lirpa-crown-ibp-matrix": lambda: lirpa("CROWN-IBP", on, True, "matrix"),
            "lirpa-crown-ibp-fused": lambda: lirpa_fused(on),
            "lirpa-crown-ibp-fused-matrix": lambda: lirpa_fused(on, "matrix"),
        }
    return found


def measure(steps: dict[str, Step], rounds: int, count: int, on: Setting) -> dict[str, dict[str, list[float]]]:
    """Returns milliseconds of processor and wall time of one step for every variant and round; the order turns with the rounds."""
    times: dict[str, dict[str, list[float]]] = {name: {"cpu_ms": [], "wall_ms": []} for name in steps}
    names = list(steps)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(count):
                steps[name]()
            on.wait()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if turn:  # the first round warms up
                times[name]["cpu_ms"].append(1000 * cpu / count)
                times[name]["wall_ms"].append(1000 * wall / count)
    return times


def device_name(device: torch.device) -> str:
    """Returns the device as its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def versions() -> dict[str, str]:
    """Returns the versions that the times hang on, and the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    try:
        theirs = str(getattr(second_opinion.load(), "__version__", None) or second_opinion.version())
    except Exception:
        theirs = "not installed"
    return {"torch": torch.__version__, "auto_LiRPA": theirs, "processor": model}


def main() -> None:
    """Measures, prints the table, and writes results.json beside this file (results-NAME.json for another architecture)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--architecture", default="cnn4")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peer", type=Path, default=None, help="source checkout of auto_LiRPA")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--input", default="1x28x28", help="channels, height and width of a sample")
    parser.add_argument("--out", type=Path, default=None, help="file of the results; default: results[-ARCHITECTURE].json beside this one")
    parser.add_argument("--only", default="", help="names of variants, separated by commas; without --out nothing is written then")
    arguments = parser.parse_args()
    channels, height, width = (int(size) for size in arguments.input.split("x"))
    if arguments.peer:
        sys.path.insert(0, str(arguments.peer))
    on = Setting(
        arguments.architecture, (channels, height, width), choose_device(arguments.device, "--device"), arguments.width, arguments.batch
    )
    if on.device.type == "cpu" and os.environ.get("OMP_NUM_THREADS") != "1":
        raise SystemExit("set OMP_NUM_THREADS=1: one thread is what is compared")
    exact_products()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    wanted = arguments.only.split(",") if arguments.only else list(variants(on))
    steps: dict[str, Step] = {}
    refused: dict[str, str] = {}
    for name in wanted:
        try:
            steps[name] = variants(on)[name]()
            steps[name]()
        except Exception as error:  # a network that one engine cannot bound is a result, too
            steps.pop(name, None)
            refused[name] = f"{type(error).__name__}: {error}"
    times = measure(steps, arguments.rounds, arguments.steps, on)
    table = {name: {key: round(median(values), 3) for key, values in entry.items()} for name, entry in times.items()}
    ratios = []
    for title, above, below, most in WANTED:
        if above in times and below in times:
            pair = {
                key: round(median(a / b for a, b in zip(times[above][key], times[below][key], strict=True)), 3)
                for key in ("cpu_ms", "wall_ms")
            }
            ratios.append({"ratio": title, "cpu": pair["cpu_ms"], "wall": pair["wall_ms"], "at_most": most})
    for name, entry in table.items():
        print(f"{name:32} cpu {entry['cpu_ms']:8.2f} ms   wall {entry['wall_ms']:8.2f} ms")
    for name, reason in refused.items():
        print(f"{name:32} {reason}")
    for row in ratios:
        wish = "" if row["at_most"] is None else f"  wanted at most {row['at_most']}"
        print(f"{row['ratio']:64} cpu {row['cpu']:.3f}  wall {row['wall']:.3f}{wish}")
    if arguments.out or not arguments.only:
        suffix = "" if arguments.architecture == "cnn4" else f"-{arguments.architecture}"
        out = arguments.out or Path(__file__).with_name(f"results{suffix}.json")
        content = {
            "network": {
                "architecture": arguments.architecture,
                "input": on.shape,
                "device": device_name(on.device),
                "width": arguments.width,
                "batch": arguments.batch,
                "epsilon": EPSILON,
                "epsilon_max": EPSILON_MAX,
            },
            "rounds": arguments.rounds,
            "steps_per_round": arguments.steps,
            "versions": versions(),
            "milliseconds_per_step": table,
            "refused": refused,
            "ratios": ratios,
        }
        out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
