"""The device's trtexec, 8.5 to 11: its version decides its options."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any

from vsparse.stages.export.device.basics import Stop

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
            done = subprocess.run([path, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            raise Stop(3, f"{path} does not start ({error}); install JetPack's TensorRT again") from None
        self.help = done.stdout.decode("utf-8", "replace")
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
        return [*options, "--iterations={:d}".format(int(timing["runs"])), "--exportTimes=" + times]

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
        try:
            done = subprocess.run([self.path, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            raise Stop(1, f"trtexec did not {what} within {seconds:.0f} s; give --timeout more") from None
        except OSError as error:
            raise Stop(3, f"{self.path} does not start ({error}); install JetPack's TensorRT again") from None
        text = done.stdout.decode("utf-8", "replace")
        if done.returncode != 0 or "&&&& FAILED" in text:
            errors = [line for line in text.splitlines() if "[E]" in line] or text.splitlines()[-1:] or ["no output"]
            raise Stop(1, f"trtexec could not {what} (exit {done.returncode}): {errors[-1].strip()[:300]}")
        return text
