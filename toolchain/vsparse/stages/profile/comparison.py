"""Several models in one run, in alternating blocks, so that a noisy machine slows all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vsparse.artifact.document import Conditions
from vsparse.artifact.hashes import content_sha256
from vsparse.artifact.latency import (
    BLOCK_RUNS,
    BLOCK_SAMPLES,
    ORDER,
    Latency,
    LatencyFile,
    TimeCounts,
    side_by_side,
)
from vsparse.artifact.noise import NoiseReason
from vsparse.errors import InputError
from vsparse.stages.export.device.latency import MOST_RUNS, Counted, timed_block, turns_of, warmed_up
from vsparse.stages.export.device.noise import noise_of
from vsparse.stages.export.device.sensors import SAMPLE_S, Watch
from vsparse.stages.profile.machine import describe_machine
from vsparse.stages.profile.session import TimedModel, open_model

BLOCKS = 10
WARM_S = 0.5


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
    """Times two models side by side until each has at least `runs` runs and `seconds` of timed runs.

    As `alternate` does. Raises InputError as `profile_onnx` does.
    """
    _require_possible(runs, seconds, warmup, blocks)
    # Hashes come first: a runtime refuses weights in other files.
    hashes = {"dense": content_sha256(dense), "packed": content_sha256(packed)}
    opened = {"dense": open_model(dense, threads, batch), "packed": open_model(packed, threads, batch)}
    found = alternate(opened, hashes, runs=runs, seconds=seconds, warmup=warmup, blocks=blocks, progress=progress)
    return side_by_side(found["dense"], found["packed"])


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
    """Times models by name in turns, in the order given, until each has at least `runs` runs and `seconds` of timed runs.

    All are loaded, and warmed up first: `warmup` runs at least, and until the medians of three pieces agree within 3 %, or half a second
    is over; 0 leaves it out. Turns are as long for each, `blocks` at least; the ratio of one machine state is taken over two that are
    neighbours. Of more than 20,000 runs every 2nd, 4th, … is kept. `noise` of each says what made its times noisy. `hashes` are the
    content hashes of the ONNX files that the models are, or were made from.
    """
    _require_possible(runs, seconds, warmup, blocks)
    machine, watch = describe_machine(), Watch("/", alone=False)
    turn_ns, least = turns_of(runs, seconds, blocks)
    warm = {name: warmed_up(partial(_block, model), warmup, 0.0, WARM_S) for name, model in models.items()} if warmup else {}
    samples = {name: Counted() for name in models}
    spent = dict.fromkeys(models, 0.0)
    watch.timing()
    while True:
        for name, model in models.items():  # the first run of a turn, not timed, takes the caches back that another model has just used
            start, had = time.perf_counter(), time.process_time()
            block = timed_block(model.run, least, turn_ns, 0)
            wall_s, cpu_s = time.perf_counter() - start, time.process_time() - had
            samples[name].add(block, cpu_s, wall_s)
            spent[name] += max(math.fsum(block), turn_ns if len(block) < MOST_RUNS else 0) / 1e9
        if time.monotonic() - watch.looked > SAMPLE_S:
            watch.look()
        fewest, shortest = min(counted.thinned.total for counted in samples.values()), min(spent.values())
        done = min(fewest / runs, shortest / seconds if seconds else 1.0)
        if progress is not None:
            progress(min(1.0, done))
        if done >= 1:
            break
    conditions, order = watch.told(), tuple(models)
    found: dict[str, Latency] = {}
    for name, model in models.items():
        counted, warmed = samples[name], warm.get(name)
        own = {"model": model.path.name, "content_sha256": hashes[name], **model.settings}
        found[name] = _latency(counted, warmed, conditions, {**own, **_timing(counted, warmed, conditions), ORDER: order}, machine)
    return found


def _block(model: TimedModel, runs: int, turn_ns: int) -> list[int]:
    return timed_block(model.run, runs, turn_ns, 0)


def _timing(counted: Counted, warm: dict[str, Any] | None, conditions: dict[str, Any]) -> Conditions:
    """What is told of how a model was timed, beside what its runtime tells."""
    thinned, lengths = counted.thinned, sorted(counted.thinned.lengths)
    share = counted.cpu_s / counted.wall_s if counted.cpu_s is not None and counted.wall_s else None
    return {
        "warmup_runs": warm["runs"] if warm else 0,
        "warmup_stable": warm["stable"] if warm else None,
        "runs_timed": thinned.total,
        "samples_kept_every": thinned.every,
        "timed_s": counted.spent_s,
        "processor_share": share,
        "others_cores": conditions["timed"]["others_cores"],
        BLOCK_RUNS: lengths[len(lengths) // 2],
        BLOCK_SAMPLES: tuple(thinned.sizes),
    }


def _latency(
    counted: Counted, warm: dict[str, Any] | None, conditions: dict[str, Any], settings: Conditions, machine: Conditions
) -> Latency:
    found = counted.latency()
    return Latency(
        samples_ms=tuple(found["samples_ms"]),
        settings=settings,
        machine=machine,
        noise=tuple(NoiseReason(**one) for one in noise_of(found, conditions, warm)),
        all_runs_ns=TimeCounts(values=tuple(found["all_runs_ns"]["values"]), counts=tuple(found["all_runs_ns"]["counts"])),
    )


def _require_possible(runs: int, seconds: float, warmup: int, blocks: int) -> None:
    if runs < 1 or warmup < 0 or seconds < 0 or blocks < 1:
        raise InputError(
            f"runs is {runs}, warmup {warmup}, seconds {seconds} and blocks {blocks}; runs and blocks must be at least 1, nothing negative"
        )
