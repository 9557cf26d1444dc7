"""The certifying ONNX file: the network, and a lower bound of its least margin over an l∞ ball, in ordinary operators."""

from vsparse.stages.export.certify_onnx.build import certifying_model

__all__ = ["certifying_model"]
