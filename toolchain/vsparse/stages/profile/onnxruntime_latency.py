"""Latency of one ONNX file in ONNX Runtime on this machine's CPU."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vsparse.artifact.hashes import content_sha256
from vsparse.artifact.latency import Latency
from vsparse.stages.profile.comparison import alternate
from vsparse.stages.profile.session import open_model


def profile_onnx(
    path: Path,
    runs: int = 300,
    seconds: float = 2.0,
    warmup: int = 50,
    threads: int = 1,
    batch: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Latency:
    """Times a model: warmed up as `alternate` does, in ten turns at least, until there are `runs` timed runs and `seconds` of them.

    One process, `threads` intra-op threads, no spinning, CPU provider only; the input stays the same. Times are wall-clock ms of
    `InferenceSession.run`, input and output as numpy arrays. Of more than 20,000 runs every
    2nd, 4th, … is kept. Raises InputError for a model that cannot be loaded or run
    and for settings that measure nothing.
    """
    content = content_sha256(path)
    model = open_model(path, threads, batch)
    found = alternate({path.name: model}, {path.name: content}, runs=runs, seconds=seconds, warmup=warmup, progress=progress)[path.name]
    return found.model_copy(update={"settings": {**found.settings, "process_memory_peak_bytes": peak_memory_bytes()}})


def peak_memory_bytes() -> int:
    """Returns the largest resident set this process has had so far, in bytes (an upper bound on what the model needs)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def stated(settings: Mapping[str, Any]) -> str:
    """Returns the one line that has to stand beside every latency: runtime, provider, threads, batch."""
    threads = f"{settings['threads_intra_op']} thread(s), batch {settings['batch']}"
    return f"{settings['runtime']} {settings['runtime_version']} ({', '.join(settings['providers'])}), {threads}"
