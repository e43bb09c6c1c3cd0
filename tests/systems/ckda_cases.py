"""What the tests of CKDA share: small stages in memory, and a step written out."""

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, normalize

from vifast.systems.ckda import CKDA, CKDAOptions
from vifast.systems.stage import FINAL, KNOWLEDGE, WEIGHTS

TINY = {"backbone": "vit_tiny_demo", "image_size": (64, 48), "common": 4}
QUIET = {"dropout": 0.0, "drop_path": 0.0, "prompt_dropout": 0.0}


def batch(ids=3, images=2, dtype=torch.float32, seed=0):
    """All visible, then all infrared images; the same identities in the same order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(ids).repeat_interleave(images).repeat(2)
    pixels = torch.randn(len(labels), 3, 64, 48, generator=generator, dtype=dtype)
    return {"image": pixels, "label": labels, "modality": torch.arange(2).repeat_interleave(ids * images)}


class Images:
    """A batch as the training images of a dataset."""

    def __init__(self, system, dataset="SYSU-MM01", images=None):
        self.dataset, self._system = dataset, system
        self._batch = batch(seed=5) if images is None else images
        self.labels, self.modality = self._batch["label"], self._batch["modality"]

    def features(self, embed):
        training = self._system.training
        self._system.eval()
        with torch.no_grad():
            feat = embed(self._batch).float()
        self._system.train(training)
        return feat


def ckda(num_classes=3, **options):
    return CKDA(CKDAOptions(**TINY | options), num_classes=num_classes)


def moved(system, seed=7):
    """The system after a step of something: every floating-point tensor of its state is another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in system.state_dict().values():
            if value.is_floating_point():
                value.add_(0.05 * torch.rand(value.shape, generator=generator, dtype=value.dtype))
            else:
                value.add_(10)
    return system


def write_stage(folder, system, images=None):
    """Finishes the stage, and writes its ``final/`` as the loop does."""
    knowledge = system.finish(images or Images(system))
    (folder / FINAL).mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in system.state_dict().items()}, folder / FINAL / WEIGHTS)
    save_file(knowledge, folder / FINAL / KNOWLEDGE)
    return knowledge


def written_out(system, images, *, kappa, post_neck):
    """The parts of a step by the formulas of the specification, with PyTorch's own means, for a quiet system."""
    b = len(images["image"]) // 2
    feat, prompts = system.network(images["image"], images["modality"])
    neck = system.network.neck(feat)
    logits, labels = neck @ system.classifier.weight.T, images["label"]
    parts = {"ce": cross_entropy(logits[:b], labels[:b]) + cross_entropy(logits[b:], labels[b:])}
    parts["triplet"] = triplet(feat, feat, labels, labels)
    visible, infrared, ids = feat[:b], feat[b:], labels[:b].unique()
    centers = [torch.stack([rows[labels[:b] == i].mean(0) for i in ids]) for rows in (visible, infrared)]
    between = 0.5 * triplet(*centers, ids, ids) + 0.5 * triplet(*centers[::-1], ids, ids)
    to_samples = triplet(visible, centers[1], labels[:b], ids) + triplet(centers[0], infrared, ids, labels[:b])
    parts["center"] = 0.5 * between + 0.25 * to_samples
    parts["base"] = parts["loss"] = parts["ce"] + parts["triplet"] + parts["center"]
    parts |= dict.fromkeys(("prompt", "intra", "inter"), torch.zeros_like(parts["base"]))
    if system.teacher is None:
        return parts
    with torch.no_grad():
        old_feat, old_prompts = system.teacher.module(images["image"], images["modality"])
        old = normalize(system.teacher.module.neck(old_feat))
    new = neck if post_neck else feat
    known = system.prototypes_v.to(new), system.prototypes_i.to(new)
    loss = {
        (m, p): alignment(new[m * b : (m + 1) * b], old[m * b : (m + 1) * b], known[p], kappa)
        for m in (0, 1)
        for p in (0, 1)
    }
    parts["prompt"] = (prompts - old_prompts).abs().mean()
    parts["intra"], parts["inter"] = 0.5 * (loss[0, 0] + loss[1, 1]), 0.5 * (loss[0, 1] + loss[1, 0])
    parts["loss"] = parts["base"] + parts["prompt"] + 0.5 * parts["intra"] + 0.5 * parts["inter"]
    return parts


def triplet(anchors, others, labels, other_labels):
    dist = (anchors[:, None] - others).square().sum(2).clamp(min=1e-12).sqrt()
    same = labels[:, None] == other_labels
    hardest = dist.masked_fill(~same, -torch.inf).amax(1) - dist.masked_fill(same, torch.inf).amin(1)
    return (hardest + 0.1).relu().mean()


def alignment(student, teacher, prototypes, kappa):
    def affinity(rows):
        relation = normalize((normalize(rows) @ normalize(prototypes).T / 0.1).softmax(1))
        return (kappa * relation @ relation.T).log_softmax(1)

    new, old = affinity(student), affinity(teacher)
    return (old.exp() * (old - new)).sum(1).mean()
