"""Regions: the lines of the clip, bounds of rows against exact rationals and random members, exact membership, whole networks."""

from __future__ import annotations

from fractions import Fraction
from math import inf, nextafter

import numpy as np
import pytest
import torch
from device_simulation import Device, random_graph

from vsparse.bounds import Region, Rounding, ball, crown, interval, member, refine, region
from vsparse.bounds.region import clip_relaxation
from vsparse.contract import CONTRACTS
from vsparse.errors import InputError
from vsparse.graph.ir import Gemm, Graph, Relu
from vsparse.perturbation import PerturbationSet

HALF = Fraction(1, 2)
ALLOWED = [
    PerturbationSet(norm="l2", epsilon=Fraction(1, 3)),
    PerturbationSet(norm="l1", epsilon=Fraction(7, 10)),
    PerturbationSet(norm="l2", epsilon=Fraction(0)),
    PerturbationSet(epsilon=Fraction(0), brightness=Fraction(1, 10)),
    PerturbationSet(epsilon=Fraction(0), contrast=Fraction(2, 5)),
    PerturbationSet(epsilon=Fraction(1, 50), brightness=Fraction(1, 7), contrast=Fraction(3, 10)),
    PerturbationSet(norm="l2", epsilon=Fraction(1, 5), brightness=Fraction(1, 3), contrast=Fraction(1, 3)),
    PerturbationSet(norm="l1", epsilon=Fraction(1, 5), clip=(-0.25, 1.5), brightness=Fraction(2), contrast=Fraction(1)),
]


def clipped(v: Fraction, clip: tuple[float, float]) -> Fraction:
    return min(max(v, Fraction(clip[0])), Fraction(clip[1]))


def random_member(rng: np.random.Generator, x0: np.ndarray, allowed: PerturbationSet, float32: bool) -> list[Fraction]:
    """Returns a member in rationals, often an extreme one; as a float32 input where asked for."""
    n = len(x0)
    extreme = rng.random() < 0.5
    b, c = (
        Fraction(float(rng.choice([-1, 1]) if extreme else rng.uniform(-1, 1))) * most for most in (allowed.brightness, allowed.contrast)
    )
    kind = rng.integers(3)
    delta = [Fraction(v) for v in (rng.choice([-1.0, 1.0], n) if kind == 0 else rng.normal(size=n)).tolist()]
    if kind == 1 or allowed.norm == "l1":
        keep = rng.integers(1, 3)
        for i in rng.permutation(n)[keep:]:
            delta[i] = Fraction(0)
    length = {"linf": max(abs(d) for d in delta), "l1": sum(abs(d) for d in delta)}.get(allowed.norm)
    if length is None:
        square = sum(d * d for d in delta)
        length = Fraction(nextafter(float(square) ** 0.5 * (1 + 1e-15), inf))
        assert length**2 >= square
    delta = [d * allowed.epsilon / length for d in delta]
    exact = [clipped(Fraction(q) + b + c * (Fraction(q) - HALF) + d, allowed.clip) for q, d in zip(x0.tolist(), delta, strict=True)]
    if not float32:
        rho = Fraction(allowed.rounding)
        return [clipped(v + rho * int(rng.integers(-1, 2)), allowed.clip) for v in exact]
    return [Fraction(float(np.float32(float(v)))) for v in exact]


def test_the_lines_of_the_clip_hold_at_random_points_in_rationals():
    rng = np.random.default_rng(0)
    clip = (-0.25, 1.5)
    ends = np.sort(rng.choice([-0.25, 1.5, 0.3, -1.0, 2.5, 1e-9, -0.2500001], (400, 2)) + rng.normal(scale=1e-3, size=(400, 2)), axis=1)
    lower, upper = torch.tensor(ends[:, :1]), torch.tensor(ends[:, 1:])
    lower, upper = torch.minimum(lower, torch.tensor(1.5)), torch.maximum(upper, torch.tensor(-0.25))
    s, t, upper_s, upper_t = clip_relaxation(lower, upper, clip)
    for i in range(len(ends)):
        l, u = Fraction(lower[i].item()), Fraction(upper[i].item())
        points = [l, u, *(min(max(Fraction(end), l), u) for end in clip), *(l + (u - l) * Fraction(rng.random()) for _ in range(4))]
        for v in points:
            assert Fraction(s[i].item()) * v + Fraction(t[i].item()) <= clipped(v, clip)
            assert Fraction(upper_s[i].item()) * v + Fraction(upper_t[i].item()) >= clipped(v, clip)
    # Nothing is lost where nothing is clipped.
    s, t, upper_s, upper_t = clip_relaxation(torch.tensor([[0.2]]).double(), torch.tensor([[0.4]]).double(), (0.0, 1.0))
    assert (s.item(), upper_s.item()) == (1, 1)
    assert abs(t.item()) < 1e-14 > abs(upper_t.item())


