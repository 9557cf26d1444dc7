"""The processor or accelerator that tensors are computed on: chosen by name, once, before any work (docs/reference-recipe.md)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vsparse.errors import InputError, UnavailableError

# Variables by which cuBLAS (13.0 and later) computes products of one format by those of a shorter one.
EMULATION = ("CUBLAS_EMULATE_DOUBLE_PRECISION", "CUBLAS_EMULATE_SINGLE_PRECISION")


def choose_device(name: str, key: str) -> torch.device:
    """Returns the device that `name` (`cpu`, `cuda`, `cuda:N` or `auto`) stands for here; `key` is the recipe's, for the message.

    `auto` is the first CUDA device where there is one, else the processor. `cuda` is the current one, by number, so that two
    names of one device are equal. UnavailableError for a device that is not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        built = "no CUDA device is visible" if torch.version.cuda else f"this torch ({torch.__version__}) is built without CUDA"
        raise UnavailableError(f'{key} = "{name}", but {built}; set {key} = "cpu", or "auto" to take what is there')
    number = torch.device(name).index
    number = torch.cuda.current_device() if number is None else number
    if number >= count:
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise UnavailableError(f'{key} = "{name}", but there is only {there}; set {key} to one of them, or to "auto"')
    return torch.device("cuda", number)


def exact_products() -> None:
    """Forbids the short formats that CUDA may use inside float32 products (TF32, reduced-precision sums), for this process.

    Bounds rest on each product being rounded in its own format (docs/numerics.md, section 5.1).
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


@contextmanager
def reading_back(why: str) -> Iterator[None]:
    """A block that may wait for the device and read values of it; `why` says what for, to whoever reads the code.

    Every wait stops the queue of a device, so all of them stand in such a block or in `to_host`: under torch's own
    `torch.cuda.set_sync_debug_mode("error")`, which these suspend, any other is an error.
    """
    before = torch.cuda.get_sync_debug_mode() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]
    if not before:
        yield
        return
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def to_host(tensor: Tensor) -> Tensor:
    """Returns the values of a tensor on the processor, without its history: itself where it is there, else a copy."""
    with reading_back("its values are asked for"):
        return tensor.detach().cpu()


def device_label(device: torch.device) -> str:
    """Returns what a device is called in messages and keys: `cpu`, or `cuda` and the name of its model, whichever number it has."""
    return device.type if device.type != "cuda" else f"cuda ({torch.cuda.get_device_name(device)})"


@contextmanager
def accelerated(device: torch.device) -> Iterator[None]:
    """A block whose float64 bounds on an accelerator hold (docs/numerics.md, section 5.4), and whose results repeat; without effect on cpu.

    Products are exact in their format, and libraries choose kernels whose sums are added in the same order in every run. InputError where
    cuBLAS was told to imitate float64 products by others, which errs more than sums of rounded products do.
    """
    if device.type == "cpu":
        yield
        return
    for name in EMULATION:
        if os.environ.get(name, "0") not in ("", "0"):
            raise InputError(f"{name} is set: products would not be those of {name.split('_')[2].lower()} precision; unset it")
        os.environ[name] = "0"  # read when cuBLAS starts; a later version may emulate unless told not to
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.cuda.set_device(device)
    exact_products()
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # set by the module's own class
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            # Of the few operations without repeatable kernels, all are exact or in a search.
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
            yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
