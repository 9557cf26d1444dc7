"""Dense against packed in one run, in alternating blocks, so that a noisy machine slows both alike."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from vsparse.artifact.hashes import content_sha256
from vsparse.errors import InputError
from vsparse.stages.export.device.latency import MAX_SAMPLES
from vsparse.stages.profile.latency import Latency
from vsparse.stages.profile.machine import describe_machine
from vsparse.stages.profile.onnxruntime_latency import Progress
from vsparse.stages.profile.session import TimedModel, open_model


@dataclass(frozen=True)
class Comparison:
    """Two latencies taken in alternating blocks (dense, packed, dense, packed, …); block i of each is `block_runs` consecutive samples.

    `ratio` is packed over dense: below 1 means that packing made the network faster.
    """

    dense: Latency
    packed: Latency
    block_runs: int

    @property
    def ratio(self) -> float:
        """Median of packed over median of dense."""
        return self.packed.p50 / self.dense.p50

    @property
    def block_ratios(self) -> tuple[float, ...]:
        """For each pair of neighbouring blocks, median of packed over median of dense."""
        n = self.block_runs
        pairs = len(self.dense.samples_ms) // n
        return tuple(
            median(self.packed.samples_ms[i * n : i * n + n]) / median(self.dense.samples_ms[i * n : i * n + n]) for i in range(pairs)
        )

    @property
    def ratio_of_blocks(self) -> float:
        """Median of the block ratios: the steadier number where the machine's speed drifts during the run."""
        return median(self.block_ratios)

    def as_dict(self) -> dict[str, Any]:
        """Returns JSON values with units in the key names; ratios are packed over dense."""
        return {
            "schema_version": 1,
            "method": "alternating blocks: dense, packed, dense, packed, …",
            "block_runs": self.block_runs,
            "ratio_packed_to_dense_of_medians": self.ratio,
            "ratio_packed_to_dense_median_of_blocks": self.ratio_of_blocks,
            "speedup_of_medians": 1 / self.ratio if self.ratio else None,
            "block_ratios": list(self.block_ratios),
            "dense": self.dense.as_dict(),
            "packed": self.packed.as_dict(),
        }


def compare(
    dense: Path,
    packed: Path,
    runs: int = 300,
    seconds: float = 2.0,
    warmup: int = 50,
    threads: int = 1,
    batch: int = 1,
    blocks: int = 10,
    progress: Progress | None = None,
) -> Comparison:
    """Times two models side by side until each has at least `runs` runs and the slower one `seconds` of timed runs.

    Blocks of `runs / blocks` runs alternate between the two sessions, both loaded and warmed up first; the block is the unit that the
    ratio of one machine state is taken over. Of more than 20,000 runs every 2nd,
    4th, … pair of blocks is kept. Raises InputError as `profile_onnx` does.
    """
    if runs < 1 or warmup < 0 or seconds < 0 or blocks < 1:
        raise InputError(
            f"runs is {runs}, warmup {warmup}, seconds {seconds} and blocks {blocks}; runs and blocks must be at least 1, nothing negative"
        )
    machine = describe_machine()
    hashes = [content_sha256(dense), content_sha256(packed)]  # before a runtime opens them: it refuses weights in other files
    models = [open_model(dense, threads, batch), open_model(packed, threads, batch)]
    block_runs = max(1, -(-runs // blocks))
    for model in models:
        for _ in range(warmup):
            model.run_ms()
    samples: list[list[list[float]]] = [[], []]  # of each model, its blocks
    every, rounds = 1, 0
    spent = [0.0, 0.0]
    while True:
        for which, model in enumerate(models):
            start = time.perf_counter()
            model.run_ms()  # the other model has just used the caches: one run to take them back, not timed
            block = [model.run_ms() for _ in range(block_runs)]
            if rounds % every == 0:
                samples[which].append(block)
            spent[which] += time.perf_counter() - start
        rounds += 1
        if len(samples[0]) * block_runs > MAX_SAMPLES and len(samples[0]) > 1:
            samples = [kept[::2] for kept in samples]
            every *= 2
        done = min(rounds * block_runs / runs, max(spent) / seconds if seconds else 1.0)
        if progress is not None:
            progress(min(1.0, done))
        if done >= 1:
            break
    stated = {"warmup_runs": warmup, "runs_timed": rounds * block_runs, "blocks_kept_every": every}
    left, right = (_latency(model, digest, kept, stated, machine) for model, digest, kept in zip(models, hashes, samples, strict=True))
    return Comparison(left, right, block_runs)


def _latency(model: TimedModel, digest: str, blocks: list[list[float]], stated: dict[str, Any], machine: dict[str, Any]) -> Latency:
    settings = {"model": model.path.name, "content_sha256": digest, **model.settings, **stated}
    return Latency(tuple(sample for block in blocks for sample in block), settings, machine)
