"""Every node type in every engine: a rule that holds at every sampled point, or a refusal before any work, and nothing else.

A node type without a network in `engine_nets`, or an engine that neither takes nor refuses it as listed here, fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from math import inf
from pathlib import Path
from time import monotonic, perf_counter

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "check"))

from check_artifacts import save_inputs, sign

from engine_nets import BUILDERS, Case, case, node_types
from vsparse.bounds import Box, Choices, Rounding, crown, interval, last_layer_folding, paths, refine
from vsparse.bounds import rules as bound_rules
from vsparse.bounds.crown import unit_costs
from vsparse.bounds.curves import curve_rules, has_two_slopes
from vsparse.bounds.windows import windows
from vsparse.bounds.zonotope import lower_bounds, zonotope
from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.graph import (
    BatchNorm,
    Clip,
    FakeQuant,
    Graph,
    LeakyRelu,
    Node,
    Relu,
    Reshape,
    Sigmoid,
    Tanh,
    apply,
    from_onnx,
    run,
    to_onnx,
    to_torch,
)
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.search.alpha import relax
from vsparse.search.branch_and_bound import Prover, prove
from vsparse.search.input_split import split_inputs
from vsparse.search.result import Limits
from vsparse.search.specification import Specification
from vsparse.search.unit_split import split_units
from vsparse.stages.compress import compress
from vsparse.stages.compress import rules as compression_rules
from vsparse.stages.export.c_source.compile import CompiledModel
from vsparse.stages.export.c_source.emit import SUPPORTED, emit_c
from vsparse.stages.verify import certify, write_certificate
from vsparse.stages.verify.query import answer_query
from vsparse.stages.verify.query_attack import attack
from vsparse.vnnlib import Case as QueryCase
from vsparse.vnnlib import Constraint, InputBox, Query, write_vnnlib
from vsparse_check import check

EXACT = 1e-9  # float64's own error at the points, whose exact values the bounds enclose
KINDS = sorted(node_types(), key=lambda kind: kind.__name__)


def rounded(one: Case) -> Rounding:
    """Returns the rounding of the contract that the engines are tried under: that of float32, where the network may be executed so."""
    quantised = any(isinstance(node, FakeQuant) for node in one.graph.nodes)
    return Rounding(one.graph, CONTRACTS["real" if quantised else "fp32"])


def inside(one: Case, boxes: Mapping[str, Box]) -> None:
    for name, (lower, upper) in boxes.items():
        value = one.values[name]
        assert bool((value >= lower - EXACT).all() & (value <= upper + EXACT).all()), name


def below(one: Case, bound: float) -> None:
    assert -1e30 < bound <= one.lowest + EXACT


def enclosed(one: Case) -> tuple[Rounding, dict[str, Box]]:
    rounding = rounded(one)
    return rounding, refine(one.graph, rounding.params, one.box, interval(one.graph, rounding.params, one.box, rounding), rounding)


def by_interval(one: Case, folder: Path) -> None:
    rounding = rounded(one)
    inside(one, interval(one.graph, rounding.params, one.box, rounding))


def by_crown(one: Case, folder: Path) -> None:
    rounding = rounded(one)
    boxes = interval(one.graph, rounding.params, one.box, rounding)
    below(one, float(crown(one.graph, rounding.params, one.box, one.row[None], boxes, rounding)))


def by_chosen_lines(one: Case, folder: Path) -> None:
    """Random slopes and multipliers of everything that is relaxed, for several rows at once."""
    rounding, boxes = enclosed(one)
    generator = torch.Generator().manual_seed(1)

    def draw(node: Node) -> Tensor:
        return torch.rand(1, 6, *node.shape, generator=generator, dtype=torch.float64)

    relus = [node for node in one.graph.nodes if isinstance(node, Relu)]
    curves = [node for node in one.graph.nodes if has_two_slopes(node)]
    choices = Choices(
        {node.name: draw(node) for node in relus},
        curves={node.name: (draw(node), draw(node)) for node in curves},
        duals={node.name: (draw(node) - 0.3, draw(node) - 0.3) for node in (*relus, *curves)},
    )
    for bound in crown(one.graph, rounding.params, one.box, one.row.expand(1, 6, -1), boxes, rounding, choices)[0].tolist():
        below(one, bound)


def by_refined_boxes(one: Case, folder: Path) -> None:
    inside(one, enclosed(one)[1])


def by_windows(one: Case, folder: Path) -> None:
    """The path of receptive fields, forced for every activation that it takes."""
    rounding = rounded(one)
    boxes = interval(one.graph, rounding.params, one.box, rounding)
    before, paths.WINDOWS = paths.WINDOWS, inf
    try:
        for node in one.graph.nodes:
            small = windows(one.graph, rounding.params, boxes, rounding, node.name, unit_costs(list(one.graph.nodes), boxes, rounding))
            if small is not None:
                units = torch.arange(node.size)
                lower, upper = small.bound(torch.zeros_like(units), units)
                value = one.values[node.name].flatten(1)
                assert bool((value >= lower - EXACT).all() & (value <= upper + EXACT).all()), node.name
    finally:
        paths.WINDOWS = before


def by_zonotope(one: Case, folder: Path) -> None:
    rounding = rounded(one)
    for most in (4096, 20):
        state = zonotope(one.graph, one.box, rounding, most)
        inside(one, state.boxes)
        below(one, float(lower_bounds(state.output, one.row.view(1, 1, -1))))


def specification_below(one: Case, slack: float) -> tuple[Specification, float]:
    threshold = one.lowest - slack
    return Specification(one.row[None], torch.tensor([threshold], dtype=torch.float64), torch.tensor([0]), 1), threshold


def slacks(one: Case) -> tuple[float, float, float]:
    """How far below the least sampled value to ask: what CROWN proves, what a search has to work for, and what is false."""
    rounding = rounded(one)
    boxes = interval(one.graph, rounding.params, one.box, rounding)
    gap = one.lowest - float(crown(one.graph, rounding.params, one.box, one.row[None], boxes, rounding))
    return gap + 0.01, 0.8 * gap + 1e-3, -0.01


def by_cutting_inputs(one: Case, folder: Path) -> None:
    inner = one.box[0].float(), one.box[1].float()
    for place, slack in enumerate(slacks(one)):
        specification, threshold = specification_below(one, slack)
        args = (one.graph, rounded(one), one.box, specification)
        found = split_inputs(*args, deadline=monotonic() + (5, 0.1, 0.03)[place], inner=inner, accept=lambda point: False)
        assert found.proved or place > 0
        assert not (found.proved and slack < 0)
        if found.proved:
            below(one, found.lower + threshold)


def by_slopes(one: Case, folder: Path) -> None:
    rounding, boxes = enclosed(one)
    prover = Prover(one.graph, rounding, one.box, boxes, Limits(domains=0))
    below(one, float(prover.plain(one.row[None])))
    below(one, float(prover.slopes(one.row[None], one.lowest - 1e-3)[0]))


def by_branch_and_bound(one: Case, folder: Path) -> None:
    rounding, boxes = enclosed(one)
    for place, slack in enumerate(slacks(one)):
        found = prove(one.graph, rounding, one.box, boxes, one.row, one.lowest - slack, Limits(domains=4, seconds=0.3))
        assert found.proved or place > 0
        assert not (found.proved and slack < 0)
        if found.proved:
            below(one, found.lower)


def by_cutting_units(one: Case, folder: Path) -> None:
    rounding, boxes = enclosed(one)
    for place, slack in enumerate(slacks(one)):
        args = (one.graph, rounding, one.box, boxes, one.row, one.lowest - slack)
        found = split_units(*args, domains=4, deadline=perf_counter() + 0.3)
        assert found.proved or place > 0
        assert not (found.proved and slack < 0)
        if found.proved:
            below(one, found.lower)


def by_folding(one: Case, folder: Path) -> None:
    rounding, boxes = enclosed(one)
    below(one, float(last_layer_folding(one.graph, rounding.params, one.row[None], boxes, rounding)))


def by_attack(one: Case, folder: Path) -> None:
    rounding = rounded(one)
    boxes = interval(one.graph, rounding.params, one.box, rounding)
    specification, threshold = specification_below(one, -0.01)
    inner = one.box[0].float(), one.box[1].float()
    seen: list[Tensor] = []

    def accept(point: Tensor) -> bool:
        seen.append(point)
        return True

    params = one.graph.tensors()
    assert attack(one.graph, params, inner, boxes, specification, accept, rounds=1, seed=0, deadline=monotonic() + 10, steps=10) is not None
    assert bool((seen[-1] >= inner[0]).all() & (seen[-1] <= inner[1]).all())
    assert float(run(one.graph, params, seen[-1][None]).flatten(1) @ one.row.float()) <= threshold + 1e-5


def by_query(one: Case, folder: Path) -> None:
    """Through files: what lies far below every value is not reached, what a sampled point reaches is."""
    (folder / "m.onnx").write_bytes(to_onnx(one.graph).SerializeToString())
    sides = [tuple(Fraction(value) for value in end.flatten().tolist()) for end in one.box]
    coefficients = tuple((j, Fraction(value)) for j, value in enumerate(one.row.tolist()))
    contract = "real" if any(isinstance(node, FakeQuant) for node in one.graph.nodes) else "fp32"
    for slack, verdict in ((slacks(one)[0], "unsat"), (slacks(one)[2], "sat")):
        unsafe = (Constraint(coefficients, Fraction(one.lowest - slack)),)
        write_vnnlib(folder / "p.vnnlib", Query(16, len(one.row), (QueryCase(InputBox(*sides), (unsafe,)),)))
        answer = answer_query(folder / "m.onnx", folder / "p.vnnlib", CONTRACTS[contract], timeout=20)
        # A step that either rounding may take is no witness in real arithmetic.
        assert answer.verdict == verdict or (contract == "real" and answer.verdict in ("unknown", "timeout") and verdict == "sat")


def by_files(one: Case, folder: Path) -> None:
    """Written, read back and executed by ONNX Runtime."""
    data = to_onnx(one.graph).SerializeToString()
    again = from_onnx(data, "network")
    kinds = [[type(node) for node in graph.nodes if not isinstance(node, Reshape)] for graph in (again, one.graph)]
    assert kinds[0] == kinds[1]
    found = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"input": one.points.float().numpy()})[0]
    close(one, torch.from_numpy(found), [again])


def close(one: Case, found: Tensor, graphs: list[Graph]) -> None:
    # A quantised value may be one step off where a value lies at a tie.
    steps = [node.scale for node in one.graph.nodes if isinstance(node, FakeQuant)]
    slack = 1e-4 + 40 * sum(steps)
    expected = one.values[one.graph.output].flatten(1)
    assert float((found.double().flatten(1) - expected).abs().max()) < slack
    for graph in graphs:
        assert float((run(graph, graph.tensors(), one.points.float()).double().flatten(1) - expected).abs().max()) < slack


def by_torch(one: Case, folder: Path) -> None:
    with torch.no_grad():
        close(one, to_torch(one.graph)(one.points.float()), [])


def by_compression(one: Case, folder: Path) -> None:
    close(one, one.values[one.graph.output], [compress(one.graph, {}, inputs=one.points.float().numpy()[:4]).packed])


def by_c_source(one: Case, folder: Path) -> None:
    emit_c(one.graph).write(folder)
    with CompiledModel(folder / "model.c", one.graph.input_shape, one.graph.node(one.graph.output).size) as compiled:
        close(one, torch.from_numpy(compiled.logits(one.points.float().numpy())), [])


def by_execution(one: Case, folder: Path) -> None:
    values = run(one.graph, one.graph.tensors(torch.float64), one.points)
    assert torch.equal(values, one.values[one.graph.output])


def by_checker(one: Case, folder: Path) -> None:
    """A certificate of the sample with the clearest prediction, each bound confirmed by the independent checker."""
    logits = one.values[one.graph.output]
    best, second = logits.topk(2, dim=1).values.T
    clearest = int((best - second).argmax())
    x, label = one.points[[clearest]].float().numpy(), logits[[clearest]].argmax(1).numpy()
    rules = "real" if any(isinstance(node, FakeQuant) for node in one.graph.nodes) else "fp32"
    folder = folder / "artifact"
    (folder / "model").mkdir(parents=True)
    model = folder / "model" / "model.fp32.onnx"
    model.write_bytes(to_onnx(one.graph).SerializeToString())
    classes = tuple(map(str, range(one.graph.node(one.graph.output).size)))
    settings = Verify(contract=rules, methods=("interval", "crown"), attack_steps=1, attack_restarts=1)
    data = Dataset(x, 1.0, label, classes, None)
    found = certify(
        model, data, PerturbationSet(epsilon="0.0001"), CONTRACTS[rules], settings, file="model/model.fp32.onnx", data_name="one"
    )
    write_certificate(folder / "certificate" / "certificate.json", found)
    save_inputs(folder, np.array([claim.id for claim in found.claims if claim.verdict != "falsified"], np.int64), x)
    answer = check(sign(folder))
    if answer.confirmed != answer.certified:
        raise InputError(answer.problem)
    # Where two classes are equally high nothing is robust, and so nothing is claimed.
    assert answer.certified == int(float(best[clearest]) > float(second[clearest]) + 0.01)


def by_every_contract(one: Case, folder: Path) -> None:
    """The values of exact arithmetic lie in the boxes of every contract that takes the network; at least one does."""
    taken = []
    for name, contract in CONTRACTS.items():
        try:
            rounding = Rounding(one.graph, contract)
            inside(one, interval(one.graph, rounding.params, one.box, rounding))
            boxes = interval(one.graph, rounding.params, one.box, rounding)
            bound = float(crown(one.graph, rounding.params, one.box, one.row[None], boxes, rounding))
            assert bound <= one.lowest + EXACT
            taken.append(name)
        except InputError as error:
            refused = str(error)
    if not taken:
        raise InputError(refused)
    assert "real" in taken


ENGINES: dict[str, Callable[[Case, Path], None]] = {
    "interval": by_interval,
    "crown": by_crown,
    "chosen lines": by_chosen_lines,
    "refined boxes": by_refined_boxes,
    "windows": by_windows,
    "zonotope": by_zonotope,
    "input splitting": by_cutting_inputs,
    "optimised slopes": by_slopes,
    "branch and bound": by_branch_and_bound,
    "unit splitting": by_cutting_units,
    "folded last layers": by_folding,
    "attack": by_attack,
    "query": by_query,
    "files": by_files,
    "torch": by_torch,
    "compression": by_compression,
    "C source": by_c_source,
    "contracts": by_every_contract,
    "execution": by_execution,
    "checker": by_checker,
}
TAKES_BATCH_NORM = {"torch", "execution"}
# What is refused, before any work; everything else has a rule.
# Batch normalisation is folded between training and export.
NEEDS_FOLDING = {(engine, BatchNorm) for engine in ENGINES if engine not in TAKES_BATCH_NORM}
NO_C = {("C source", kind) for kind in BUILDERS if not issubclass(kind, SUPPORTED)}
# The checker takes quantised networks whose sums are all on integers (tests/check/test_check_int8.py).
QUANTISED = {("torch", FakeQuant), ("compression", FakeQuant)}
REFUSED = NEEDS_FOLDING | NO_C | QUANTISED
REFUSED_IN_THE_MIDDLE = {("checker", FakeQuant)}
# Rules that a type has none of: its engines refuse it by that.
NO_BOUND_RULE = {(rule, BatchNorm) for rule in ("backward", "zonotope", "error")}
NO_COMPRESSION = {BatchNorm, FakeQuant}


def test_every_node_type_has_a_network() -> None:
    assert set(BUILDERS) == node_types()
    assert all(kind.__module__.startswith("vsparse.graph.") for kind in BUILDERS)


@pytest.mark.parametrize("rule", bound_rules.MISSING)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_node_type_has_the_rule_of_every_engine_of_bounds(kind: type[Node], rule: bound_rules.Rule) -> None:
    node = BUILDERS[kind]({}, lambda *shape: np.ones(shape))
    assert bound_rules.has_rule(node, rule) == ((rule, kind) not in NO_BOUND_RULE)
    if (rule, kind) in NO_BOUND_RULE:
        with pytest.raises(InputError, match='node "f" has type'):
            bound_rules.require([node], rule)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_node_type_has_the_rules_of_compression_in_a_module_of_the_same_family(kind: type[Node]) -> None:
    node = BUILDERS[kind]({}, lambda *shape: np.ones(shape))
    if kind in NO_COMPRESSION:
        with pytest.raises(InputError, match='node "f" has type'):
            compression_rules.require([node])
        return
    rules = compression_rules.rules_of(node)
    assert type(rules).__module__.rpartition(".")[2] == type(bound_rules.rules_of(node)).__module__.rpartition(".")[2]
    # Either rational values, or the word that there are none; the error analysis is asked for always.
    assert rules.has_exact_values == (type(rules).exact is not compression_rules.CompressionRules.exact)


@pytest.mark.parametrize("tail", [False, True], ids=["middle", "tail"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_engine_takes_it_or_refuses_it(kind: type[Node], tail: bool, tmp_path: Path) -> None:
    one = case(kind, tail)
    refused = REFUSED if tail else REFUSED | REFUSED_IN_THE_MIDDLE
    wrong = []
    for name, engine in ENGINES.items():
        try:
            engine(one, tmp_path)
        except InputError as error:
            if (name, kind) not in refused:
                wrong.append(f"{name} refuses: {error}")
        else:
            if (name, kind) in refused:
                wrong.append(f"{name} is listed as refusing it")
    assert not wrong, wrong


class Unknown(Node):
    """A node type that no engine knows."""


def strange(kind: type[Node] = Unknown) -> Case:
    """Returns the network of Relu with a node of another type in its place, whose values and boxes are those of Relu."""
    one = case(Relu, False)
    nodes = tuple(kind(name=n.name, inputs=n.inputs, shape=n.shape) if n.name == "f" else n for n in one.graph.nodes)
    return Case(Graph("x", one.graph.input_shape, nodes, "y", one.graph.params), one.box, one.points, one.values, one.row)


def test_a_type_that_no_engine_knows_is_refused_by_all_of_them(tmp_path: Path) -> None:
    one = strange()
    for name, engine in ENGINES.items():
        if name != "windows":  # which takes chains that it knows and no others
            with pytest.raises((InputError, NotImplementedError, TypeError)):
                engine(one, tmp_path)
    with pytest.raises(InputError):
        apply(one.graph.node("f"), {}, torch.zeros(1))


def specification_of(one: Case) -> Specification:
    return specification_below(one, 0.0)[0]


# Each engine by itself, given all that it starts from: boxes and error terms as if the node were a ReLU.
ALONE: dict[str, Callable[[Case, Rounding, dict[str, Box]], object]] = {
    "interval": lambda one, r, boxes: interval(one.graph, r.params, one.box),
    "crown": lambda one, r, boxes: crown(one.graph, r.params, one.box, one.row[None], boxes, r),
    "refined boxes": lambda one, r, boxes: refine(one.graph, r.params, one.box, boxes, r),
    "zonotope": lambda one, r, boxes: zonotope(one.graph, one.box, r),
    "rounding": lambda one, r, boxes: Rounding(one.graph, CONTRACTS["fp32"]),
    "input splitting": lambda one, r, boxes: split_inputs(one.graph, r, one.box, specification_of(one), deadline=monotonic() + 9),
    "optimised slopes": lambda one, r, boxes: relax(one.graph, r, one.graph.tensors(), one.box, boxes),
    "branch and bound": lambda one, r, boxes: prove(one.graph, r, one.box, boxes, one.row, 0.0, Limits(domains=4)),
    "unit splitting": lambda one, r, boxes: split_units(one.graph, r, one.box, boxes, one.row, 0.0, domains=4, deadline=perf_counter() + 9),
    "compression": lambda one, r, boxes: compress(one.graph, {}),
    "C source": lambda one, r, boxes: emit_c(one.graph),
}


@pytest.mark.parametrize("engine", ALONE)
def test_a_type_without_a_rule_is_refused_by_name_before_any_work(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rounding, boxes = enclosed(case(Relu, False))
    one = strange()

    def works(*arguments: object, **named: object) -> None:
        raise AssertionError("something was computed")

    for function in ("conv2d", "linear", "relu", "conv_transpose2d"):
        monkeypatch.setattr(torch.nn.functional, function, works)
    with pytest.raises(InputError, match='"f"'):
        ALONE[engine](one, rounding, boxes)


@pytest.mark.parametrize("kind", [LeakyRelu, Clip, Sigmoid, Tanh, FakeQuant], ids=lambda kind: kind.__name__)
def test_lines_with_any_slopes_hold(kind: type[Node]) -> None:
    """At thousands of points, the ends and kinks among them, for slopes from 0 to 1 and boxes of every size."""
    node = BUILDERS[kind]({}, np.random.default_rng(0).random)
    generator = torch.Generator().manual_seed(3)
    lower = torch.randn(500, generator=generator, dtype=torch.float64) * torch.logspace(-6, 2, 500, dtype=torch.float64)
    upper = lower + torch.rand(500, generator=generator, dtype=torch.float64) * torch.logspace(2, -7, 500, dtype=torch.float64)
    below, above = (torch.rand(500, generator=generator, dtype=torch.float64) for _ in range(2))
    below[:50], above[25:75] = 0.0, 1.0
    under, over = curve_rules(node).intercepts(node, lower, upper, below, above, True)
    share = torch.rand(2000, 500, generator=generator, dtype=torch.float64)
    x = torch.cat([lower + share * (upper - lower), lower[None], upper[None], torch.zeros(1, 500, dtype=torch.float64)])
    x = torch.minimum(torch.maximum(x, lower), upper)
    value = apply(node, {}, x.unsqueeze(1)).squeeze(1)
    assert bool((below * x + under <= value + 1e-15).all())
    assert bool((above * x + over >= value - 1e-15).all())
