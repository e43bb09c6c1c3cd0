"""The published evaluation protocols of visible-infrared re-identification.

Each call takes features with their labels and returns a :class:`ProtocolResult`. What a protocol leaves out of a
query's list, which CMC it reports and which galleries it draws stands in one place: the function of its dataset.

Example:
    >>> import torch
    >>> from vifast.retrieval import protocols
    >>> visible, infrared = torch.eye(3), torch.tensor([[1.0, 0.1, 0.0], [0.1, 1.0, 0.0], [0.9, 0.0, 0.2]])
    >>> ids = torch.tensor([4, 7, 9])
    >>> print(protocols.regdb(visible, infrared, ids, ids, topk=2))
    RegDB, visible to infrared
                R-1   mAP   mINP  queries  gallery
    split 1  100.00  ...
"""

from vifast.retrieval.protocols.published import LLCM, REGDB, VCM, llcm, regdb, sysu, vcm
from vifast.retrieval.protocols.result import ProtocolResult

#: Names of the protocols of a dataset that has several.
VARIANTS = {"regdb": tuple(REGDB), "llcm": tuple(LLCM), "vcm": tuple(VCM)}

__all__ = ["VARIANTS", "ProtocolResult", "llcm", "regdb", "sysu", "vcm"]
