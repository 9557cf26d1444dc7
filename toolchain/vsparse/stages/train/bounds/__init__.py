"""Bounds for training: interval and linear passes with gradients written out; plain arithmetic, never for a verdict."""
