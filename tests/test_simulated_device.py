"""The simulated accelerator itself: it computes what the processor does, and refuses each thing that a real one refuses or waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simulated_device import DeviceTensor, HiddenTransfer, MixedDevices, NoDeterministicKernel, simulated_device, uploads
from vsparse.compute_device import choose_device, reading_back, to_host


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with simulated_device():
        yield


def there(*shape: int) -> Tensor:
    return torch.arange(1.0, 1 + int(np.prod(shape)), device="cuda").view(shape)


MAKERS: dict[str, Callable[[], Tensor]] = {
    "zeros": lambda: torch.zeros(3, device="cuda"),
    "tensor": lambda: torch.tensor([1.0, 2.0], device="cuda:0"),
    "as_tensor": lambda: torch.as_tensor([1, 2], device=torch.device("cuda", 0)),
    "full": lambda: torch.full((2,), 3, device="cuda"),
    "arange": lambda: torch.arange(3, device="cuda"),
    "to": lambda: torch.arange(3).to("cuda"),
    "to with a type": lambda: torch.arange(3).to("cuda", torch.float64),
    "to as a keyword": lambda: torch.arange(3).to(device="cuda", non_blocking=True),
    "cuda": lambda: torch.from_numpy(np.ones(2)).cuda(),
    "like": lambda: torch.zeros_like(there(2)),
    "new": lambda: there(2).new_zeros(4),
    "view": lambda: there(4)[1:3],
    "result": lambda: there(2) @ there(2, 2),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_tensor_that_is_made_there_says_so(name: str) -> None:
    made = MAKERS[name]()
    assert isinstance(made, DeviceTensor)
    assert made.device == torch.device("cuda", 0) == choose_device("cuda", "train.device")
    assert made.is_cuda


def test_values_are_those_of_the_processor() -> None:
    assert to_host(MAKERS["tensor"]()).tolist() == [1, 2]
    assert to_host(MAKERS["to with a type"]()).tolist() == [0, 1, 2]
    assert to_host(MAKERS["view"]()).numpy().tolist() == [2, 3]
    assert torch.zeros(2).new_ones(2).device.type == there(2).new_ones(2, device="cpu").device.type == "cpu"


def test_views_and_in_place_operations_reach_what_they_view() -> None:
    base = there(2, 3)
    base.view(-1)[1:3] = 0
    base[1].add_(1).view(-1).mul_(2)
    assert to_host(base).tolist() == [[1, 0, 0], [10, 12, 14]]


MIXTURES: dict[str, Callable[[], Any]] = {
    "sum": lambda: there(2) + torch.ones(2),
    "product": lambda: there(2, 2) @ torch.ones(2, 2),
    "in place": lambda: torch.ones(2).add_(there(2)),
    "cat": lambda: torch.cat([there(2), torch.ones(2)]),
    "stack of numbers": lambda: torch.stack([there(1)[0], torch.tensor(1.0)]),
    "processor indexed from there": lambda: torch.ones(3)[torch.tensor([0, 1], device="cuda")],
    "values that are put": lambda: there(3).__setitem__(torch.tensor([0, 1]), torch.ones(2)),
    "where": lambda: torch.where(torch.ones(2) > 0, there(2), there(2)),
    "loss": lambda: F.cross_entropy(there(2, 3), torch.tensor([0, 1])),
    "convolution": lambda: F.conv2d(there(1, 1, 3, 3), torch.ones(1, 1, 2, 2)),
    "generator of the processor": lambda: torch.rand(2, device="cuda", generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_tensors_of_two_devices_do_not_mix(name: str) -> None:
    with pytest.raises(MixedDevices):
        MIXTURES[name]()
    with pytest.raises(MixedDevices), reading_back("a mixture is no transfer"):
        MIXTURES[name]()


def test_a_number_on_the_processor_goes_with_them() -> None:
    assert to_host(there(2) * torch.tensor(2.0)).tolist() == [2, 4]
    assert to_host(torch.where(there(2) > 1, there(2), torch.tensor(0.0))).tolist() == [0, 2]
    assert to_host(there(2).masked_fill(there(2) > 1, torch.tensor(0.0))).tolist() == [1, 0]


WAITS: dict[str, Callable[[], Any]] = {
    "item": lambda: there(1).item(),
    "float": lambda: float(there(1)),
    "int": lambda: int(there(1)),
    "bool": lambda: bool(there(1) > 0),
    "if": lambda: 1 if there(2).any() else 0,
    "index": lambda: [1, 2, 3][torch.tensor(1, device="cuda")],
    "tolist": lambda: there(2).tolist(),
    "cpu": lambda: there(2).cpu(),
    "to": lambda: there(2).to("cpu"),
    "copy to the processor": lambda: torch.ones(2).copy_(there(2)),
    "nonzero": lambda: there(2).nonzero(),
    "argwhere": lambda: torch.argwhere(there(2)),
    "where without values": lambda: torch.where(there(2) > 1),
    "mask": lambda: there(2)[there(2) > 1],
    "mask that is written": lambda: there(3).__setitem__(there(3) > 1, there(2)),
    "masked_select": lambda: torch.masked_select(there(2), there(2) > 1),
    "unique": lambda: torch.unique(there(2)),
    "unique_consecutive": lambda: torch.unique_consecutive(there(2)),
    "repeat_interleave": lambda: torch.repeat_interleave(torch.tensor([1, 2], device="cuda")),
    "repeat_interleave of values": lambda: there(2).repeat_interleave(torch.tensor([1, 2], device="cuda")),
    "equal": lambda: torch.equal(there(2), there(2)),
    "allclose": lambda: torch.allclose(there(2), there(2)),
    "bincount": lambda: torch.bincount(torch.tensor([1, 2], device="cuda")),
}


@pytest.mark.parametrize("name", WAITS)
def test_no_transfer_is_silent(name: str) -> None:
    with pytest.raises(HiddenTransfer):
        WAITS[name]()
    with reading_back("this test allows it"):
        WAITS[name]()
    with pytest.raises(HiddenTransfer):
        WAITS[name]()


def test_no_block_turns_a_device_tensor_into_an_array() -> None:
    for make in (lambda: there(2).numpy(), lambda: np.asarray(there(2))):
        with pytest.raises(TypeError, match="cuda:0"), reading_back("even here"):
            make()
    assert to_host(there(2).requires_grad_()).numpy().tolist() == [1, 2]


def test_what_does_not_wait_is_let_be() -> None:
    x = there(2, 3)
    x.masked_fill(x > 1, 0)
    x[x > 1] = 0
    x[torch.tensor([0, 1], device="cuda")]
    x.repeat_interleave(2, 0)
    torch.nan_to_num(x).topk(2)
    torch.sort(x, stable=True)
    x.scatter_add(1, torch.zeros(2, 1, dtype=torch.int64, device="cuda"), x)
    torch.nn.utils.clip_grad_norm_([nn.Parameter(x)], 1.0)


INDETERMINATE: dict[str, Callable[[], Any]] = {
    "kthvalue": lambda: there(3).kthvalue(1),
    "cumsum": lambda: there(3).cumsum(0),
    "cumsum in float64": lambda: torch.arange(3, device="cuda").cumsum(0, dtype=torch.float64),
    "median": lambda: there(3).median(0),
    "put_": lambda: there(3).put_(torch.tensor([0], device="cuda"), there(1)),
    "bincount with weights": lambda: torch.bincount(torch.tensor([1], device="cuda"), there(1)),
    "scatter_reduce": lambda: there(3).scatter_reduce(0, torch.tensor([0], device="cuda"), there(1), "prod"),
    "histc": lambda: there(3).histc(),
    "loss of a map": lambda: F.cross_entropy(there(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64, device="cuda")),
    "adaptive pooling": lambda: F.adaptive_avg_pool2d(there(1, 1, 5, 5).requires_grad_(), 2).sum().backward(),
    "adaptive maximum": lambda: F.adaptive_max_pool2d(there(1, 1, 5, 5).requires_grad_(), 2).sum().backward(),
    "reflection": lambda: F.pad(there(1, 1, 3, 3).requires_grad_(), (1, 1, 1, 1), mode="reflect").sum().backward(),
}


@pytest.mark.parametrize("name", INDETERMINATE)
def test_what_cuda_has_no_deterministic_kernel_for_is_refused(name: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(NoDeterministicKernel), reading_back("bincount and histc wait, too"):
            INDETERMINATE[name]()
    finally:
        torch.use_deterministic_algorithms(False)
    with reading_back("bincount and histc wait, too"):
        INDETERMINATE[name]()


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.Adam(p, fused=True), torch.optim.Adam]
)
def test_a_network_trains_there_as_it_does_on_the_processor(make: Callable[..., torch.optim.Optimizer]) -> None:
    draws = torch.Generator().manual_seed(0)
    weight, x = torch.randn(4, 3, 3, 3, generator=draws), torch.randn(2, 3, 6, 6, generator=draws)
    ends = []
    for device in ("cpu", "cuda"):
        leaf, labels = weight.clone().to(device).requires_grad_(), torch.tensor([1, 3], device=device)
        optimiser = make([leaf])
        for _ in range(3):
            optimiser.zero_grad()
            loss = F.cross_entropy(F.relu(F.conv2d(x.to(device), leaf, padding=1)).mean((2, 3)), labels)
            loss.backward()
            optimiser.step()
        ends.append(to_host(leaf))
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], weight)


def test_a_fused_optimiser_wants_its_count_of_steps_there() -> None:
    leaf = there(3).requires_grad_()
    leaf.grad = there(3)
    optimiser = torch.optim.Adam([leaf], fused=True)
    optimiser.step()
    optimiser.state[leaf]["step"] = torch.tensor(1.0)
    with pytest.raises(MixedDevices):
        optimiser.step()


def test_moves_to_the_device_are_counted() -> None:
    uploads.clear()
    x = torch.ones(2).to("cuda")
    x.copy_(torch.zeros(2))
    x[torch.tensor([1])] = 3
    assert sum(uploads.values()) >= 3
    before = sum(uploads.values())
    (x + 1).to(torch.float64)
    assert sum(uploads.values()) == before