@pytest.mark.parametrize("allowed", ALLOWED, ids=str)
def test_no_member_lies_below_the_bound_of_a_row_or_outside_the_box(allowed):
    rng = np.random.default_rng(1)
    x0 = np.concatenate([rng.random(5), [0, 1, 0.5, 1e-30]]).astype(np.float32)
    enclosure = region(torch.from_numpy(x0)[None], allowed)
    rows = torch.tensor(np.concatenate([rng.normal(size=(12, 9)), np.ones((1, 9)), -np.ones((1, 9)), np.eye(9), -np.eye(9)]))[None]
    lowest = enclosure.lowest(rows)[0].tolist()
    assert np.isfinite(lowest).all()
    box = [list(map(Fraction, end[0].tolist())) for end in enclosure.box]
    for _ in range(60):
        x = random_member(rng, x0, allowed, float32=False)
        assert all(low <= v <= high for low, v, high in zip(box[0], x, box[1], strict=True))
        for row, bound in zip(rows[0].tolist(), lowest, strict=True):
            assert sum(Fraction(a) * v for a, v in zip(row, x, strict=True)) >= Fraction(bound)


def test_a_bound_without_clipping_is_the_exact_minimum_from_below():
    """Inside the data range the least of a·x is known: a·x0 − B|Σa| − C|a·(x0 − 1/2)| − ε‖a‖_dual, less ρ‖a‖₁."""
    rng = np.random.default_rng(2)
    x0 = rng.uniform(0.4, 0.6, 20).astype(np.float32)
    rows = rng.normal(size=(5, 20))
    dual = {"linf": np.abs(rows).sum(1), "l1": np.abs(rows).max(1), "l2": np.sqrt((rows**2).sum(1))}
    for norm in dual:
        for b, c in ((0.0, 0.0), (0.125, 0.25)):
            allowed = PerturbationSet(norm=norm, epsilon=Fraction(1, 20), brightness=Fraction(b), contrast=Fraction(c))
            enclosure = region(torch.from_numpy(x0)[None], allowed)
            if not isinstance(enclosure, Region):
                continue
            x = x0.astype(np.float64)
            wanted = (
                rows @ x
                - 0.05 * dual[norm]
                - b * np.abs(rows.sum(1))
                - c * np.abs(rows @ (x - 0.5))
                - allowed.rounding * np.abs(rows).sum(1)
            )
            found = enclosure.lowest(torch.from_numpy(rows)[None])[0].numpy()
            assert (found <= wanted + 1e-15).all()
            assert found == pytest.approx(wanted, abs=1e-12)
            plain = enclosure.lowest(torch.from_numpy(rows)[None], outward=False)[0].numpy()
            assert (found < plain + 1e-16).all()


def test_plain_linf_balls_stay_boxes():
    x = torch.rand(3, 4)
    mine, old = region(x, PerturbationSet(epsilon=Fraction(1, 10))), ball(x, Fraction(1, 10))
    assert not isinstance(mine, Region)
    assert all(torch.equal(a, b) for a, b in zip(mine, old, strict=True))


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"norm": "l3", "epsilon": "1"}, "norm: "),
        ({"epsilon": "1", "clip": (-inf, inf), "brightness": "1"}, "clip"),
        ({"epsilon": "1", "clip": (1.0, 0.0)}, "data range"),
        ({"epsilon": "1", "contrast": Fraction(-1)}, "contrast: "),
        ({"epsilon": -1}, "epsilon: "),
    ],
)
def test_unusable_perturbation_sets_are_refused(keys, named):
    with pytest.raises(InputError, match=f"here: .*{named}"):
        PerturbationSet.parse("here", **keys)


