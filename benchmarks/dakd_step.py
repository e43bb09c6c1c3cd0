"""What a step of DAKD's student costs, against the release's step written out: ``python benchmarks/dakd_step.py``.

The written-out step is plain PyTorch after the specification: a network forward for each modality and network, as the
release's, and each twice where it says so; the affinities of its non-local blocks as matrices; divergences temperature
by temperature; percentiles on the host and every part of the loss read back for the log (dakd 4, 5, H3, H6). Operations
are products and convolutions at the published size, counted without computing them; dispatches and reads are counted,
and the time is taken, of a small batch; on a card of the published one, in bfloat16.
"""

import copy
from collections import Counter
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from counting import Dispatches
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.functional import conv2d, normalize
from torch.utils.flop_counter import FlopCounterMode

import vifast
from vifast.bench.machine import device_name
from vifast.bench.measure import interleaved, quantile
from vifast.nn import NonLocal
from vifast.systems.dakd import DAKD, DAKDOptions
from vifast.systems.embedding import EmbeddingNetwork

CLASSES, TAU, TEMPERATURES = 395, 0.05, (2, 3, 4, 5, 6)
PUBLISHED, SMALL = (64, 384, 128), (16, 128, 64)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TIMED = PUBLISHED if DEVICE == "cuda" else SMALL
ROUNDS = 11


class WrittenOut(NonLocal):
    """With the affinity of all positions to all."""

    def forward(self, x):
        theta, phi, g = (conv2d(x, m.weight, m.bias).flatten(2) for m in (self.theta, self.phi, self.g))
        affinity = theta.transpose(1, 2) @ phi / theta.size(2)
        y = (affinity @ g.transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.norm(self.out(y))


def divergence(student, teacher, temperature):
    z_s, z_t = ((x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7) for x in (student, teacher))
    log_p, log_q = (z_t / temperature).log_softmax(1), (z_s / temperature).log_softmax(1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1).mean()


class Release(nn.Module):
    """The release's step for a student and a teacher of ``EmbeddingNetwork``."""

    def __init__(self, student, teacher, prototypes, times):
        super().__init__()
        self.student, self.teacher, self.times = student, teacher, times
        self.register_buffer("prototypes", prototypes)
        for network in (student, teacher):
            for module in network.modules():
                if isinstance(module, NonLocal):
                    module.__class__ = WrittenOut

    def forward(self, batch):
        sides = batch["image"].chunk(2)
        with vifast.use_reference():
            for _ in range(self.times):
                students = [self.student(side) for side in sides]
                with torch.no_grad():
                    teachers = [self.teacher(side) for side in sides]
        loss, logged = 0, []
        for level in ("instance", "class"):
            (s_v, t_v), (s_i, t_i) = zip(students, teachers, strict=True)
            if level == "class":
                v, r = (prototypes.T / TAU for prototypes in self.prototypes)
                s_v, t_v, s_i, t_i = s_v @ v, t_v @ v, s_i @ r, t_i @ r
            sure = t_i.softmax(1).amax(1)
            kept = (sure <= self.threshold(sure)).float().mean()
            for temperature in TEMPERATURES:
                strong = (s_v, t_v) if temperature in (3, 4, 5) else (s_i, t_i)
                value = 0.9 * (divergence(*strong, temperature) + kept * divergence(s_i, t_i, temperature))
                loss = loss + 0.5 * value
                logged.append(value)
        for value in logged:
            read(value)
        return {"loss": loss}

    @staticmethod
    def threshold(sure):
        return sure.median() if isinstance(sure, FakeTensor) else sure.detach().cpu().quantile(0.5).to(sure.device)


def read(value):
    return 0.0 if isinstance(value, FakeTensor) else value.item()


def batch_of(rows, height, width, device):
    image = torch.randn(rows, 3, height, width, device=device).to(memory_format=torch.channels_last)
    number = torch.arange(rows, device=device)
    return {"image": image, "label": number // 8, "modality": number // (rows // 2)}


def ways():
    """The steps by name, of the same weights."""
    torch.manual_seed(0)
    options = DAKDOptions(variant="release")
    dakd = DAKD.build(options, num_classes=CLASSES)
    teacher = DAKD.build(options, num_classes=CLASSES)
    networks = [EmbeddingNetwork(options) for _ in range(2)]
    for network, system in zip(networks, (dakd, teacher), strict=True):
        network.load_state_dict(system.network.state_dict())
    networks[1].eval().requires_grad_(False)
    prototypes = normalize(torch.randn(2, CLASSES, dakd.network.out_channels), dim=2)
    dakd.learn_from(teacher)
    dakd.prototypes_v.copy_(prototypes[0])
    dakd.prototypes_i.copy_(prototypes[1])
    found = {"vifast": dakd}
    for times, name in ((1, "written out"), (2, "written out, each forward twice")):
        found[name] = Release(*copy.deepcopy(networks), prototypes.clone(), times)
    for model in found.values():
        model.to(memory_format=torch.channels_last)
    return found


@contextmanager
def reads():
    """How often the step reads values of tensors back."""
    count, patches = Counter(), []
    for name in ("item", "tolist", "cpu", "__bool__"):
        plain = getattr(torch.Tensor, name)

        def counted(self, *args, plain=plain):
            count["reads"] += 1
            return plain(self, *args)

        patches.append(mock.patch.object(torch.Tensor, name, counted))
    for patch in patches:
        patch.start()
    yield count
    for patch in patches:
        patch.stop()


def step(model, batch):
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=batch["image"].is_cuda):
        loss = model(batch)["loss"]
    loss.backward()


def measure():
    """Rows of the table: name, forward and whole operations, dispatches, reads, seconds."""
    models = {name: model.to(DEVICE) for name, model in ways().items()}
    batch = batch_of(*TIMED, DEVICE)
    rows = {}
    for name, model in models.items():
        step(model, batch)
        with Dispatches() as dispatched:
            model(batch)
        forward = dispatched.count
        with Dispatches() as dispatched, reads() as count:
            step(model, batch)
        rows[name] = [forward, dispatched.count, count["reads"]]
    times = interleaved({name: partial(step, model, batch) for name, model in models.items()}, ROUNDS, 60)
    for name, model in models.items():
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
            loss = model(batch_of(*PUBLISHED, DEVICE))["loss"]
            forward = counter.get_total_flops()
            loss.backward()
        counts = [forward, counter.get_total_flops()]
        rows[name] = [*counts, *rows[name], quantile(times[name], 0.5)]
    return rows


def main():
    rows = measure()
    best = rows["vifast"][-1]
    print("| step | TFLOP forward | TFLOP in all | dispatches forward | in all | reads by the host | time |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, (forward, whole, *counts, seconds) in rows.items():
        cells = [f"{forward / 1e12:.3f}", f"{whole / 1e12:.3f}", *(f"{n:,}" for n in counts), f"{seconds / best:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\n{best:.3g} s; {device_name(DEVICE)}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
