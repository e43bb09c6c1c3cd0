"""What a step of a later stage of CKDA costs, against the step written out: ``python benchmarks/ckda_step.py``.

The written-out step is plain PyTorch after the specification, as research code does it (ckda 12.0): modalities and
identities are picked by masks, the hardest pair of every anchor by itself, attention is a matrix, the last block is
computed for all tokens, the parameters are one group each. Both have the same weights, teacher and prototypes.
Operations are products and convolutions at the published size, counted without computing them; dispatches and reads are
counted, and the time is taken, of a smaller network and batch; on a card of the published ones, in bfloat16.
"""

import copy
from functools import partial
from unittest import mock

import torch
from counting import Dispatches
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.functional import cross_entropy, gelu, normalize
from torch.utils.flop_counter import FlopCounterMode

from vifast.bench.machine import device_name
from vifast.bench.measure import interleaved, quantile
from vifast.models import VITS
from vifast.nn import Frozen
from vifast.systems.ckda import CKDA, CKDAOptions
from vifast.train.plan import ATTENTION

VITS["vit_small_step"] = (192, 12, 3)
CLASSES, OLD = 395, 206
PUBLISHED, SMALL = ("vit_base", 64, 256, 128), ("vit_small_step", 32, 128, 64)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TIMED = PUBLISHED if DEVICE == "cuda" else SMALL
KAPPA, TAU, MARGIN = 10.0, 0.1, 0.1
ROUNDS = 5


