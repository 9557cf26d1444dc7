"""One process against two workers, one of them killed in between: the same certificate? what does it cost, and what travels?

Usage: python benchmarks/cluster/run.py [digits] [mnist] [--data DIR] [--samples N] [--model FILE] [--jobs 2] [--out results.json]

`digits` is always there; `mnist` reads MNIST from --data (default: VSPARSE_DATA). The network is the deployed one of the shipped recipe,
from the user's cache or built first, unless --model names an ONNX file; the radius is its recipe's, unless --epsilon says another. Each run
is a `vsparse verify` of its own in an empty cache. Times on a processor are those of the command and of all that it started, looked at
every 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from vsparse.artifact import MODEL, tool_versions
from vsparse.artifact.certificate import read_certificate
from vsparse.cluster.versions import fingerprint
from vsparse.contract import CONTRACTS
from vsparse.data import load
from vsparse.files import write_json
from vsparse.perturbation import PerturbationSet
from vsparse.pipeline.build import build
from vsparse.recipe import Recipe, Verify, load_recipe
from vsparse.stages.verify.batches import CascadeRun, one_thread
from vsparse.stages.verify.cascade import Question
from vsparse.stages.verify.deployed import read_model
from vsparse.stages.verify.pieces import judge_together, samples_bytes, settle, together_name

LOOK_SECONDS = 0.05
PROCESS = "vsparse.stages.verify.pieces_process"
# CPU time that two workers may take beyond that of one process.
MOST_OVERHEAD = 0.10


class Watch:
    """A command and all that it starts: processor seconds of each process, kept after its end."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "VSPARSE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        self.started = time.monotonic()
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.seconds: dict[tuple[int, float], float] = {}
        self.told: dict[tuple[int, float], str] = {}

    def look(self) -> None:
        """Notes what every process has taken so far."""
        try:
            root = psutil.Process(self.process.pid)
            every = [root, *root.children(recursive=True)]
        except psutil.Error:
            return
        for one in every:
            try:
                key, times = (one.pid, one.create_time()), one.cpu_times()
                self.seconds[key] = times.user + times.system
                self.told[key] = " ".join(one.cmdline()) or self.told.get(key, "")  # a zombie has none
            except psutil.Error:
                continue

    def kill_a_worker(self) -> bool:
        """Kills the Dask worker whose process judges now, once a batch is finished and others are not; returns whether it did."""
        if not list(self.folder.glob("cache/work/verify-*/batch-*.npz")):
            return False
        for (pid, _), told in self.told.items():
            if PROCESS in told:
                try:
                    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
                    return True
                except (psutil.Error, OSError):
                    continue
        return False


def verified(command: list[str], kill: bool) -> dict[str, Any]:
    """Runs a command to its end and returns its certificate's hash, its times, and whether a worker was killed."""
    with tempfile.TemporaryDirectory(prefix="vsparse-cluster-") as name:
        folder = Path(name)
        watch, killed = Watch([*command, "--out", str(folder / "out")], folder), False
        while watch.process.poll() is None:
            watch.look()
            killed = killed or (kill and watch.kill_a_worker())
            time.sleep(LOOK_SECONDS)
        if watch.process.returncode:
            sys.exit((folder / "log").read_text())
        certificate = read_certificate(folder / "out" / "certificate.json")
        return {
            "certificate_sha256": certificate.digest(),
            "wall_seconds": round(time.monotonic() - watch.started, 1),
            "cpu_seconds": round(sum(watch.seconds.values()), 1),
            "cpu_seconds_judging": round(sum(s for key, s in watch.seconds.items() if PROCESS in watch.told.get(key, "")), 1),
            "worker_killed": killed,
            "verdicts": dict(Counter(claim.verdict for claim in certificate.claims)),
            "methods": dict(Counter(claim.method for claim in certificate.claims)),
        }