@pytest.mark.parametrize("allowed", ALLOWED[3:], ids=str)
def test_transformed_samples_rounded_once_are_members(allowed):
    rng = np.random.default_rng(3)
    x0 = np.concatenate([rng.random(30), [0, 1, 0.5]]).astype(np.float32)
    shrunk = allowed.with_epsilon(allowed.epsilon * Fraction(999_999, 10**6))
    for _ in range(4):
        x = torch.tensor([float(v) for v in random_member(rng, x0, shrunk, float32=True)], dtype=torch.float32)
        assert member(x, torch.from_numpy(x0), allowed)


def test_membership_in_balls_is_exact_at_the_rim():
    x0 = torch.tensor([0.5, 0.5], dtype=torch.float64)
    # 3-4-5: exactly on the sphere of radius 5/16, and one unit outside of it.
    on = x0 + torch.tensor([3 / 16, 4 / 16], dtype=torch.float64)
    out = torch.tensor([on[0].item(), nextafter(on[1].item(), 2)], dtype=torch.float64)
    for norm, radius in (("l2", Fraction(5, 16)), ("l1", Fraction(7, 16))):
        assert member(on, x0, PerturbationSet(norm=norm, epsilon=radius))
        assert not member(out, x0, PerturbationSet(norm=norm, epsilon=radius))
        assert not member(on, x0, PerturbationSet(norm=norm, epsilon=radius - Fraction(1, 2**60)))
        assert not member(on + 0.5, x0, PerturbationSet(norm=norm, epsilon=Fraction(10))), "outside the data range"
        assert not member(on * torch.nan, x0, PerturbationSet(norm=norm, epsilon=Fraction(10)))
        assert not member(on[:1], x0, PerturbationSet(norm=norm, epsilon=Fraction(10)))


def test_membership_under_brightness_and_contrast_by_hand():
    x0 = torch.tensor([0.25, 0.5, 0.75])
    shift = PerturbationSet(epsilon=Fraction(0), brightness=Fraction(1, 8))
    assert member(x0 + 0.125, x0, shift)
    assert member(x0 - 0.0625, x0, shift)
    assert not member(x0 + 0.1251, x0, shift)
    assert not member(torch.tensor([0.35, 0.6, 0.84]), x0, shift), "not one shift for all"
    assert not member(torch.tensor([0.2, 0.5, 0.8]), x0, shift), "a change of contrast"
    stretch = PerturbationSet(epsilon=Fraction(0), contrast=Fraction(1, 5))
    assert member(torch.tensor([0.2, 0.5, 0.8]), x0, stretch)
    assert not member(torch.tensor([0.19, 0.5, 0.81]), x0, stretch)
    assert not member(torch.tensor([0.2, 0.51, 0.8]), x0, stretch)
    assert member(torch.tensor([0.2, 0.51, 0.8]), x0, PerturbationSet(epsilon=Fraction(1, 100), contrast=Fraction(1, 5)))
    # Clipped: 1 is what every larger value becomes.
    bright = PerturbationSet(epsilon=Fraction(0), brightness=Fraction(1, 2))
    assert member(torch.tensor([0.75, 1.0, 1.0]), x0, bright)
    assert not member(torch.tensor([0.5, 1.0, 1.0]), x0, bright)
    # A false hint proves nothing, and costs nothing.
    assert member(x0 + 0.125, x0, shift, hint=(inf, 0.0))
    assert not member(torch.tensor([0.2, 0.5, 0.8]), x0, shift, hint=(0.0, 0.2))
    assert not member(x0 + 0.25, x0, shift, hint=(0.25, 0.0)), "b beyond its range"


def test_points_outside_are_no_members():
    """Members pushed out along one coordinate by more than ρ + 2ε have another b, c in common with no other coordinate."""
    rng = np.random.default_rng(4)
    x0 = rng.uniform(0.3, 0.7, 12).astype(np.float32)
    for norm in ("linf", "l2", "l1"):
        allowed = PerturbationSet(norm=norm, epsilon="1/100", brightness="1/20", contrast="1/20")
        for _ in range(5):
            x = np.array([float(v) for v in random_member(rng, x0, allowed, float32=True)], np.float32)
            x[rng.integers(12)] += np.float32(0.2)
            assert not member(torch.from_numpy(x), torch.from_numpy(x0), allowed)


@pytest.mark.parametrize("case", range(len(ALLOWED)))
def test_no_execution_of_a_network_leaves_the_bounds_over_a_region(case):
    execute(ALLOWED[case], ("fp32", "bf16", "fp16")[case % 3], graphs=1, points=4)


