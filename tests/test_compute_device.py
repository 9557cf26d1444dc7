"""Devices by name: what is there is taken, what is not there is refused with a way out."""

from __future__ import annotations

import pytest
import torch

from vsparse.compute_device import choose_device, exact_products
from vsparse.errors import UnavailableError


def cards(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def test_a_device_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, 2)
    assert choose_device("cpu", "train.device") == torch.device("cpu")
    assert choose_device("auto", "train.device") == choose_device("cuda", "train.device") == torch.device("cuda", 0)
    assert choose_device("cuda:1", "train.device") == torch.device("cuda", 1)
    with pytest.raises(UnavailableError, match=r'train.device = "cuda:2", but there is only cuda:0 to cuda:1'):
        choose_device("cuda:2", "train.device")


def test_without_a_card_auto_is_the_processor_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, 0)
    assert choose_device("auto", "verify.device") == torch.device("cpu")
    with pytest.raises(UnavailableError, match=r'verify.device = "cuda", but .*; set verify.device = "cpu", or "auto"'):
        choose_device("cuda", "verify.device")


def test_products_keep_their_format() -> None:
    products, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    products.allow_tf32 = True
    try:
        exact_products()
        assert not products.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    finally:
        products.allow_tf32 = before
