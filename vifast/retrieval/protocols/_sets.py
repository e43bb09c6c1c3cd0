"""The arguments of a protocol: one side's features with their labels, checked under the caller's names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vifast import _checks
from vifast.functional import class_centers
from vifast.retrieval._arguments import as_tensor, codes_of

DIRECTIONS = ("v2i", "i2v")


@dataclass(frozen=True)
class Side:
    """``feat [N, D]``, ``ids [N]`` and, where they were given, ``cams [N]``; ``name`` is the argument's."""

    name: str
    feat: Tensor
    ids: Tensor
    cams: Tensor | None = None

    @classmethod
    def of(cls, name: str, feat, ids, cams=None) -> Side:
        feat = as_tensor(name, feat)
        _checks.rows(name, feat)
        if feat.numel() == 0:
            raise ValueError(f"{name}: expected at least one row and one column, got {list(feat.shape)}")
        ids = codes_of(f"{name}_ids", ids, name, len(feat))
        return cls(name, feat, ids, None if cams is None else codes_of(f"{name}_cams", cams, name, len(feat)))

    def need_cams(self, reason: str) -> Tensor:
        if self.cams is None:
            raise ValueError(f"{self.name}_cams: expected cameras for {reason}, got None")
        return self.cams

    def select(self, rows: Tensor) -> Side:
        cams = None if self.cams is None else self.cams[rows]
        return Side(self.name, self.feat[rows.to(self.feat.device)], self.ids[rows], cams)

    def tracklets(self, tracklets, *, level: str, min_frames: int) -> Side:
        """One row a tracklet of at least ``min_frames`` frames: its first frame's, or the mean of all. In the order of
        their first frames."""
        name = f"{self.name}_tracklets"
        codes = torch.unique(codes_of(name, tracklets, self.name, len(self.feat)), return_inverse=True)[1]
        frames = torch.bincount(codes)
        first = torch.full_like(frames, len(codes)).scatter_reduce_(0, codes, torch.arange(len(codes)), "amin")
        for of, values in ((f"{self.name}_ids", self.ids), (f"{self.name}_cams", self.cams)):
            if values is not None and bool((bad := values != values[first[codes]]).any()):
                row = int(bad.nonzero()[0])
                raise ValueError(f"{of}: row {row} differs from row {int(first[codes[row]])} of the same tracklet")
        first, order = first.sort()
        kept = frames[order] >= min_frames
        if not bool(kept.any()):
            raise ValueError(f"{name}: expected a tracklet of at least {min_frames} frames, found none")
        side = self.select(first[kept])
        if level == "image":
            return side
        means = class_centers(self.feat, codes.to(self.feat.device), len(frames))[0]
        return Side(self.name, means[order[kept].to(means.device)], side.ids, side.cams)


def directed(direction: str, visible: Side, infrared: Side) -> tuple[Side, Side, str]:
    """(query, gallery, words)."""
    _checks.one_of("direction", direction, DIRECTIONS)
    if direction == "v2i":
        return visible, infrared, "visible to infrared"
    return infrared, visible, "infrared to visible"
