"""DAKD's network without a teacher: exits after its earlier stages learn from its end."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from vifast import _checks
from vifast.functional import standardized_kl
from vifast.nn import split_batch_norms
from vifast.systems.base import Batch, System
from vifast.systems.dakd.options import DAKDOptions
from vifast.systems.embedding import EmbeddingNetwork, EmbeddingOptions

_STAGES = (1, 2, 3)  # that an exit follows; the fourth is the end
_USED = {"image_size", "teacher_mode", "bn_batches", "bn_update_repeats", "exit_share", "exit_temp", "exit_hint"}
_USED |= {field.name for field in fields(EmbeddingOptions)}


class DAKDExits(System):
    r"""The network of DAKD as its own teacher: an exit after each of three stages learns from labels and from the end.

    An exit is what is left of the trunk with one block to a stage, pooling, neck and classifier. The loss is the end's
    cross-entropy plus that of every exit, a mean over rows of

        (1 - exit_share) CE + exit_share T^2 KL(end || exit) + exit_hint ||f_exit - f_end||^2,

    of logits over T = exit_temp in the divergence, and of features of unit length. No gradient flows from an exit's
    terms into the end's features and logits.

    Of DAKD there is no objective, no prototype and no teacher; options of these are refused. Exits take part in
    training alone. The retrieval feature is the neck's output at the end, scaled to unit length.

    Source: Zhang et al. 2019, "Be Your Own Teacher"; spec dakd 4 and 11. Weights, temperature and form of the exits are
    choices.

    >>> options = DAKDOptions(backbone="resnet_tiny", non_local=(0, 0, 1, 0), teacher_mode="exits")
    >>> system = DAKDExits.build(options, num_classes=5).eval()
    >>> system.embed({"image": torch.zeros(2, 3, 64, 32), "modality": torch.tensor([0, 1])}).shape
    torch.Size([2, 128])
    """

    Options = DAKDOptions

    def __init__(self, options: DAKDOptions, *, num_classes: int):
        super().__init__()
        for field in fields(options):
            value = getattr(options, field.name)
            if field.name not in _USED and value != field.default:
                raise ValueError(f"{field.name}: expected {field.default!r} for teacher_mode=exits, got {value!r}")
        _checks.within("exit_share", options.exit_share, 0, 1)
        _checks.positive("exit_temp", options.exit_temp)
        _checks.non_negative("exit_hint", options.exit_hint)
        self.options = options
        self.network = EmbeddingNetwork(options)
        short = replace(options, weights=None, non_local=(0, 0, 0, 0))
        exits = [EmbeddingNetwork(short, first=stage + 1, depths=(1, 1, 1, 1)) for stage in _STAGES]
        self.exits = nn.ModuleList(exits)
        width = self.network.out_channels
        self.classifiers = nn.ModuleList(nn.Linear(width, num_classes, bias=False) for _ in (*_STAGES, "end"))
        split_batch_norms(self, options.bn_splits, repeats=options.bn_update_repeats)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        order = batch["modality"].argsort(stable=True)  # visible first, for the batch normalisations
        with self.watch("forward"):
            maps: list[Tensor] = []
            end = self.network(batch["image"][order], maps=maps)
            feats = [leave(x) for leave, x in zip(self.exits, maps, strict=False)]  # and the end's map
        # All rows are float32, and so is everything that is computed of them.
        with self.watch("losses"), torch.autocast(end.device.type, enabled=False):
            *feats, end, labels = self.mined(*feats, end, batch["label"][order])
            *logits, end_logits = (head(feat) for head, feat in zip(self.classifiers, (*feats, end), strict=True))
            parts, share = {"ce": cross_entropy(end_logits, labels)}, self.options.exit_share
            for stage, *of_exit in zip(_STAGES, feats, logits, strict=True):
                terms = exit_terms(*of_exit, end, end_logits, labels, temperature=self.options.exit_temp)
                value = (1 - share) * terms["ce"] + share * terms["kl"] + self.options.exit_hint * terms["hint"]
                parts[f"exit_{stage}"] = value
                if self.observe is not None:
                    self.observe({f"exit_{name}_{stage}": term.detach() for name, term in terms.items()})
            return {"loss": sum(parts.values()), **parts}

    def embed(self, batch: Batch) -> Tensor:
        return self.network(batch["image"])

    def backbones(self) -> list[nn.Module]:
        return [network.trunk for network in (self.network, *self.exits)]


def exit_terms(
    feat: Tensor, logits: Tensor, end: Tensor, end_logits: Tensor, labels: Tensor, *, temperature: float
) -> dict[str, Tensor]:
    """What an exit's features and logits ``[N, D]``, ``[N, K]`` lose, means over rows; ``end`` is the teacher's."""
    apart = normalize(feat) - normalize(end.detach())
    return {
        "ce": cross_entropy(logits, labels),
        "kl": standardized_kl(logits, end_logits.detach(), (temperature,), standardize="none"),
        "hint": apart.square().sum(1).mean(),
    }
