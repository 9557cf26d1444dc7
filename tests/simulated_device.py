"""A simulated accelerator: tensors that say `cuda:0` and hold their values on the processor, and a mode that refuses what costs or breaks.

`with simulated_device():` makes torch behave as if one CUDA device were there. Inside, factory functions with device="cuda" and
`.to("cuda")` give `DeviceTensor`s; autograd and optimisers work on them. Refused, each with the operation's name:

- operations that mix tensors of both devices (`MixedDevices`), but for the 0-dimensional processor tensors that CUDA takes;
- with `uploads_wait`, moves to the device, for which CUDA waits unless they are `non_blocking`;
- silent transfers (`HiddenTransfer`): `.item()`, `.tolist()`, `bool()`, `.cpu()`, and whatever has a shape that depends on values;
  `compute_device.reading_back` and `to_host` are the deliberate ones, which are allowed. `.numpy()` is never (a TypeError, as CUDA's);
- what CUDA refuses under `torch.use_deterministic_algorithms(True)` (`NoDeterministicKernel`), as torch's documentation lists it.

To C++ the tensors are on the device `meta`, the one beside the processor's that every build of torch has; Python is told `cuda:0`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

NAME = torch.device("cuda", 0)
INSIDE = torch.device("meta")
aten = torch.ops.aten


class DeviceRefusal(RuntimeError):
    """What the simulated device refuses."""


class MixedDevices(DeviceRefusal):
    """An operation on tensors of both devices."""


class HiddenTransfer(DeviceRefusal):
    """A transfer to the processor, or a wait for the device, outside of `reading_back`."""


class NoDeterministicKernel(DeviceRefusal):
    """An operation that CUDA refuses when deterministic algorithms are asked for."""


# What waits for the device, because the processor must know a value or a shape.
WAITS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten._unique,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.equal,
    aten.is_nonzero,
    aten.bincount,
    aten.histc,
    aten.allclose,
}
# https://pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html; kthvalue: aten/src/ATen/native/cuda/Sorting.cpp.
NOT_DETERMINISTIC = {
    aten.kthvalue,
    aten.histc,
    aten.put_,
    aten.put,
    aten.nll_loss2d_forward,
    aten.adaptive_max_pool2d_backward,
    aten._adaptive_avg_pool2d_backward,
    aten._adaptive_avg_pool3d_backward,
    aten.avg_pool3d_backward,
    aten.fractional_max_pool2d_backward,
    aten.fractional_max_pool3d_backward,
    aten.max_unpool2d,
    aten.max_unpool3d,
    aten.reflection_pad1d_backward,
    aten.reflection_pad2d_backward,
    aten.reflection_pad3d_backward,
    aten.grid_sampler_2d_backward,
    aten.grid_sampler_3d_backward,
    aten._ctc_loss_backward,
    aten.median,
    aten.nanmedian,
    aten.cumsum,
    aten.cumsum_,
    aten.bincount,
    aten.scatter_reduce,
    aten.scatter_reduce_,
}
# Operations that take 0-dimensional processor tensors beside their own, beyond those that work element by element.
TAKES_NUMBERS = {aten.fill_, aten.fill, aten.masked_fill, aten.masked_fill_, aten.index_put_, aten.index_put, aten._index_put_impl_}
# Indices on the processor are moved by torch itself.
TAKES_PROCESSOR_INDEX = {aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}
COPIES = {aten._to_copy, aten.copy_, aten.copy}


class DeviceTensor(torch.Tensor):
    """A tensor of the simulated device; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> DeviceTensor:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, layout=held.layout, device=INSIDE
        )
        made.held = held
        return made  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return NAME

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"DeviceTensor({self.held!r})"

    def get_device(self) -> int:
        return 0

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {NAME} device type tensor to numpy; use Tensor.cpu() to copy the tensor to host memory first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        _require_deliberate("tolist")
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _execute(func, args, kwargs or {})


