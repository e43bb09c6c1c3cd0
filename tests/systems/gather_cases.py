"""One training step of a system, alone or as a rank of a group; ``FOLDER RANK RANKS`` as a program."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from vifast import systems
from vifast.nn import SplitBatchNorm1d

TINY = {"backbone": "resnet_tiny", "backbone_width": 4}
DROPS = ("dropout", "drop_path", "prompt_dropout")
OPTIONS = {
    "agw": {**TINY, "non_local": (0, 0, 0, 0)},
    "ckda": {"backbone": "vit_tiny_demo", "image_size": (32, 16)} | dict.fromkeys(DROPS, 0.0),
    "dakd": {**TINY, "non_local": (0, 0, 1, 0)},
    "dakd exits": {**TINY, "non_local": (0, 0, 1, 0), "teacher_mode": "exits"},
    "idkl": {**TINY, "reduction": 4, "dropout": 0.0},
    "mce": {**TINY, "non_local": (0, 0, 1, 0)},
}
ROWS, IDENTITIES = 16, 4


def system(name):
    torch.manual_seed(0)
    kind = systems.get(name.partition(" ")[0])
    result = kind.build(kind.Options(**OPTIONS[name]), num_classes=IDENTITIES).double()
    if result.needs_teacher:
        result.learn_from(kind.build(kind.Options(**OPTIONS[name]), num_classes=IDENTITIES).double())
        for prototypes in (result.prototypes_v, result.prototypes_i):
            torch.nn.init.normal_(prototypes)
    if name == "mce":
        result.objective.memory.fill(torch.randn(3, IDENTITIES, result.network.out_channels, dtype=torch.float64))
        result.network.neck.eval()
    if name == "ckda":
        result.network.prompts.eval()
    for module in result.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.InstanceNorm2d | SplitBatchNorm1d):
            module.eval()  # whose statistics are those of a process, also in published multi-GPU training
    return result


def batch():
    torch.manual_seed(1)
    rows = torch.arange(ROWS)
    images = torch.randn(ROWS, 3, 32, 16, dtype=torch.float64)
    auxiliary = images[1::2].flip(2)
    return {"image": images, "label": rows * IDENTITIES // ROWS, "modality": 1 - rows % 2, "auxiliary": auxiliary}


def step(name, rank=0, ranks=1, gather="all"):
    """The loss, the gradients by name, and memories after the step, of this rank's slice of the batch."""
    model = system(name)
    model.gather = gather
    wrapped = DistributedDataParallel(model, find_unused_parameters=True) if ranks > 1 else model
    parts = wrapped({key: value.chunk(ranks)[rank] for key, value in batch().items()})
    parts["loss"].backward()
    model.end_step()
    grads = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    return parts["loss"].detach(), grads, {key: value for key, value in model.named_buffers() if "memory" in key}


def main(folder, rank, ranks):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    told = {name: step(name, rank, ranks) for name in OPTIONS} | {"own rows": step("mce", rank, ranks, "rank")}
    torch.save(told, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
