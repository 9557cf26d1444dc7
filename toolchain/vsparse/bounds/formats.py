"""Which models a contract applies to, by the format of the tensors in the file."""

from __future__ import annotations

from vsparse.contract import Contract
from vsparse.errors import InputError
from vsparse.graph.ir import Graph
from vsparse.graph.quantised import check_integer_execution, integer_contract, is_quantised


def check_format(graph: Graph, contract: Contract) -> None:
    """Raises InputError where the contract does not apply to the model's format; `real` applies to every model.

    Quantised models need `int8` or `int8-tensorrt`, and only they have these; float16 models need a contract that stores fp16, and
    `fp16-tensorrt` is about those alone that type their sums as float32, `fp16-chain` about the others (docs/numerics.md, section 8.3).
    """
    if contract.exact:
        return
    if contract.integers:
        check_integer_execution(graph, contract.name)
    elif is_quantised(graph):
        raise InputError(
            f"the model is quantised, and the contract {contract.name} is not about integers; choose {integer_contract(graph)}"
        )
    if graph.storage != "fp32" and contract.storage != graph.storage:
        raise InputError(f"the model stores {graph.storage}, and the contract {contract.name} is about {contract.storage}; choose fp16")
    if contract.name == "fp16-tensorrt" and not graph.wide_sums:
        raise InputError(
            "the contract fp16-tensorrt is about float16 models that type sums of products as float32, between casts, and this one leaves "
            "them to the kernels; choose fp16-accumulate, or export the network for a target that offers fp16-tensorrt"
        )
    if contract.order == "chain" and graph.wide_sums:
        raise InputError(
            f"the model types sums of products as float32, and the contract {contract.name} is about sums in float16; choose fp16-tensorrt"
        )
