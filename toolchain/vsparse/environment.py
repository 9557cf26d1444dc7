"""What this machine can do, found out by doing it: each part is used, not only looked for."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vsparse.notebook import pairs
from vsparse.packages import PACKAGES, version_of

FindingStatus = Literal["ok", "absent", "broken"]
# What every build needs; the rest is for some of them.
REQUIRED = ("python", "torch", "onnx", "onnxruntime", *(name for name, _, _ in PACKAGES), "memory", "disk")
LEAST_MEMORY_BYTES = 2 * 2**30
LEAST_DISK_BYTES = 2**30


@dataclass(frozen=True)
class Finding:
    """One part of the machine: whether it works, what was tried, and what to do where it does not."""

    name: str
    status: FindingStatus
    version: str = ""
    detail: str = ""
    way_out: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns the finding as JSON values."""
        return asdict(self) | {"required": self.required}

    def _repr_html_(self) -> str:
        return pairs(self.name, (("status", self.status), ("version", self.version), ("tried", self.detail), ("way out", self.way_out)))

    @property
    def required(self) -> bool:
        """Whether every build needs it; `vsparse doctor` ends with 3 exactly where such a part does not work."""
        return self.name in REQUIRED


class _Absent(Exception):
    """A part that is not there; its text says what is missing, its second argument what to do."""


def examine() -> list[Finding]:
    """Tries every part and returns one finding each, in a fixed order; never raises. Takes a few seconds (imports)."""
    return [_try(name, probe, way_out) for name, probe, way_out in PROBES]


def is_ready(findings: list[Finding]) -> bool:
    """Whether everything that each build needs works."""
    return all(finding.status == "ok" for finding in findings if finding.required)


def _try(name: str, probe: Callable[[], tuple[str, str]], way_out: str) -> Finding:
    try:
        found, detail = probe()
        return Finding(name, "ok", found, detail)
    except _Absent as reason:
        return Finding(name, "absent", "", str(reason), way_out)
    except ImportError as error:
        status: FindingStatus = "absent" if isinstance(error, ModuleNotFoundError) else "broken"
        return Finding(name, status, version_of(name), _line(error), way_out)
    except Exception as error:  # a doctor that falls ill helps nobody: whatever goes wrong is the finding
        return Finding(name, "broken", version_of(name), f"{type(error).__name__}: {_line(error)}", way_out)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _python() -> tuple[str, str]:
    if sys.version_info < (3, 11):  # noqa: UP036 (a wheel may be forced into an older Python)
        raise RuntimeError("Python 3.11 or newer is needed")
    return platform.python_version(), f"{sys.executable} on {platform.system()} {platform.machine()}"


def _torch() -> tuple[str, str]:
    import torch

    total = float((torch.arange(4.0) @ torch.arange(4.0)).item())
    if total != 14.0:
        raise RuntimeError(f"0·0 + 1·1 + 2·2 + 3·3 came out as {total}")
    return str(torch.__version__), "CUDA is usable" if torch.cuda.is_available() else "computed a dot product on the CPU"


def _cuda() -> tuple[str, str]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise _Absent("no CUDA device is visible" if torch.version.cuda else f"torch {torch.__version__} is built without CUDA")
    found = []
    for number in range(count):
        device = torch.device("cuda", number)
        total = float((torch.arange(4.0, device=device) @ torch.arange(4.0, device=device)).item())
        if total != 14.0:
            raise RuntimeError(f"0·0 + 1·1 + 2·2 + 3·3 came out as {total} on {device}")
        found.append(f"{device}: {torch.cuda.get_device_name(device)}, {torch.cuda.mem_get_info(device)[1] / 2**30:.0f} GiB")
    return str(torch.version.cuda), "; ".join(found)


def _onnx_model() -> bytes:
    """A model that returns relu(2·x − 1)."""
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "two"], ["a"]),
            helper.make_node("Sub", ["a", "one"], ["b"]),
            helper.make_node("Relu", ["b"], ["y"]),
        ],
        "doctor",
        [value("x", TensorProto.FLOAT, [3])],
        [value("y", TensorProto.FLOAT, [3])],
        [helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0]), helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


def _onnx() -> tuple[str, str]:
    import onnx

    onnx.checker.check_model(onnx.load_from_string(_onnx_model()), full_check=True)
    return str(onnx.__version__), "made a model and checked it"