def _require_deliberate(what: str) -> None:
    if torch.cuda.is_initialized() and torch.cuda.get_sync_debug_mode():
        raise HiddenTransfer(f"{what} waits for the device; do it in `compute_device.reading_back` or `to_host` if it must be")


def _mapped(change: Callable[[Any], Any], tree: Any) -> Any:
    """Returns lists, tuples and dictionaries with their leaves changed; a quarter of the time of torch's own."""
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind([_mapped(change, value) if type(value) in NESTED else change(value) for value in tree])
    if kind is dict:
        return {key: _mapped(change, value) if type(value) in NESTED else change(value) for key, value in tree.items()}
    return change(tree)


NESTED = (tuple, list, dict)


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in tree.values() if type(tree) is dict else tree:
        if isinstance(value, Tensor):
            found.append(value)
        elif type(value) in NESTED:
            found += _tensors(value)
    return found


def _is_device(value: Any) -> bool:
    return value is not None and torch.device(value).type in ("cuda", "meta")


def _check(func: Any, packet: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
    """Refuses what CUDA refuses, and what it does only by waiting."""
    ours = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    numbers = torch.Tag.pointwise in func.tags or packet in TAKES_NUMBERS or "_foreach_" in str(func)
    others = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor) and not (numbers and tensor.dim() == 0)]
    if not ours:
        return
    if packet in TAKES_PROCESSOR_INDEX and isinstance(args[0], DeviceTensor):
        for index in args[1]:
            if index is not None and not isinstance(index, DeviceTensor):
                _upload(func, {})
        others = [tensor for tensor in others if tensor is (args[2] if len(args) > 2 else None)]
    if others:
        raise MixedDevices(f"{func}: expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu")
    if packet in WAITS or (packet is aten.repeat_interleave and isinstance(args[0], DeviceTensor) and kwargs.get("output_size") is None):
        _require_deliberate(str(func))
    if packet in TAKES_PROCESSOR_INDEX:
        found = [index for index in args[1] if index is not None]
        masks = [index for index in found if index.dtype in (torch.bool, torch.uint8)]
        # One mask that is given one number is a masked_fill.
        filled = packet is not aten.index and len(found) == len(masks) == 1 and args[2].numel() == 1
        if masks and not filled:
            _require_deliberate(f"{func} with a mask")
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        raise MixedDevices(f"{func}: expected a 'cuda' device type for generator but found 'cpu'")
    if torch.are_deterministic_algorithms_enabled() and packet in NOT_DETERMINISTIC and _indeterminate(func, packet, args, kwargs):
        raise NoDeterministicKernel(
            f"{func} does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms(True)'"
        )


def _indeterminate(func: Any, packet: Any, args: Any, kwargs: Any) -> bool:
    if packet in (aten.cumsum, aten.cumsum_):
        return args[0].is_floating_point() or (kwargs.get("dtype") or torch.int64).is_floating_point
    if packet in (aten.median, aten.nanmedian):
        return "dim" in func._overloadname
    if packet is aten.bincount:
        return len(args) > 1 and args[1] is not None
    if packet in (aten.scatter_reduce, aten.scatter_reduce_):
        return "prod" in args
    return True


def _execute(func: Any, args: Any, kwargs: Any) -> Any:
    packet = func._overloadpacket
    if packet in COPIES:
        return _copy(func, packet, args, kwargs)
    tensors = _tensors((args, kwargs))
    _check(func, packet, args, kwargs, tensors)
    kwargs = dict(kwargs)
    made = _is_device(kwargs.get("device"))
    if made:
        kwargs["device"] = torch.device("cpu")
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            raise MixedDevices(f"{func}: expected a 'cuda' device type for generator but found 'cpu'")
    ours = made or any(isinstance(tensor, DeviceTensor) for tensor in tensors)
    if kwargs.get("device") is not None and not made:
        ours = False  # a factory that is told another device than that of the tensor it takes its options from
    result = func(*_mapped(_held, args), **_mapped(_held, kwargs))
    if not ours:
        return result
    wrapped = _mapped(lambda value: DeviceTensor(value) if isinstance(value, Tensor) else value, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, DeviceTensor) else value


