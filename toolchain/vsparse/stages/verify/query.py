"""The answer to a VNN-LIB query about an ONNX file: bounds of all its boxes at once, then attacks, then a search on the cases still open.

`unsat` rests on float64 bounds with the contract's rounding alone, `sat` on an input that is in the box by exact arithmetic (or, where
the box holds no float32 number, on what its decimals are rounded to) and whose outputs, as ONNX Runtime computes them, are unsafe by
exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import inf, prod
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor

from vsparse.answer import Answer, Answered, Witness
from vsparse.bounds import Executions, crown, interval, last_layer_folding
from vsparse.compute_device import accelerated, to_host
from vsparse.contract import Contract
from vsparse.errors import InputError
from vsparse.files import read_bytes
from vsparse.graph import read_onnx
from vsparse.processor import require_kept
from vsparse.reading.integer_kernels import require_exact_sums
from vsparse.reading.kernels import require_kernels
from vsparse.search.specification import Specification
from vsparse.stages.export import check_runtime_graph
from vsparse.stages.verify.deployed import MAX_MODEL_BYTES
from vsparse.stages.verify.device_memory import in_smaller_pieces
from vsparse.stages.verify.query_case import CaseSearch
from vsparse.stages.verify.query_context import QueryContext
from vsparse.stages.verify.query_reading import compare_with_query
from vsparse.stages.verify.query_specification import specification_of
from vsparse.vnnlib import read_vnnlib

__all__ = ["Answer", "Answered", "Witness", "answer_query"]

SHORT_ROUNDS = 2
# Boxes bounded at once, and bytes that the bounds of all their activations may take.
MOST_AT_ONCE = 256
BYTES_AT_ONCE = 2**27
ROUNDING = (
    "at an input of the box rounding errors alone, the contract's and those of the bounds themselves, leave the property open, and they do "
    "not shrink with the box, so that no search can prove it; no input that breaks it was found"
)
OPEN = "the search ended with a part of the box that it could neither prove nor refute"


def answer_query(
    model: Path,
    property: Path,
    contract: Contract,
    *,
    timeout: float = inf,
    memory_bytes: int = 2**32,
    jobs: int = 1,
    seed: int = 0,
    started: float | None = None,
    progress: Callable[[int], None] | None = None,
    found: Callable[[Witness], None] | None = None,
    device: torch.device | None = None,
) -> Answer:
    """Answers whether some input of a VNN-LIB property has the outputs that it asserts, under a numeric contract.

    Bounds, attacks and searches are computed on `device` (default: the processor).
    `timeout` is in seconds from `started` (of `time.monotonic`; default: now); the search checks the clock between operations and may
    overrun; `vsparse.ask` enforces limits. `memory_bytes` bounds the size of batches in the same way.
    `progress` gets the number of domains looked at, `found` the witness when there is one.
    Raises InputError for a model or property that cannot be read, that do not fit each other, or whose operators have no bounds, and
    SoundnessError where an execution, at a centre or where an attack came by, contradicts a bound.
    """
    started = monotonic() if started is None else started
    query = read_vnnlib(property)
    data = read_bytes(model, "model", MAX_MODEL_BYTES)
    reading = read_onnx(data, str(model))  # a damaged file, or an operator without bounds, is named before anything is executed
    graph = reading.graph
    require_kept(contract, graph.storage)
    require_kernels(contract, data, f"model {model}")
    require_exact_sums(contract, f"model {model}")
    for what, wanted, has in (
        ("inputs", query.inputs, prod(graph.input_shape)),
        ("outputs", query.outputs, prod(graph.shape_of(graph.output))),
    ):
        if wanted != has:
            raise InputError(f"property {property} declares {wanted} {what} and model {model} has {has}; give the property of this model")
    if not contract.exact:
        check_runtime_graph(model)
    device = device or torch.device("cpu")
    context = QueryContext(data, graph, query, contract, started + timeout, memory_bytes, jobs, seed, progress, found, device)
    with _one_thread(), accelerated(device):
        evidence = compare_with_query(data, reading, query, str(model), optimised=not contract.exact).as_dict()
        if device.type == "cpu":
            verdict, reason = _verdict(context)
        else:
            verdict, reason = in_smaller_pieces(lambda: _verdict(context), "the query")
    return Answer(verdict, contract.name, context.witness, monotonic() - started, context.domains, reason, evidence)


def _verdict(context: QueryContext) -> tuple[Answered, str]:
    """Bounds every case, attacks what is open for a short while, then searches case by case; why, where that is `unknown`."""
    if context.late:
        return "timeout", ""
    open_ = _open_cases(context)
    if open_ is None:
        return "timeout", ""
    for case in open_:
        if case.attack(SHORT_ROUNDS):
            return "sat", ""
        if context.late:
            return "timeout", ""
    reason = ""
    for case in open_:
        # Once a case cannot be decided, the others matter only if they hold a witness.
        verdict = case.only_attack() if reason else case.search()
        if verdict in ("sat", "timeout"):
            return verdict, ""
        if verdict == "unknown":
            reason = reason or (ROUNDING if case.hopeless else OPEN)
    return ("unknown", reason) if reason else ("unsat", "")


def _open_cases(context: QueryContext) -> list[CaseSearch] | None:
    """Returns the cases that intervals and one CROWN pass do not prove, the nearest to unsafe first; None where time is up.

    Properties of hundreds of boxes are bounded in batches: most of their boxes ask for no more.
    """
    graph, params, rounding = context.graph, context.rounding.params, context.rounding
    size = 8 * (prod(graph.input_shape) + sum(node.size for node in graph.nodes))
    at_once = max(1, min(MOST_AT_ONCE, min(BYTES_AT_ONCE, context.memory_bytes // 16) // (4 * size)))
    cases = context.query.cases
    found: list[tuple[float, CaseSearch]] = []
    keep = BYTES_AT_ONCE
    for start in range(0, len(cases), at_once):
        if context.late:
            return None
        some = [CaseSearch(context, case) for case in cases[start : start + at_once]]
        lower, upper = (torch.cat([one.box[end] for one in some]) for end in (0, 1))
        box = lower, upper
        with torch.no_grad():
            boxes = interval(graph, params, box, rounding)
            # Bounds are checked against executions before they prove anything.
            names = [f"the centre of box {start + i}" for i in range(len(some))]
            executed = Executions.of(graph, params, (box[0] + box[1]) * 0.5, names=names)
            executed.check(boxes, "intervals")
            outputs = tuple(to_host(end) for end in boxes[graph.output])
            for i, one in enumerate(some):
                one.specification = specification_of(context.query, one.case, (outputs[0][i : i + 1], outputs[1][i : i + 1]))
            left = list(range(len(some)))
            for bounds in (last_layer_folding, crown):
                of = [i for i in left if some[i].specification is not None]
                rows = _stacked([some[i].specification for i in of])
                if not len(rows):
                    break
                rows, at = rows.to(context.device), torch.tensor(of).to(context.device)
                part = {name: (one[0][at], one[1][at]) for name, one in boxes.items()}
                if bounds is last_layer_folding:
                    values = last_layer_folding(graph, params, rows, part, rounding)
                else:
                    values = crown(graph, params, (box[0][at], box[1][at]), rows, part, rounding, None, None, context.working_bytes)
                replace(executed[at], samples=None).check_rows(rows, values, "intervals" if bounds is last_layer_folding else "crown")
                proved = {i for i, value in zip(of, to_host(values), strict=True) if some[i].settle(value)}
                left = [i for i in left if i not in proved]
        for i in left:
            if keep > 0:
                some[i].keep({name: (one[0][i : i + 1].clone(), one[1][i : i + 1].clone()) for name, one in boxes.items()})
                keep -= 2 * size
            found.append((some[i].nearest, some[i]))
    return [case for _, case in sorted(found, key=lambda pair: pair[0])]


def _stacked(specifications: Sequence[Specification | None]) -> Tensor:
    """Returns the rows of several specifications as [n, R, K], filled up with zeros."""
    rows = [specification.rows for specification in specifications if specification is not None]
    most = max(map(len, rows), default=0)
    if not most:
        return torch.zeros(0, 0, 0, dtype=torch.float64)
    return torch.stack([torch.cat([one, one.new_zeros(most - len(one), one.shape[1])]) for one in rows])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Turns off torch's own threads for the block: on small operators they cost more than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
