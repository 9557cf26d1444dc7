"""What an attack leaves standing: exact on a linear network, between certified and correct on others."""

from __future__ import annotations

import torch
from attack_nets import data, linear, point, small

from vsparse.graph import run
from vsparse.stages.train.bounds.margins import Margins, training_box
from vsparse.stages.train.evaluation import attacked
from vsparse.stages.train.objectives.attack import random_point
from vsparse.stages.train.objectives.ibp import certified


def test_standing_is_exact_on_a_linear_network() -> None:
    graph, params = linear()
    draws = torch.Generator().manual_seed(0)
    x, labels = torch.rand(300, 1, 1, 2, generator=draws), torch.randint(0, 2, (300,), generator=draws)
    lower, upper = (bound.view(-1, 2) for bound in training_box(x, 0.1))
    least = 3 * lower[:, 1] - 2 * upper[:, 0]
    most = 3 * upper[:, 1] - 2 * lower[:, 0]
    expected = torch.where(labels == 0, least, -most) > 0
    found = attacked(graph, params, x, labels, 0.1, 4, torch.Generator().manual_seed(1))
    assert torch.equal(found, expected)
    assert 50 < int(found.sum()) < 250


def test_standing_implies_correct_and_certified_implies_standing() -> None:
    _, graph, params = small()
    x, labels = data(64)
    labels = torch.where(torch.arange(64) % 8 > 0, run(graph, params, x).argmax(1), labels)
    correct = run(graph, params, x).argmax(1) == labels
    margins, seen = Margins(graph), []
    for epsilon in (0.0, 0.003, 0.02, 0.1, 0.4):
        standing = attacked(graph, params, x, labels, epsilon, 5, torch.Generator().manual_seed(1))
        assert bool((correct | ~standing).all())
        assert bool((standing | ~(certified(margins, params, x, labels, epsilon) & correct)).all())
        seen.append(int(standing.sum()))
    assert seen[0] == int(correct.sum())
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < seen[0] / 2
    assert bool((attacked(graph, params, x, labels, 0.4, 0, torch.Generator()) == correct).all())


def test_an_attack_breaks_more_than_random_points_do() -> None:
    _, graph, params = small()
    x, _ = data(64)
    labels = run(graph, params, x).argmax(1)
    draws = torch.Generator().manual_seed(0)
    holds = torch.ones(64, dtype=torch.bool)
    for _ in range(20):
        holds &= run(graph, params, random_point(training_box(x, 0.1), draws)).argmax(1) == labels
    standing = attacked(graph, params, x, labels, 0.1, 5, torch.Generator().manual_seed(1))
    assert int(standing.sum()) < int(holds.sum())


def test_standing_is_a_function_of_its_arguments_and_leaves_them_alone() -> None:
    _, graph, params = small(norm=True)
    for value in params.values():
        value.requires_grad_()
    x, _ = data(16)
    labels = run(graph, params, x).argmax(1)
    first = attacked(graph, params, x, labels, 0.05, 2, torch.Generator().manual_seed(1))
    with torch.no_grad():
        again = attacked(graph, params, x, labels, 0.05, 2, torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    assert all(value.requires_grad and value.grad is None for value in params.values())
    assert not x.requires_grad
    # Its batch norm is that of deployment: one sample by itself is as it is among others.
    alone = [bool(attacked(graph, params, x[i : i + 1], labels[i : i + 1], 0.0, 2, torch.Generator())) for i in range(16)]
    assert alone == attacked(graph, params, x, labels, 0.0, 2, torch.Generator()).tolist()


def test_ties_and_what_is_not_a_number_do_not_stand() -> None:
    graph, params = linear()
    x, labels = point(0.0, 0.0, 0.0, 0.5), torch.tensor([0, 0])
    assert attacked(graph, params, x, labels, 0.0, 1, torch.Generator()).tolist() == [False, True]
    broken = {key: torch.full_like(value, torch.nan) for key, value in params.items()}
    assert attacked(graph, broken, x, labels, 0.1, 3, torch.Generator()).tolist() == [False, False]