def _onnxruntime() -> tuple[str, str]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_onnx_model(), options, providers=["CPUExecutionProvider"])
    got = session.run(None, {"x": np.array([0.0, 1.0, 2.0], np.float32)})[0].tolist()
    if got != [0.0, 1.0, 3.0]:
        raise RuntimeError(f"relu(2·x − 1) of 0, 1, 2 came out as {got}, not [0, 1, 3]")
    return str(onnxruntime.__version__), f"ran a model and got the right numbers; providers: {', '.join(session.get_providers())}"


def _integer_kernels() -> tuple[str, str]:
    from vsparse.processor import this_processor
    from vsparse.reading.integer_kernels import adds_bytes_exactly

    if not adds_bytes_exactly():
        raise _Absent(
            f"kernels on this {this_processor()} add two products of 8 bits in 16, with saturation: files with weights of 8 bits may "
            "compute another function here, and int8-exact is refused"
        )
    return "", "add products of 8 bits exactly: files with weights of 8 bits are certified and audited here under int8-exact"


def _auto_lirpa() -> tuple[str, str]:
    from vsparse.second_opinion import absence, fused_self_test, self_test
    from vsparse.stages.verify.cross_check import operators_without

    if absence():
        raise _Absent("not installed, and no build needs it: the cross-check is not run, and everything else is")
    bound, fused = self_test(), fused_self_test()
    refused = operators_without()
    detail = f"computed the CROWN bound {bound:.6g} of a small network and the fused loss {fused:.6g} of another, as by hand"
    if refused:
        detail += f"; it has no bounds of {', '.join(refused)}, so that networks with them get no second opinion"
    return version_of("auto_LiRPA"), detail


def _c_compiler() -> tuple[str, str]:
    name = next((found for found in (os.environ.get("CC", ""), "cc", "gcc", "clang") if found and shutil.which(found)), "")
    if not name:
        raise _Absent("none of cc, gcc and clang is on the PATH, and CC names none")
    with tempfile.TemporaryDirectory(prefix="vsparse-doctor-") as folder:
        source, program = Path(folder) / "three.c", Path(folder) / "three"
        source.write_text('#include <stdio.h>\nint main(void) { float a = 0.5f;\nprintf("%d", (int)(a * 84)); return 0; }\n')
        _output([name, "-O2", "-ffp-contract=off", "-o", str(program), str(source)])
        got = _output([str(program)])
    if got != "42":
        raise RuntimeError(f"a three-line program printed {got[:40]!r}, not 42")
    return _output([name, "--version"]).splitlines()[0], f"{shutil.which(name)} compiled and ran a three-line program"


def _cross_compiler() -> tuple[str, str]:
    from vsparse.errors import UnavailableError
    from vsparse.stages.export.firmware.link import find_cross_compiler

    try:
        path = find_cross_compiler()
    except UnavailableError as error:
        raise _Absent(str(error).partition(",")[0]) from error
    with tempfile.TemporaryDirectory(prefix="vsparse-doctor-") as folder:
        source, made = Path(folder) / "half.c", Path(folder) / "half.o"
        source.write_text("#include <float.h>\n#include <stddef.h>\nfloat half(float a) { return a * 0.5f; }\n")
        _output([path, "-mcpu=cortex-m4", "-mthumb", "-O2", "-std=c99", "-c", str(source), "-o", str(made)])
    return _output([path, "--version"]).splitlines()[0], f"{path} compiled a line for a Cortex-M4: builds for one say flash, RAM, stack"


def _emulator() -> tuple[str, str]:
    from vsparse.errors import UnavailableError
    from vsparse.stages.export.firmware.emulate import find_emulator

    try:
        path = find_emulator()
    except UnavailableError as error:
        raise _Absent(str(error).partition(",")[0]) from error
    return _output([path, "--version"]).splitlines()[0], f"{path}: executes firmware of a Cortex-M here, and counts its instructions"


def _eva() -> tuple[str, str]:
    from vsparse.errors import UnavailableError
    from vsparse.stages.export.c_source.eva import find_eva

    try:
        path = find_eva()
    except UnavailableError as error:
        raise _Absent(str(error).partition(",")[0]) from error
    return _output([path, "-version"]).strip(), f"{path}: looks for undefined behaviour in the C (export.c_analysis_seconds)"


