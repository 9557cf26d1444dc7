"""The live certificate in C: interval bounds of the frame at hand, computed by the device itself (docs/numerics.md, section 14)."""
