"""One model through ONNX Runtime, where the device has it."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from vsparse.stages.export.device.audit import audit
from vsparse.stages.export.device.basics import Stop, gate, say
from vsparse.stages.export.device.latency import Thinned, latency_of


def measure_onnxruntime(folder: str, model: dict[str, Any], timing: dict[str, Any]) -> dict[str, Any]:
    """Audits and times one model with the onnxruntime package, where that is installed."""
    try:
        import numpy  # noqa: F401 (onnxruntime's own need; its absence deserves the same sentence)
        import onnxruntime
    except ImportError as error:
        raise Stop(3, f"{sys.executable} does not import onnxruntime ({error}); `pip install onnxruntime`, then run again") from None
    try:
        return time_session(onnxruntime, folder, model, timing)
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise Stop(1, "{} does not run in ONNX Runtime {}: {}".format(model["file"], onnxruntime.__version__, error)) from None


def time_session(onnxruntime: Any, folder: str, model: dict[str, Any], timing: dict[str, Any]) -> dict[str, Any]:
    import numpy

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = int(timing["threads"]), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(os.path.join(folder, model["file"]), options, providers=["CPUExecutionProvider"])
    results = []
    for probe in model["probes"]:
        with open(os.path.join(folder, probe["file"]), "rb") as stream:
            data = numpy.frombuffer(stream.read(), dtype="<f4").reshape([1] + model["input_shape"])
        results.append([float(v) for v in session.run([model["output"]], {model["input"]: data})[0].reshape(-1)])
    examined = audit(model, results, 0.0) if results else gate("audit", None, "the folder holds no probes")
    feed = {model["input"]: numpy.random.default_rng(0).random([int(timing["batch"])] + model["input_shape"], dtype=numpy.float32)}
    say("timing {} …".format(model["file"]))
    start = time.perf_counter()
    while (time.perf_counter() - start) * 1000 < timing["warmup_ms"]:
        session.run(None, feed)
    samples = Thinned()
    start = time.perf_counter()
    while samples.total < timing["runs"] or time.perf_counter() - start < timing["seconds"]:
        begin = time.perf_counter()
        session.run(None, feed)
        samples.add((time.perf_counter() - begin) * 1000)
    how = {"threads_intra_op": int(timing["threads"]), "spinning": False, "providers": session.get_providers()}
    return {"settings": how, "gates": [examined], "latency": latency_of(samples), "power": None}
