"""Granularities: what is removed as one."""

from vsparse.stages.train.granularity.pattern import Pattern

__all__ = ["Pattern"]