def travelling(model: Path, recipe: Recipe, perturbation: PerturbationSet, data: Path | None, samples: int) -> dict[str, Any]:
    """Returns what travels in bytes, and processor seconds of each kind of piece, over the first batches."""
    dataset = load(recipe.data, data, 0).test
    question = Question(perturbation, CONTRACTS["fp32"], tuple(Verify().methods), Verify().branch_domains, 40, 5, 0)
    size, count = Verify().batch_size, min(samples or len(dataset), len(dataset), 4 * Verify().batch_size)
    inputs, labels = dataset.inputs(slice(0, count)), dataset.labels[:count].astype(np.int64)
    sizes: dict[str, list[int]] = {"batch": [], "answer_to_a_batch": [], "open_sample": [], "answer_to_a_search": []}
    seconds: dict[str, list[float]] = {"batch": [], "search": []}
    with tempfile.TemporaryDirectory() as folder, one_thread():
        deployed = read_model(model)
        run = CascadeRun.start(Path(folder), deployed, question, size, inputs.reshape(count, *deployed.graph.input_shape), labels)
        kept = {name: (run.directory / name).stat().st_size for name in ("model.onnx", "plan.json")}
        cascade = run.cascade
        for batch in range(run.batches):
            span = run.span(batch)
            given = samples_bytes(run.inputs[span.start : span.stop], run.labels[span.start : span.stop])
            started = time.process_time()
            files = judge_together(cascade, "key", batch, span.start, given)
            seconds["batch"].append(time.process_time() - started)
            sizes["batch"].append(len(given))
            sizes["answer_to_a_batch"].append(len(files[together_name(batch)]))
            for name in sorted(set(files) - {together_name(batch)}):
                started = time.process_time()
                (found,) = settle(cascade, "key", batch, int(name[12:18]), files[name]).values()
                seconds["search"].append(time.process_time() - started)
                sizes["open_sample"].append(len(files[name]))
                sizes["answer_to_a_search"].append(len(found))
        searched = len(seconds["search"])
        return {
            "samples": count,
            "samples_searched": searched,
            "to_each_worker_once_bytes": sum(kept.values()),
            "mean_bytes": {name: round(float(np.mean(found))) if found else 0 for name, found in sizes.items()},
            "cpu_seconds_a_sample_judged_together": round(sum(seconds["batch"]) / count, 4),
            "cpu_seconds_a_search": round(float(np.mean(seconds["search"])), 3) if searched else 0.0,
            "cpu_seconds_the_longest_search": round(max(seconds["search"], default=0.0), 3),
        }


def measured(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what was found about one dataset."""
    recipe = load_recipe(name)
    model = arguments.model
    if model is None:
        model = build(name, data=arguments.data, until="export", out=Path(tempfile.mkdtemp()) / "artifact").directory / MODEL
    epsilon = arguments.epsilon or str(recipe.property.epsilon)
    samples = arguments.samples if arguments.samples is not None else {"digits": 0, "mnist": 1000}[name]
    data = arguments.data
    ask = [sys.executable, "-m", "vsparse", "verify", str(model), "--data", name, "--epsilon", epsilon, "--samples", str(samples)]
    there = ["--cluster", f"local:{arguments.jobs}"]
    if data is not None:
        os.environ["VSPARSE_DATA"] = str(data)
    runs = {
        "one_process": verified([*ask, "--jobs", "1"], False),
        "cluster": verified([*ask, *there], False),
        "cluster_one_killed": verified([*ask, *there], True),
    }
    few = [*ask[: ask.index("--samples")], "--samples", str(arguments.jobs * Verify().batch_size)]
    fixed = {"one_process": verified([*few, "--jobs", "1"], False), "cluster": verified([*few, *there], False)}
    alone, together = runs["one_process"]["cpu_seconds"], runs["cluster"]["cpu_seconds"]
    begin = {kind: one["cpu_seconds"] for kind, one in fixed.items()}
    return {
        "model_bytes": Path(model).stat().st_size,
        "epsilon": epsilon,
        "workers": arguments.jobs,
        "runs": runs,
        "same_certificate": len({run["certificate_sha256"] for run in runs.values()}) == 1,
        "cpu_overhead": round(together / alone - 1, 4),
        "cpu_seconds_of_the_first_batches": begin,
        # Of what comes after a first batch for each worker.
        "cpu_overhead_afterwards": round((together - begin["cluster"]) / max(0.1, alone - begin["one_process"]) - 1, 4),
        "travels": travelling(Path(model), recipe, PerturbationSet(epsilon=epsilon), data, samples),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["digits"], choices=["digits", "mnist"])
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--samples", type=int, default=None)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--epsilon", default=None)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    arguments = parser.parse_args()
    try:
        found = json.loads(arguments.out.read_text())
    except (OSError, ValueError):
        found = {"datasets": {}}
    found |= {"versions": tool_versions(), "processor": fingerprint()["processor"], "cores": os.cpu_count()}
    good = True
    for name in arguments.names:
        found["datasets"][f"{name} at {arguments.epsilon}" if arguments.epsilon else name] = one = measured(name, arguments)
        write_json(arguments.out, found)
        killed = one["runs"]["cluster_one_killed"]["worker_killed"]
        print(f"{name}: same certificate {one['same_certificate']}, worker killed {killed}, CPU overhead {100 * one['cpu_overhead']:.1f} %")
        good = good and one["same_certificate"] and killed and (name == "digits" or one["cpu_overhead"] <= MOST_OVERHEAD)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
