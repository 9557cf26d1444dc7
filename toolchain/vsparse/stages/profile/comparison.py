"""Several models in one run, in alternating blocks, so that a noisy machine slows all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from vsparse.artifact.document import Conditions
from vsparse.artifact.hashes import content_sha256
from vsparse.artifact.latency import BLOCK_RUNS, ORDER, Latency, LatencyFile, side_by_side
from vsparse.errors import InputError
from vsparse.stages.export.device.latency import MAX_SAMPLES
from vsparse.stages.profile.machine import describe_machine
from vsparse.stages.profile.session import TimedModel, open_model

BLOCKS = 10


def compare(
    dense: Path,
    packed: Path,
    runs: int = 300,
    seconds: float = 2.0,
    warmup: int = 50,
    threads: int = 1,
    batch: int = 1,
    blocks: int = BLOCKS,
    progress: Callable[[float], None] | None = None,
) -> LatencyFile:
    """Times two models side by side until each has at least `runs` runs and the slower one `seconds` of timed runs.

    As `alternate` does. Raises InputError as `profile_onnx` does.
    """
    _require_possible(runs, seconds, warmup, blocks)
    # Hashes come first: a runtime refuses weights in other files.
    hashes = {"dense": content_sha256(dense), "packed": content_sha256(packed)}
    opened = {"dense": open_model(dense, threads, batch), "packed": open_model(packed, threads, batch)}
    found = alternate(opened, hashes, runs=runs, seconds=seconds, warmup=warmup, blocks=blocks, progress=progress)
    return side_by_side(found["dense"], found["packed"], block_runs(runs, blocks))


def block_runs(runs: int, blocks: int = BLOCKS) -> int:
    """Returns how many runs a block has."""
    return max(1, -(-runs // blocks))


def alternate(
    models: Mapping[str, TimedModel],
    hashes: Mapping[str, str],
    *,
    runs: int = 300,
    seconds: float = 2.0,
    warmup: int = 50,
    blocks: int = BLOCKS,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Latency]:
    """Times models by name, in the order given, until each has at least `runs` runs and the slowest one `seconds` of timed runs.

    Blocks of `runs / blocks` runs alternate between the models, all loaded and warmed up first; the block is the unit that the
    ratio of one machine state is taken over. Of more than 20,000 runs every 2nd, 4th, … round of blocks is kept. `hashes` are the content
    hashes of the ONNX files that the models are, or were made from.
    """
    _require_possible(runs, seconds, warmup, blocks)
    machine, size = describe_machine(), block_runs(runs, blocks)
    for model in models.values():
        for _ in range(warmup):
            model.run_ms()
    samples: dict[str, list[list[float]]] = {name: [] for name in models}  # of each model, its blocks
    spent = dict.fromkeys(models, 0.0)
    every, rounds, kept = 1, 0, 0
    while True:
        for name, model in models.items():
            start = time.perf_counter()
            model.run_ms()  # another model has just used the caches: one run to take them back, not timed
            block = [model.run_ms() for _ in range(size)]
            if rounds % every == 0:
                samples[name].append(block)
            spent[name] += time.perf_counter() - start
        kept += rounds % every == 0
        rounds += 1
        if kept * size > MAX_SAMPLES and kept > 1:
            samples = {name: taken[::2] for name, taken in samples.items()}
            every, kept = every * 2, -(-kept // 2)
        done = min(rounds * size / runs, max(spent.values()) / seconds if seconds else 1.0)
        if progress is not None:
            progress(min(1.0, done))
        if done >= 1:
            break
    taken: Conditions = {"warmup_runs": warmup, "runs_timed": rounds * size, "blocks_kept_every": every}
    turns: Conditions = {BLOCK_RUNS: size, ORDER: tuple(models)}
    return {
        name: Latency(
            samples_ms=tuple(sample for block in samples[name] for sample in block),
            settings={"model": model.path.name, "content_sha256": hashes[name], **model.settings, **taken, **turns},
            machine=machine,
        )
        for name, model in models.items()
    }


def _require_possible(runs: int, seconds: float, warmup: int, blocks: int) -> None:
    if runs < 1 or warmup < 0 or seconds < 0 or blocks < 1:
        raise InputError(
            f"runs is {runs}, warmup {warmup}, seconds {seconds} and blocks {blocks}; runs and blocks must be at least 1, nothing negative"
        )
