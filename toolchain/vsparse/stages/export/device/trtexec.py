"""The device's trtexec, 8.5 to 11: its version decides its options."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import time
from typing import Any

from vsparse.stages.export.device.basics import Stop, clean, finished, started

# TensorRT 8 chooses among the precisions that are on. int8 is where the file's own QuantizeLinear say, and nowhere else.
BEFORE_STRONG_TYPING = {
    "fp16": ["--fp16", "--precisionConstraints=obey", "--layerPrecisions=*:fp16", "--layerOutputTypes=*:fp16"],
    "int8": ["--int8"],
}


def find_trtexec(root: str) -> str:
    for path in (os.path.join(root, "usr/src/tensorrt/bin/trtexec"), shutil.which("trtexec") or ""):
        if path and os.access(path, os.X_OK):
            return path
    raise Stop(3, "trtexec is not in /usr/src/tensorrt/bin nor on the PATH; install JetPack's TensorRT (package tensorrt), then run again")


def trtexec_version(text: str) -> tuple[int, int, int]:
    """Reads TensorRT's version from trtexec's banner ([TensorRT v100300] is 10.3.0, v8502 is 8.5.2)."""
    plain = re.search(r"TensorRT version: (\d+)\.(\d+)\.(\d+)", text)
    if plain:
        return int(plain.group(1)), int(plain.group(2)), int(plain.group(3))
    banner = re.search(r"\[TensorRT v(\d{4,6})\]", text)
    if not banner:
        raise Stop(3, "trtexec does not say its TensorRT version; install JetPack's TensorRT, then run again")
    n = int(banner.group(1))
    return (n // 1000, n // 100 % 10, n % 100) if n < 10000 else (n // 10000, n // 100 % 100, n % 100)


class Trtexec:
    """The device's trtexec: its version decides its options."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.help = finished([path, "--help"], 60)[1]
        except (OSError, subprocess.SubprocessError) as error:
            raise Stop(3, f"{path} does not start ({error}); install JetPack's TensorRT again") from None
        self.version = trtexec_version(self.help)

    def build_options(self, model: dict[str, Any], onnx: str, engine: str, layers: str, shape: str, cache: str) -> list[str]:
        options = ["--onnx=" + onnx, "--saveEngine=" + engine]
        if self.version[0] < 10:
            # No strong typing before 10: without a precision flag everything is fp32. cuDNN's kernels do not name their algorithm.
            options += ["--buildOnly", "--tacticSources=-CUDNN", *BEFORE_STRONG_TYPING.get(model["precision"], [])]
        else:
            options.append("--skipInference")
            if self.version[0] == 10 or "--stronglyTyped" in self.help:  # from 11 on there is nothing else
                options.append("--stronglyTyped")
        if model.get("structured_sparsity"):  # `force` would change weights; `enable` looks for the pattern in them
            options.append("--sparsity=enable")
        options += ["--noTF32", "--profilingVerbosity=detailed", "--exportLayerInfo=" + layers, "--timingCacheFile=" + cache]
        return options + [f"--{which}Shapes={shape}" for which in ("min", "opt", "max")]

    def info_options(self, engine: str, layers: str, shape: str) -> list[str]:
        options = ["--loadEngine=" + engine, "--shapes=" + shape, "--profilingVerbosity=detailed", "--exportLayerInfo=" + layers]
        return [*options, "--iterations=1", "--warmUp=0", "--duration=0"]

    def time_options(self, engine: str, times: str, shape: str, timing: dict[str, Any]) -> list[str]:
        options = ["--loadEngine=" + engine, "--shapes=" + shape]
        if self.version[0] < 11:  # defaults from 11 on, so that numbers of both compare
            options += ["--useCudaGraph", "--noDataTransfers", "--useSpinWait"]
        if self.version[0] >= 10:
            options.append("--percentile=50,90,95,99")
        options += ["--warmUp={:d}".format(int(timing["warmup_ms"])), "--duration={:g}".format(timing["seconds"])]
        return [*options, "--iterations={:d}".format(int(timing["runs"] + timing["warmup_runs"])), "--exportTimes=" + times]

    def layer_options(self, engine: str, profile: str, shape: str) -> list[str]:
        options = [
            "--loadEngine=" + engine,
            "--shapes=" + shape,
            "--dumpProfile",
            "--exportProfile=" + profile,
            "--warmUp=200",
            "--duration=2",
        ]
        return options + (["--separateProfileRun"] if self.version[0] < 11 else [])

    def probe_options(self, engine: str, shape: str, loads: str, out: str) -> list[str]:
        options = ["--loadEngine=" + engine, "--shapes=" + shape, "--loadInputs=" + loads, "--exportOutput=" + out]
        options += ["--iterations=1", "--warmUp=0", "--duration=0"]
        return options + (["--includeDataTransfers"] if self.version[0] >= 11 else [])

    def run(self, options: list[str], what: str, seconds: float) -> str:
        """Runs trtexec; a failure becomes a sentence with its own last error."""
        return self.run_timed(options, what, seconds).text

    def run_timed(self, options: list[str], what: str, seconds: float) -> Done:
        """Does as `run`, and tells when inference began and ended as far as the output says so, and how much memory was taken."""
        try:
            process = started([self.path, *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except OSError as error:
            raise Stop(3, f"{self.path} does not start ({error}); install JetPack's TensorRT again") from None
        try:
            done = Done(process, seconds)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            process.stdout.close()
        if done.late:
            process.kill()
            process.wait()
            raise Stop(1, f"trtexec did not {what} within {seconds:.0f} s; give --timeout more")
        if done.code == -9:
            raise Stop(1, f"trtexec was killed before it could {what}, as the kernel does where memory is short; end other programs")
        if done.code != 0 or "&&&& FAILED" in done.text:
            lines = done.text.splitlines()
            errors = [line for line in lines if "[E]" in line] or lines[-1:] or ["no output"]
            raise Stop(1, f"trtexec could not {what} (exit {done.code}): {clean(errors[-1])}")
        return done


class Done:
    """A process read to its end: text, exit code, peak memory, and the times of the lines around inference."""

    def __init__(self, process: Any, seconds: float) -> None:
        data, deadline, self.late = b"", time.monotonic() + seconds, False
        self.began: float | None = None
        self.ended: float | None = None
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                self.late = True
                return
            if not select.select([process.stdout], [], [], min(left, 1.0))[0]:
                continue
            more = os.read(process.stdout.fileno(), 1 << 16)
            if not more:
                break
            now, seen = time.monotonic(), len(data)
            data = (data + more)[-(1 << 24) :]
            if self.began is None and b"Starting inference" in data[max(0, seen - 40) :]:
                self.began = now
                more = more.rpartition(b"Starting inference")[2].partition(b"\n")[2]
            if self.began is not None and self.ended is None and b"\n" in more:
                self.ended = now  # the first line after inference
        _, status, usage = os.wait4(process.pid, 0)
        self.closed = time.monotonic()
        self.code = process.returncode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        self.text, self.peak_bytes = data.decode("utf-8", "replace"), usage.ru_maxrss * 1024

    def window(self, span: float | None) -> tuple[tuple[float, float] | None, str]:
        """Returns when the timed runs, which took `span` seconds in all, were executed, and how that is known."""
        if span is None:
            return None, "trtexec told no times of starting"
        end = self.ended if self.ended is not None else self.closed
        start = end - span if self.began is None else max(self.began, end - span)
        how = "the lines that trtexec prints before and after inference" if self.ended is not None else "the end of trtexec"
        return (start, end), f"timed runs alone, found by {how}"
