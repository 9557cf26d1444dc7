"""The interface of model.certify.onnx: what its inputs, its outputs and the nodes that certify are called (docs/live.md)."""

from __future__ import annotations

# Inputs: `input`, as of the network, and the radius; outputs: those of the network, then these two.
EPSILON = "epsilon"
CLASS, MARGIN = "class", "margin"
# What the names of all nodes and tensors that do not belong to the network itself begin with.
PREFIX = "certify."
