"""Compiles a network in C on this machine and calls it: what an audit of its contract executes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from vsparse.c_prefix import DEFAULT_PREFIX
from vsparse.errors import InputError, UnavailableError
from vsparse.files import read_bytes
from vsparse.stages.export.c_source.weights import beside, units

OPTIONS = ("-O3", "-std=c99", "-ffp-contract=off")
NATIVE = (*OPTIONS, "-march=native")
SECONDS = 600


def find_compiler() -> str:
    """Returns the path of a C compiler; UnavailableError where this machine has none."""
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path is not None:
            return path
    raise UnavailableError("no C compiler (cc, gcc or clang) is on the path, so model.c cannot be compiled here; install one")


def compiler_version() -> str:
    """Returns the first line that the C compiler says about itself, or `absent`: what an audit of model.c rests on."""
    try:
        said = subprocess.run([find_compiler(), "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    except (UnavailableError, OSError, subprocess.TimeoutExpired):
        return "absent"
    return said.splitlines()[0] if said else "unknown"


class CompiledModel:
    """model.c or model.int8.c as a shared library, loaded; its files live until `close`. A context manager.

    `function` is its `vsparse_logits`: pointers to the float32 values of one input and of its logits.
    """

    def __init__(
        self, source: Path, input_shape: Sequence[int], classes: int, options: Sequence[str] = OPTIONS, prefix: str = DEFAULT_PREFIX
    ) -> None:
        """Compiles `source`, with the other files beside it; UnavailableError without a compiler, InputError where it refuses the file."""
        compiler = find_compiler()
        self.input_shape, self.classes = tuple(input_shape), classes
        self._folder = tempfile.TemporaryDirectory(prefix="vsparse-c-")
        library = Path(self._folder.name) / "model.so"
        for path in beside(source):
            (Path(self._folder.name) / path.name).write_bytes(read_bytes(path, "C source", 2**30))
        command = [compiler, *options, "-shared", "-fPIC", *[path.name for path in units(source)], "-o", library.name]
        try:
            done = subprocess.run(command, cwd=self._folder.name, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            self.close()
            raise InputError(f"{source} did not compile within {SECONDS} s; compile it with -O1, or deploy the ONNX file") from error
        if done.returncode:
            self.close()
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise InputError(f"{source} does not compile ({first.strip()}); export it again, or use another compiler")
        self.library = ctypes.CDLL(str(library))
        self.function = getattr(self.library, f"{prefix}_logits")
        self.function.restype = None

    def logits(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the logits [n, classes] of inputs [n, *input_shape], one after the other."""
        if inputs.dtype != np.float32 or inputs.shape[1:] != self.input_shape:
            raise InputError(f"model.c takes float32 inputs of shape {list(self.input_shape)}, not {inputs.dtype} {list(inputs.shape[1:])}")
        rows = np.ascontiguousarray(inputs).reshape(len(inputs), prod(self.input_shape))
        out = np.zeros((len(rows), self.classes), np.float32)
        pointer = ctypes.POINTER(ctypes.c_float)
        for i in range(len(rows)):
            self.function(rows[i].ctypes.data_as(pointer), out[i].ctypes.data_as(pointer))
        return out

    def close(self) -> None:
        """Removes the library's files."""
        self._folder.cleanup()

    def __enter__(self) -> CompiledModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
