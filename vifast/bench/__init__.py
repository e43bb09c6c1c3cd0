"""Timing of the ops: the inputs and floors of every one, declared once, for ``vifast bench`` and for the record."""

from vifast.bench import batch, images, maps, pairs, rows, systems
from vifast.bench.case import PASSES, Case, Work

CASES: tuple[Case, ...] = tuple(case for family in (batch, pairs, rows, maps, images, systems) for case in family.CASES)

__all__ = ["CASES", "PASSES", "Case", "Work"]
