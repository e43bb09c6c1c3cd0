"""Every benchmark, declared once: sizes, inputs, providers, and the work that is the floor. The ops are those of
`vifast.bench`, here with their rivals.

A case builds its inputs for one size and returns ``{provider: callable}``, of a differentiable op by pass: ``both``,
``forward`` with what autograd keeps, and ``backward`` of a graph that is there. The provider named ``floor`` is the
product (or read) that no implementation of the pass can do without; all others are reported as a ratio to it and to
``vifast``.
"""

from cases import data, ops, retrieval, steps
from cases._case import Case

FAMILIES = (ops, steps, retrieval, data)
CASES: tuple[Case, ...] = tuple(case for family in FAMILIES for case in family.CASES)


def smoke_size(size):
    """The same case small enough for a smoke run: every dimension over 64 divided by 16."""
    return tuple(x if x <= 64 else max(x // 16, 16) for x in size)
