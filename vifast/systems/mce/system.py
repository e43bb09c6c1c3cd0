"""MCE as a trainable system: network, objective, and when its memories are filled and moved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vifast.data.draws import channels
from vifast.data.records import VISIBLE
from vifast.functional import class_centers
from vifast.kernels.unit_rows import unit_rows
from vifast.systems.base import Batch, System, TrainingImages
from vifast.systems.embedding import EmbeddingNetwork, EmbeddingOptions
from vifast.systems.gather import all_rows
from vifast.systems.mce.objective import STREAMS, MCEObjective


@dataclass(frozen=True, kw_only=True)
class MCEOptions(EmbeddingOptions):
    """Hyper-parameters of network and objective; defaults are the release's. From ``temperature`` on they are the
    objective's, see `MCEObjective`."""

    temperature: float = 0.05
    margin: float = 0.3
    auxiliary_weight: float = 0.4
    kl_weight: float = 1.2
    keep: float = 0.25
    keep_global: float = 0.1


class MCE(System):
    """One network for three streams: visible images, infrared images, and visible images seen through one channel.

    Before an epoch the memories are filled with the mean features of the un-augmented training images, the auxiliary
    ones in a channel that ``(seed, epoch, image)`` decide. Losses are of the memories as the step finds them; after the
    optimiser's step they move once, by the rows of all its batches and all processes together, whatever ``gather`` is:
    they are the same everywhere.

    Expects batches with as many visible as infrared images of every identity, in any order, and their ``auxiliary``
    images. The retrieval feature is the neck's output, scaled to unit length.

    Source: spec dakd 2 and 3.

    >>> mce = MCE.build(MCEOptions(backbone="resnet_tiny", non_local=(0, 0, 1, 0)), num_classes=5).eval()
    >>> mce.embed({"image": torch.zeros(2, 3, 64, 32), "modality": torch.tensor([0, 1])}).shape
    torch.Size([2, 128])
    """

    Options = MCEOptions
    auxiliary = True

    def __init__(self, options: MCEOptions, *, num_classes: int):
        super().__init__()
        self.network = EmbeddingNetwork(options)
        self.objective = MCEObjective(
            num_classes,
            self.network.out_channels,
            temperature=options.temperature,
            margin=options.margin,
            auxiliary_weight=options.auxiliary_weight,
            kl_weight=options.kl_weight,
            keep=options.keep,
            keep_global=options.keep_global,
        )
        self._seen: list[tuple[Tensor, Tensor]] = []  # rows [N, 3, D] and labels of the batches of a step

    def start_epoch(self, epoch: int, images: TrainingImages) -> None:
        def twice(batch: Batch) -> Tensor:
            """Features of the images, and of the visible ones in one channel; zeros for the others."""
            visible = batch["modality"] == VISIBLE
            drawn = channels(batch["index"].cpu().numpy(), seed=images.seed, epoch=epoch)
            drawn = torch.from_numpy(drawn).to(visible.device)[visible]
            shown = batch["image"][visible]
            shown = shown[torch.arange(len(shown), device=drawn.device), drawn].unsqueeze(1).expand_as(shown)
            rows = self.network(torch.cat((batch["image"], shown)))
            pair = rows.new_zeros(2, len(visible), rows.size(1))
            pair[0], pair[1, visible] = rows[: len(visible)], rows[len(visible) :]
            return torch.cat(tuple(pair), 1)

        plain, auxiliary = images.features(twice).chunk(2, 1)
        classes = self.objective.memory.live.size(1)
        of_visible, of_infrared = (torch.where(images.modality == m, images.labels, -1) for m in (0, 1))
        streams = ((plain, of_visible), (plain, of_infrared), (auxiliary, of_visible))
        self.objective.memory.fill(torch.stack([class_centers(*stream, classes)[0] for stream in streams]))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = self._streams(batch)
        with self.watch("forward"):
            feat = self.network(images)
        # The network's rows are float32, and so is everything that is computed of them.
        with self.watch("losses"), torch.autocast(feat.device.type, enabled=False):
            rows = unit_rows(feat).unflatten(0, (len(STREAMS), -1)).transpose(0, 1)
            rows, labels = self.mined(rows, labels)
            self._seen.append((rows.detach(), labels))
            return self.objective(rows.transpose(0, 1), labels)

    @torch.no_grad()
    def end_step(self) -> None:
        rows, labels = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        if self.gather == "rank":
            rows, labels = all_rows(rows, labels)
        self.objective.memory.move(rows.transpose(0, 1), labels)

    def embed(self, batch: Batch) -> Tensor:
        return self.network(batch["image"])

    def backbones(self) -> list[nn.Module]:
        return [self.network.trunk]

    def _streams(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images of the three streams, one after the other, and the labels that all of them have."""
        if "auxiliary" not in batch:
            raise ValueError("batch: expected auxiliary images, see make_loader(auxiliary=True)")
        label, modality, auxiliary = batch["label"], batch["modality"], batch["auxiliary"]
        if len(label) != 2 * len(auxiliary):
            raise ValueError(f"batch: expected as many infrared images as visible, {len(auxiliary)}, of {len(label)}")
        by_label = label.argsort(stable=True)
        order = by_label[modality[by_label].argsort(stable=True)]  # visible first, identity by identity in both
        visible = order[: len(auxiliary)]
        place = (modality == VISIBLE).cumsum(0) - 1
        return torch.cat((batch["image"][order], auxiliary[place[visible]])), label[visible]
