"""Dense against packed in one run, in alternating blocks, so that a noisy machine slows both alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vsparse.artifact.hashes import content_sha256
from vsparse.artifact.latency import Latency, LatencyFile, side_by_side
from vsparse.errors import InputError
from vsparse.stages.export.device.latency import MAX_SAMPLES
from vsparse.stages.profile.machine import describe_machine
from vsparse.stages.profile.session import TimedModel, open_model


def compare(
    dense: Path,
    packed: Path,
    runs: int = 300,
    seconds: float = 2.0,
    warmup: int = 50,
    threads: int = 1,
    batch: int = 1,
    blocks: int = 10,
    progress: Callable[[float], None] | None = None,
) -> LatencyFile:
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
    return side_by_side(left, right, block_runs)


def _latency(model: TimedModel, digest: str, blocks: list[list[float]], stated: dict[str, Any], machine: dict[str, Any]) -> Latency:
    settings = {"model": model.path.name, "content_sha256": digest, **model.settings, **stated}
    return Latency(samples_ms=tuple(sample for block in blocks for sample in block), settings=settings, machine=machine)
