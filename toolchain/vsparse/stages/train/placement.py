"""Where a training computes: the device of its recipe, a card for each process, and what fits into its memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vsparse.compute_device import choose_device, device_label
from vsparse.errors import InputError, UnavailableError
from vsparse.recipe_train import Train

KEY = "train.device"


def training_device(spec: Train) -> torch.device:
    """Returns the device of this process: the recipe's, and of several processes on one machine to each a card of its own.

    UnavailableError where there is no such device, or fewer cards than processes on this machine.
    """
    device = choose_device(spec.device, KEY)
    if device.type == "cpu" or spec.processes == 1:
        return device
    rank, here = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    cards = torch.cuda.device_count()
    if here > cards:
        raise UnavailableError(
            f"{here} processes on this machine share {cards} CUDA device(s), and each needs its own; lower train.processes to {cards} or "
            f'set {KEY} = "cpu"'
        )
    return torch.device("cuda", rank)


def draws_by_counter(spec: Train, device: torch.device) -> bool:
    """Whether random numbers of a step come from a counter, as they do on every device but the processor."""
    return spec.draws == "counter" or (spec.draws == "auto" and device.type != "cpu")


def out_of_memory(device: torch.device, batch_size: int, fits: Callable[[int], bool]) -> InputError:
    """Returns the error to raise when a step did not fit into a device's memory, with the largest part of the batch that does.

    `fits` tries a step of so many samples; halves are tried until one passes.
    """
    label = device_label(device)
    torch.cuda.empty_cache()
    size = batch_size // 2
    while size and not fits(size):
        size //= 2
    if not size:
        return InputError(f'not even a batch of one sample fits into the memory of {label}; set {KEY} = "cpu", or make the network smaller')
    return InputError(f"train.batch_size = {batch_size} does not fit into the memory of {label}, and {size} does; set it to {size}")


@contextmanager
def room_for_samples(device: torch.device) -> Iterator[None]:
    """A block that moves a data set to a device; InputError where it does not fit."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        label = device_label(device)
        raise InputError(
            f'the samples and the network do not fit into the memory of {label} beside what is there; set {KEY} = "cpu", or to a device '
            "with more, or end other programs that use it"
        ) from error
