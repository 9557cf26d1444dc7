"""Latency of one ONNX file in ONNX Runtime on this machine's CPU."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vsparse.artifact.hashes import content_sha256
from vsparse.errors import InputError
from vsparse.stages.export.device.latency import Thinned
from vsparse.stages.profile.latency import Latency
from vsparse.stages.profile.machine import describe_machine
from vsparse.stages.profile.session import open_model

Progress = Callable[[float], None]  # called with the share done, 0 to 1


def profile_onnx(
    path: Path,
    runs: int = 300,
    seconds: float = 2.0,
    warmup: int = 50,
    threads: int = 1,
    batch: int = 1,
    progress: Progress | None = None,
) -> Latency:
    """Times a model: after `warmup` runs, until there are `runs` timed ones and `seconds` of them, whichever is later.

    One process, `threads` intra-op threads, no spinning, CPU provider only; the input stays the same. Times are wall-clock ms of
    `InferenceSession.run`, input and output as numpy arrays. Of more than 20,000 runs every
    2nd, 4th, … is kept. Raises InputError for a model that cannot be loaded or run
    and for settings that measure nothing.
    """
    if runs < 1 or warmup < 0 or seconds < 0:
        raise InputError(f"runs is {runs}, warmup {warmup} and seconds {seconds}; at least one run, and nothing negative")
    content = content_sha256(path)
    before = describe_machine()
    model = open_model(path, threads, batch)
    for _ in range(warmup):
        model.run_ms()
    samples = Thinned()
    start = time.perf_counter()
    while True:
        samples.add(model.run_ms())
        elapsed = time.perf_counter() - start
        if progress is not None and samples.total % 16 == 0:
            progress(min(1.0, samples.total / runs, elapsed / seconds if seconds else 1.0))
        if samples.total >= runs and elapsed >= seconds:
            break
    if progress is not None:
        progress(1.0)
    settings = {
        "model": path.name,
        "content_sha256": content,
        **model.settings,
        "warmup_runs": warmup,
        "runs_timed": samples.total,
        "samples_kept_every": samples.every,
        "process_memory_peak_bytes": peak_memory_bytes(),
    }
    return Latency(tuple(samples.kept), settings, before)


def peak_memory_bytes() -> int:
    """Returns the largest resident set this process has had so far, in bytes (an upper bound on what the model needs)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def stated(settings: dict[str, Any]) -> str:
    """Returns the one line that has to stand beside every latency: runtime, provider, threads, batch."""
    threads = f"{settings['threads_intra_op']} thread(s), batch {settings['batch']}"
    return f"{settings['runtime']} {settings['runtime_version']} ({', '.join(settings['providers'])}), {threads}"
