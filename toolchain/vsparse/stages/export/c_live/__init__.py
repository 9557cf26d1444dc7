"""The live certificate in C: interval bounds of the frame at hand, computed by the device itself (docs/numerics.md, section 14)."""

from vsparse.stages.export.c_live.emit import emit_live_c

__all__ = ["emit_live_c"]