def _copy(func: Any, packet: Any, args: Any, kwargs: Any) -> Any:
    if packet is aten._to_copy:
        device = kwargs.get("device")
        from_device = isinstance(args[0], DeviceTensor)
        to_device = from_device if device is None else _is_device(device)
        if from_device and not to_device:
            _require_deliberate(str(func))
        if to_device and not from_device:
            _upload(func, kwargs)
        inside = {**kwargs, "device": None if device is None else torch.device("cpu")}
        result = func(_held(args[0]), **inside)
        if result is args[0]:
            result = result.clone()
        return DeviceTensor(result) if to_device else result
    target, source = args[:2]
    if isinstance(source, DeviceTensor) and not isinstance(target, DeviceTensor):
        _require_deliberate(str(func))
    if isinstance(target, DeviceTensor) and not isinstance(source, DeviceTensor):
        _upload(func, {"non_blocking": args[2] if len(args) > 2 else kwargs.get("non_blocking")})
    result = func(_held(target), _held(source), *args[2:], **kwargs)
    return target if packet is aten.copy_ else DeviceTensor(result) if isinstance(target, DeviceTensor) else result


def _upload(func: Any, kwargs: dict[str, Any]) -> None:
    uploads[str(func)] += 1
    if _uploads_wait and not kwargs.get("non_blocking"):
        _require_deliberate(f"{func} from the processor")


# Whether moves to the device count as waits.
_uploads_wait = False
# How often values went from the processor to the device since the mode was entered, by operation.
uploads: Counter[str] = Counter()


class _Dispatch(TorchDispatchMode):
    """Executes what has no device tensor among its arguments but makes one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _execute(func, args, kwargs or {})


# Those that would leave their values out on the device that C++ is told.
FROM_VALUES = {torch.tensor, torch.as_tensor, torch.asarray}


class _Functions(TorchFunctionMode):
    """Turns `cuda` into the device that C++ is told; `DeviceTensor.device` says `cuda:0` again."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in FROM_VALUES and kwargs.get("device") is not None and _is_device(kwargs["device"]):
            del kwargs["device"]
            return func(*args, **kwargs).to(INSIDE)
        if func is torch.device:
            return func(*args, **kwargs)
        if func is torch.Tensor.new_tensor and isinstance(args[0], DeviceTensor) and kwargs.get("device") is None:
            return torch.tensor(args[1], dtype=kwargs.get("dtype") or args[0].dtype).to(INSIDE)
        if func is torch.Tensor.cuda:
            return args[0].to(INSIDE)
        if func is torch.Tensor.pin_memory:
            return args[0]
        return func(*_mapped(_inside, args), **_mapped(_inside, kwargs))


def _inside(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return INSIDE
    return INSIDE if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")) else value


@contextmanager
def simulated_device(count: int = 1, uploads_wait: bool = False) -> Iterator[None]:
    """Makes torch say for the block that `count` CUDA devices are there, all of them one; silent transfers are refused."""
    global _uploads_wait
    state = {"sync": 2}
    levels: dict[int | str, int] = {0: 0, 1: 1, 2: 2, "default": 0, "warn": 1, "error": 2}

    def set_mode(mode: int | str) -> None:
        state["sync"] = levels[mode]

    fakes: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: count,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "_lazy_init": lambda: None,
        "mem_get_info": lambda device=None: (2**32, 2**33),
        "empty_cache": lambda: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_name": lambda device=None: "simulated",
        "get_sync_debug_mode": lambda: state["sync"],
        "set_sync_debug_mode": set_mode,
    }
    uploads.clear()
    with ExitStack() as stack:
        for name, fake in fakes.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, fake))
        stack.enter_context(_Dispatch())
        stack.enter_context(_Functions())
        before, _uploads_wait = _uploads_wait, uploads_wait
        try:
            yield
        finally:
            _uploads_wait = before