def picked(rows, mask):
    """Rows under a mask, of which every read is a wait; without values to read, as many as there would be."""
    return rows[: len(rows) // 2] if isinstance(mask, FakeTensor) else rows[mask]


class WrittenOut(nn.Module):
    """The step for the network, classifier, teacher and prototypes of a `CKDA`."""

    def __init__(self, ckda):
        super().__init__()
        self.network, self.classifier, self.ckda = ckda.network, ckda.classifier, ckda

    def forward(self, batch):
        images, labels, modality = batch["image"], batch["label"], batch["modality"]
        feat, prompts = self.features(self.network, images, modality)
        with torch.no_grad():
            old, old_prompts = self.features(self.ckda.teacher.module, images, modality)
            old = normalize(self.ckda.teacher.module.neck(old))
        neck = self.network.neck(feat)
        sides = [modality == m for m in (0, 1)]
        ids = [picked(labels, side) for side in sides]
        loss = sum(cross_entropy(picked(self.classifier(neck), s), y) for s, y in zip(sides, ids, strict=True))
        loss = loss + triplet(feat, feat, labels, labels)
        rows = [picked(feat, side) for side in sides]
        centers = [self.centers(side, y) for side, y in zip(rows, ids, strict=True)]
        own = labels[: len(centers[0])] if isinstance(labels, FakeTensor) else ids[0].unique()
        loss = loss + 0.25 * (triplet(*centers, own, own) + triplet(*centers[::-1], own, own))
        loss = loss + 0.25 * (triplet(rows[0], centers[1], ids[0], own) + triplet(centers[0], rows[1], own, ids[1]))
        loss = loss + (prompts - old_prompts).abs().mean()
        known = self.ckda.prototypes_v, self.ckda.prototypes_i
        for side in sides:
            for prototypes in known:
                loss = loss + 0.25 * alignment(picked(neck, side), picked(old, side), prototypes)
        return {"loss": loss}

    @staticmethod
    def centers(rows, labels):
        if isinstance(labels, FakeTensor):
            return rows.unflatten(0, (-1, 4)).mean(1)
        return torch.stack([rows[labels == i].mean(0) for i in labels.unique()])

    def features(self, network, images, modality):
        prompts = self.prompts(network.prompts, images, modality)
        vit = network.backbone
        x = vit.patch_embed(images + prompts).flatten(2).mT
        x = torch.cat((vit.cls_token.expand(len(x), -1, -1), x), 1) + vit.pos_embed
        x = vit.pos_drop(x + vit.modality_embed[modality][:, None])
        for block in vit.blocks:
            attn = block.attn
            q, k, v = attn.qkv(block.norm1(x)).unflatten(2, (3, attn.heads, -1)).permute(2, 0, 3, 1, 4)
            scores = (q @ k.mT / q.size(3) ** 0.5).softmax(3)
            x = block._sum(x, attn.proj_drop(attn.proj((scores @ v).transpose(1, 2).flatten(2))))
            mlp = block.mlp
            x = block._sum(x, mlp.drop(mlp.fc2(mlp.drop(gelu(mlp.fc1(block.norm2(x)))))))
        return vit.norm(x)[:, 0], prompts

    @staticmethod
    def prompts(module, images, modality):
        (b, c, h, w), s = images.shape, module.cell
        cells = images.view(b, c, h // s, s, w // s, s).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * s * s)
        specific = []
        for m, part in enumerate(module.specific):
            hidden = part.down(picked(cells, modality == m))
            specific.append(part.up(part.norm(hidden.flatten(0, 1))).view(*hidden.shape[:2], -1))
        own = torch.cat(specific) if isinstance(modality, FakeTensor) else torch.zeros_like(cells)
        if not isinstance(modality, FakeTensor):
            for m, rows in enumerate(specific):
                own[modality == m] = rows
        common = module.common.down(cells).mT.unflatten(2, (h // s, w // s))
        common = module.common.up(module.common.mixed(common).relu().flatten(2).mT)
        dropped = 0
        for rows in (own, common):
            image = rows.view(b, h // s, w // s, c, s, s).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
            dropped = dropped + nn.functional.dropout(image, module.dropout, module.training)
        return dropped


def triplet(anchors, others, labels, other_labels):
    dist = anchors.square().sum(1, keepdim=True) + others.square().sum(1) - 2 * anchors @ others.T
    dist, same = dist.clamp(min=1e-12).sqrt(), labels[:, None] == other_labels
    if isinstance(same, FakeTensor):
        return dist.mean()
    positive = torch.stack([row[mask].max() for row, mask in zip(dist, same, strict=True)])
    negative = torch.stack([row[~mask].min() for row, mask in zip(dist, same, strict=True)])
    return (positive - negative + MARGIN).relu().mean()


def alignment(student, teacher, prototypes):
    def affinity(rows):
        relation = normalize((normalize(rows) @ normalize(prototypes).T / TAU).softmax(1))
        return (KAPPA * relation @ relation.T).log_softmax(1)

    new, old = affinity(student), affinity(teacher)
    return (old.exp() * (old - new)).sum(1).mean()


def batch_of(rows, height, width, device):
    torch.manual_seed(1)
    labels = (torch.arange(rows // 2, device=device) // 4).repeat(2)
    image = torch.randn(rows, 3, height, width, device=device)
    return {"image": image, "label": labels, "modality": torch.arange(rows, device=device) // (rows // 2)}


def ways(backbone, rows, height, width, device, drop=True):
    """Model and optimiser by name, of the same weights."""
    torch.manual_seed(0)
    still = {} if drop else {"dropout": 0.0, "drop_path": 0.0, "prompt_dropout": 0.0}
    options = CKDAOptions(backbone=backbone, image_size=(height, width), **still)
    ckda = CKDA(options, num_classes=CLASSES).train()
    ckda.teacher = Frozen(CKDA(options, num_classes=OLD).network)
    for name in ("prototypes_v", "prototypes_i"):
        setattr(ckda, name, torch.randn(OLD, ckda.classifier.in_features))
    if device != "cpu":  # which a fake module cannot be moved to, though it is there
        ckda.to(device)
    valueless = isinstance(ckda.classifier.weight, FakeTensor)  # whose copy PyTorch cannot make
    plain = WrittenOut(ckda if valueless else copy.deepcopy(ckda)).train()
    rate = {"lr": 1e-6, "weight_decay": 1e-4}
    groups = [{"params": parameters} for parameters in ckda.parameter_groups().values()]
    single = [{"params": [p]} for p in plain.network.parameters() if p.requires_grad]
    single.append({"params": [plain.classifier.weight]})
    return {
        "vifast": (ckda, torch.optim.AdamW(groups, fused=True, **rate)),
        "written out": (plain, torch.optim.AdamW(single, **rate)),
    }


def step(model, optimizer, batch):
    optimizer.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=batch["image"].is_cuda):
        loss = model(batch)["loss"]
    loss.backward()
    optimizer.step()


def measure():
    """Rows of the table: name, whole operations, dispatches of all and of the optimiser, reads, seconds."""
    models, batch = ways(*TIMED, DEVICE), batch_of(*TIMED[1:], DEVICE)
    rows = {}
    for name, (model, optimizer) in models.items():
        step(model, optimizer, batch)
        with Dispatches() as whole:
            step(model, optimizer, batch)
        with Dispatches() as update:
            optimizer.step()
        rows[name] = [whole.count, update.count, whole.reads]
    times = interleaved({name: partial(step, *pair, batch) for name, pair in models.items()}, ROUNDS, 60)
    with FakeTensorMode(), mock.patch("torch.nn.init.trunc_normal_"):  # which reads its bounds back
        for name, (model, _) in ways(*PUBLISHED, "cpu").items():
            with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
                model(batch_of(*PUBLISHED[1:], "cpu"))["loss"].backward()
            rows[name] = [counter.get_total_flops(), *rows[name], quantile(times[name], 0.5)]
    return rows


def main():
    quiet = {name: model for name, (model, _) in ways(*SMALL, DEVICE, drop=False).items()}
    values = [model(batch_of(*SMALL[1:], DEVICE))["loss"].item() for model in quiet.values()]
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)  # the same step, or no number
    rows = measure()
    best = rows["vifast"][-1]
    print("| step | TFLOP | dispatches | of the optimiser | reads by the host | time |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, (flops, *counts, seconds) in rows.items():
        cells = [f"{flops / 1e12:.2f}", *(f"{n:,}" for n in counts), f"{seconds / best:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\n{best:.3g} s; {device_name(DEVICE)}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
