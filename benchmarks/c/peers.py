"""What people would execute the same network with instead of model.c: each peer is a call without arguments that returns the logits.

A peer that is not installed is left out, and the results say so. Each is set to one thread. `torch` is eager and dense, and
`torch_sparse` is about fully connected networks alone: PyTorch multiplies sparse matrices (CSR) and has no sparse convolution.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from vsparse.graph import Conv, Gemm, Graph, Relu, Reshape, to_onnx

Call = Callable[[], NDArray[np.float32]]


def peers(graph: Graph, net: torch.nn.Module, x: NDArray[np.float32]) -> dict[str, Call]:
    """Returns the calls of the peers that are installed, ONNX Runtime first; `net` is the graph's network, `x` one input [1, *shape]."""
    torch.set_num_threads(1)
    found = {"onnxruntime": _onnxruntime(graph, x)}
    if all(isinstance(node, Conv | Gemm | Relu | Reshape) for node in graph.nodes):
        found["torch"] = _torch(graph, x)
        with contextlib.suppress(ImportError):
            import litert

            found["litert_xnnpack"] = litert.call_of(graph, x)
    if all(isinstance(node, Gemm | Relu | Reshape) for node in graph.nodes):
        found["torch_sparse"] = _torch_sparse(graph, x)
    with contextlib.suppress(ImportError):
        found["executorch_xnnpack"] = _executorch(net, x)
    return found


def versions() -> dict[str, str]:
    """Returns the versions of the peers, `absent` for one that is not installed."""
    found = {}
    for name in ("onnxruntime", "torch", "executorch", "ai-edge-litert"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _onnxruntime(graph: Graph, x: NDArray[np.float32]) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x}
    return lambda: np.asarray(session.run(None, feed)[0])


def _torch(graph: Graph, x: NDArray[np.float32]) -> Call:
    """The operators one by one, dense: what a program without an exporter executes."""
    functional = torch.nn.functional
    given, steps = torch.from_numpy(x), []
    for node in graph.nodes:
        if isinstance(node, Relu):
            steps.append(torch.relu)
        elif isinstance(node, Reshape):
            steps.append(lambda value, shape=(1, *node.shape): value.reshape(shape))
        else:
            assert isinstance(node, Conv | Gemm)
            weight = torch.from_numpy(graph.params[node.weight])
            bias = None if node.bias is None else torch.from_numpy(graph.params[node.bias])
            if isinstance(node, Gemm):
                steps.append(lambda value, weight=weight, bias=bias: functional.linear(value, weight, bias))
            else:
                assert node.pads[:2] == node.pads[2:]
                how = {"stride": node.stride, "padding": node.pads[:2], "dilation": node.dilation, "groups": node.groups}
                steps.append(lambda value, weight=weight, bias=bias, how=how: functional.conv2d(value, weight, bias, **how))

    def call() -> NDArray[np.float32]:
        with torch.inference_mode():
            value = given
            for step in steps:
                value = step(value)
            return value.numpy()

    return call


def _torch_sparse(graph: Graph, x: NDArray[np.float32]) -> Call:
    layers = [
        (torch.from_numpy(graph.params[node.weight]).to_sparse_csr(), torch.from_numpy(graph.params[node.bias]), i + 1 < len(graph.nodes))
        for i, node in enumerate(graph.nodes)
        if isinstance(node, Gemm) and node.bias is not None
    ]
    given = torch.from_numpy(x).reshape(-1, 1)

    def call() -> NDArray[np.float32]:
        with torch.inference_mode():
            value = given
            for weight, bias, relu in layers:
                value = torch.sparse.mm(weight, value) + bias[:, None]
                value = value.relu() if relu else value
            return value.numpy().T

    return call


def _executorch(net: torch.nn.Module, x: NDArray[np.float32]) -> Call:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    given = (torch.from_numpy(x),)
    lowered = to_edge_transform_and_lower(torch.export.export(net, given), partitioner=[XnnpackPartitioner()])
    _unsafe_reset_threadpool(1)
    file = lowered.to_executorch().buffer
    program = Runtime.get().load_program(file)
    method = program.load_method("forward")
    inputs, alive = list(given), (file, program, method)  # the method reads the other two as long as it lives

    def call() -> NDArray[np.float32]:
        return np.asarray(alive[-1].execute(inputs)[0])

    return call
