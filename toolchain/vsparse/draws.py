"""Random numbers of training: from torch's generator on the processor, or from a counter, which gives the same ones on any device.

A counter-based generator is a function of a key and of a number's position, so that numbers are made where they are used, all at once,
without a state to be moved and without waiting for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import pi, prod

import torch
from torch import Tensor

_WORD = 2**64


class CounterDraws:
    """Squares (Widynski, arXiv 2004.06278, section 3): four rounds of squaring a 64-bit counter times a key, of which 32 bits are used.

    Every draw takes the next positions; `position` is that of the next number. Keys have the form of the paper's
    section 5: the eight hexadecimal digits of each half differ and are not 0, and the last one is odd. Integer operations are exact, so
    that uniform numbers, integers and permutations are the same to the bit on every device.
    """

    def __init__(self, seed: int) -> None:
        self.key = _key(seed)
        self.position = 0

    def words(self, shape: tuple[int, ...], device: torch.device, bits: int = 32) -> Tensor:
        """Returns the upper `bits` (at most 32) of the next random words as signed numbers: int64 in [−2^(bits − 1), 2^(bits − 1))."""
        count = prod(shape)
        x = torch.arange(self.position, self.position + count, device=device)
        self.position += count
        x.mul_(self.key)
        y, z = x.clone(), x + self.key
        for added in (y, z, y):
            x = _swapped(x.mul_(x).add_(added))
        # A shift keeps the sign, which is the highest of the bits.
        return x.mul_(x).add_(z).bitwise_right_shift_(64 - bits).view(shape)


def _swapped(x: Tensor) -> Tensor:
    """Returns 64-bit words with their halves in each other's places."""
    return x.view(torch.int32).view(-1, 2).flip(1).view(-1).view(torch.int64)


Draws = torch.Generator | CounterDraws
"""Where random numbers come from."""


@contextmanager
def repeated(source: Draws) -> Iterator[None]:
    """A block whose draws are drawn again after it."""
    if isinstance(source, torch.Generator):
        state = source.get_state()
        yield
        source.set_state(state)
    else:
        position = source.position
        yield
        source.position = position


def uniform(source: Draws, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns uniform numbers in [0, 1), multiples of 2⁻²⁴ or finer."""
    if isinstance(source, torch.Generator):
        return torch.rand(shape, dtype=dtype, device=source.device, generator=source).to(device)
    return source.words(shape, device, 24).to(dtype).add_(2**23).mul_(2.0**-24)


def normal(source: Draws, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns standard normal numbers; from a counter by the transform of Box and Muller, in float64, of which devices may differ in the
    last bit.
    """
    if isinstance(source, torch.Generator):
        return torch.randn(shape, dtype=dtype, device=source.device, generator=source).to(device)
    half = -(-prod(shape) // 2)
    first, second = source.words((2, half), device).to(torch.float64).add_(2**31).unbind()
    # (k + 1)/2³² is in (0, 1], so that its logarithm is finite.
    length = first.add_(1).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = second.mul_(2 * pi * 2.0**-32)
    return torch.cat([length * angle.cos(), length * angle.sin()])[: prod(shape)].to(dtype).view(shape)


def integers(source: Draws, below: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns int64 numbers in [0, below), below at most 2³¹; from a counter k · below / 2³² of 32-bit k, uniform to below/2³²."""
    if isinstance(source, torch.Generator):
        return torch.randint(0, below, shape, generator=source, device=source.device).to(device)
    return source.words(shape, device).add_(2**31).mul_(below).bitwise_right_shift_(32)


def permutation(source: Draws, count: int, device: torch.device) -> Tensor:
    """Returns the numbers 0 to count − 1 in random order, int64."""
    if isinstance(source, torch.Generator):
        return torch.randperm(count, generator=source, device=source.device).to(device)
    return torch.sort(source.words((count,), device), stable=True).indices


def _key(seed: int) -> int:
    """Returns the key of a seed, as a signed 64-bit number; its digits are drawn by SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    state, digits = seed % _WORD, []
    for half in range(2):
        left = list(range(1, 16))
        for place in range(8):
            state = (state + 0x9E3779B97F4A7C15) % _WORD
            mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % _WORD
            mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % _WORD
            mixed ^= mixed >> 31
            allowed = [digit for digit in left if digit % 2] if (half, place) == (1, 7) else left
            digits.append(allowed[mixed % len(allowed)])
            left.remove(digits[-1])
    key = int("".join(f"{digit:x}" for digit in digits), 16)
    return key - _WORD if key >= _WORD // 2 else key