@pytest.mark.slow
@pytest.mark.parametrize("contract", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("allowed", ALLOWED, ids=str)
def test_no_execution_of_many_networks_leaves_the_bounds(allowed, contract):
    execute(allowed, contract, graphs=12, points=20)


def execute(allowed: PerturbationSet, contract: str, graphs: int, points: int) -> None:
    """Runs random members through random networks on the simulated device, and compares with every enclosure."""
    rng = np.random.default_rng(5)
    rules = CONTRACTS[contract]
    done = 0
    for attempt in range(graphs):
        graph = random_graph(np.random.default_rng([6, attempt]), rules.storage)
        rounding = Rounding(graph, rules)
        x0 = rng.random(int(np.prod(graph.input_shape))).astype(np.float32)
        enclosure = region(torch.from_numpy(x0).reshape(1, *graph.input_shape), allowed)
        boxes = interval(graph, rounding.params, enclosure, rounding)
        tight = refine(graph, rounding.params, enclosure, boxes, rounding)
        size = int(np.prod(graph.shape_of(graph.output)))
        rows = torch.tensor(np.concatenate([rng.normal(size=(4, size)), np.eye(size)[:4]]))
        bounds = [crown(graph, rounding.params, enclosure, rows, one, rounding)[0].tolist() for one in (boxes, tight)]
        for _ in range(points):
            point = np.array([float(v) for v in random_member(rng, x0, allowed, float32=True)], np.float32)
            if not allowed.photometric and not member(torch.from_numpy(point), torch.from_numpy(x0), allowed):
                continue
            done += 1
            values = Device(graph, rules, rng).run(point.reshape(graph.input_shape))
            for name, (lower, upper) in tight.items():
                got = torch.as_tensor(np.asarray(values[name], dtype=np.float64))
                assert bool(((lower[0] <= got) & (got <= upper[0])).all()), name
            executed = rows.numpy() @ np.asarray(values[graph.output], dtype=np.float64).reshape(-1)
            for one in bounds:
                assert (np.array(one) <= executed + 1e-12 * np.abs(executed)).all()
    assert done >= graphs


def test_l2_bounds_are_tighter_than_their_box_and_batches_are_cut_alike():
    rng = np.random.default_rng(7)
    params = {"w": rng.normal(size=(30, 40)).astype(np.float32), "v": rng.normal(size=(3, 30)).astype(np.float32)}
    nodes = (
        Gemm(name="h", inputs=("x",), shape=(30,), weight="w", bias=None),
        Relu(name="r", inputs=("h",), shape=(30,)),
        Gemm(name="y", inputs=("r",), shape=(3,), weight="v", bias=None),
    )
    graph = Graph(input="x", input_shape=(40,), nodes=nodes, output="y", params=params)
    rounding = Rounding(graph, CONTRACTS["fp32"])
    x = torch.from_numpy(rng.random((6, 40)).astype(np.float32))
    rows = torch.eye(3, dtype=torch.float64)
    for allowed in (PerturbationSet(norm="l2", epsilon=Fraction(1, 10)), PerturbationSet(epsilon=Fraction(0), brightness=Fraction(1, 20))):
        enclosure = region(x, allowed)
        assert isinstance(enclosure, Region)
        boxes = interval(graph, rounding.params, enclosure, rounding)
        tight = refine(graph, rounding.params, enclosure, boxes, rounding)
        whole = crown(graph, rounding.params, enclosure, rows, tight, rounding)
        over_box = crown(graph, rounding.params, enclosure.box, rows, boxes, rounding)
        assert bool((whole > over_box).all())
        small = crown(graph, rounding.params, enclosure, rows, tight, rounding, memory_limit_bytes=40 * 8 * 6)
        assert torch.allclose(small, whole, atol=1e-12)
        for i in range(6):
            alone = {name: (low[i : i + 1], high[i : i + 1]) for name, (low, high) in tight.items()}
            one = crown(graph, rounding.params, enclosure.samples(slice(i, i + 1)), rows, alone, rounding)
            assert torch.allclose(one[0], whole[i], atol=1e-12)
        searched = crown(
            graph,
            graph.tensors(torch.float32),
            enclosure.to(torch.float32),
            rows.float(),
            {n: (a.float(), b.float()) for n, (a, b) in tight.items()},
        )
        assert torch.allclose(searched.double(), whole, atol=1e-3)