def _tensorrt() -> tuple[str, str]:
    from vsparse.errors import UnavailableError
    from vsparse.stages.export.tensorrt_engine import import_tensorrt, open_builder

    try:
        trt = import_tensorrt()
    except UnavailableError as error:
        raise (_Absent(str(error)) if isinstance(error.__cause__, ModuleNotFoundError) else RuntimeError(str(error))) from error
    try:
        open_builder(trt, trt.Logger(trt.Logger.ERROR))
    except UnavailableError as error:
        raise _Absent(str(error)) from error
    return str(trt.__version__), "made a builder: engines can be built here"


def _trtexec() -> tuple[str, str]:
    from vsparse.stages.export.device.basics import Stop
    from vsparse.stages.export.device.trtexec import Trtexec, find_trtexec

    try:
        path = find_trtexec("/")
    except Stop as stop:
        raise _Absent(str(stop).partition(";")[0]) from stop
    return ".".join(str(n) for n in Trtexec(path).version), path


def _ssh() -> tuple[str, str]:
    missing = [name for name in ("ssh", "scp") if shutil.which(name) is None]
    if missing:
        raise _Absent(f"{' and '.join(missing)} not on the PATH")
    done = subprocess.run(["ssh", "-V"], capture_output=True, text=True, timeout=20, check=True)
    return (done.stderr or done.stdout).strip().split(",")[0], str(shutil.which("ssh"))


def _cores() -> tuple[str, str]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return "", f"{usable} usable of {os.cpu_count()}; load average {os.getloadavg()[0]:.1f}"


def _memory() -> tuple[str, str]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total < LEAST_MEMORY_BYTES:
        raise RuntimeError(f"{total / 2**30:.1f} GiB; training wants at least {LEAST_MEMORY_BYTES / 2**30:.0f}")
    return "", f"{total / 2**30:.1f} GiB"


def _disk() -> tuple[str, str]:
    free = shutil.disk_usage(Path.cwd()).free
    if free < LEAST_DISK_BYTES:
        raise RuntimeError(f"{free / 2**30:.2f} GiB free here; an artifact and its stages want at least {LEAST_DISK_BYTES / 2**30:.0f}")
    return "", f"{free / 2**30:.1f} GiB free in this folder"


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['no reason given'])[0]}")
    return done.stdout


PROBES: tuple[tuple[str, Callable[[], tuple[str, str]], str], ...] = (
    ("python", _python, "install Python 3.11 or newer, and make the environment again"),
    ("torch", _torch, "pip install torch"),
    ("cuda", _cuda, 'needed for train.device = "cuda" alone: a CUDA device, its driver and a torch that is built for it'),
    ("onnx", _onnx, "pip install onnx"),
    ("onnxruntime", _onnxruntime, "pip install onnxruntime"),
    *PACKAGES,
    (
        "int8 kernels",
        _integer_kernels,
        "needed for --contract int8-exact alone: a processor with VNNI, or an Arm one; files that a build makes for ONNX Runtime have "
        "weights of 7 bits, whose sums are exact everywhere (quantise others with reduce_range=True, and certify them under int8)",
    ),
    (
        "auto_LiRPA",
        _auto_lirpa,
        "optional: pip install --no-deps auto_LiRPA==0.3 appdirs tqdm; needed for the cross-check of a build, and for "
        'train.engine = "auto_lirpa", alone',
    ),
    ("c compiler", _c_compiler, "apt-get install gcc libc6-dev; needed for C export alone"),
    (
        "arm-none-eabi-gcc",
        _cross_compiler,
        "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi; needed for flash, RAM and stack of a build for a microcontroller alone",
    ),
    ("qemu-system-arm", _emulator, "apt-get install qemu-system-arm; needed to execute and count instructions of a Cortex-M alone"),
    ("frama-c", _eva, "apt-get install frama-c-base; needed for export.c_analysis_seconds alone"),
    ("tensorrt", _tensorrt, "needed only to build engines on this machine; otherwise the device/ folder builds them on the device"),
    ("trtexec", _trtexec, "needed only on the device, where JetPack brings it"),
    ("ssh", _ssh, "apt-get install openssh-client; needed for vsparse profile --host alone"),
    ("cores", _cores, ""),
    ("memory", _memory, "close other programs, or use a machine with more memory"),
    ("disk", _disk, "make room, or work in another folder"),
)
