"""Modules that sit in a re-identification network: pooling, neck, non-local block."""

from vifast.nn.gem import GeM
from vifast.nn.neck import BNNeck
from vifast.nn.non_local import NonLocal

__all__ = ["BNNeck", "GeM", "NonLocal"]
