"""Which gallery rows a protocol removes from a query's list: one camera, of everyone or of the query's identity."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vifast import _checks
from vifast.retrieval._arguments import codes_of, encoded

MODES = ("none", "same_camera", "same_id_camera", "sysu")
SYSU_QUERY_CAMERA, SYSU_DROPPED_CAMERA = 3, 2  # the infrared and the visible camera of one room


@dataclass(frozen=True)
class Exclusion:
    """``drop_camera [Q]`` and ``gallery_camera [G]`` are int32 codes; a negative code drops nothing."""

    drop_camera: Tensor
    gallery_camera: Tensor
    own_only: bool

    @classmethod
    def of(cls, mode: str, query_cams, gallery_cams, num_query: int, num_gallery: int) -> "Exclusion":
        """From the argument ``exclude`` of the public calls; cameras may be None where the mode does not need them."""
        _checks.one_of("exclude", mode, MODES)
        for name, cams in (("query_cams", query_cams), ("gallery_cams", gallery_cams)):
            if cams is None and mode != "none":
                raise ValueError(f'{name}: expected cameras for exclude="{mode}", got None')
        query = None if query_cams is None else codes_of("query_cams", query_cams, "query", num_query)
        gallery = None if gallery_cams is None else codes_of("gallery_cams", gallery_cams, "gallery", num_gallery)
        if mode == "none":
            nothing = torch.full((num_query,), -1, dtype=torch.int32)
            return cls(nothing, torch.zeros(num_gallery, dtype=torch.int32), False)
        dropped = torch.full_like(query, SYSU_DROPPED_CAMERA) if mode == "sysu" else query
        drop_codes, gallery_codes = encoded(dropped, gallery)
        if mode == "sysu":
            drop_codes[query != SYSU_QUERY_CAMERA] = -1
        return cls(drop_codes, gallery_codes, mode == "same_id_camera")


def blocks_of(mode: str, query_ids, gallery_ids, query_cams, gallery_cams) -> Callable[[int, int, int, int], Tensor]:
    """What ``search`` takes as ``exclude``: the bool block of a tile. Identities are needed by ``"same_id_camera"``."""
    rule = Exclusion.of(mode, query_cams, gallery_cams, len(query_cams), len(gallery_cams))

    def block(q0: int, q1: int, g0: int, g1: int) -> Tensor:
        drop = rule.drop_camera[q0:q1, None]
        out = (drop >= 0) & (drop == rule.gallery_camera[g0:g1])
        return out & (query_ids[q0:q1, None] == gallery_ids[g0:g1]) if rule.own_only else out

    return block
