"""Losses on rows of logits; the floor reads every input once, backward again, and writes every gradient once."""

import torch
from torch.nn.functional import normalize

from vifast import functional
from vifast.bench.case import Case, Work, copy, in_turn, product, random_rows, sum_of
from vifast.losses import DAKDLoss

TEMPERATURES = (2, 3, 4, 5, 6)


def _pair(n, d, **kind):
    """Rows as they are in training: two views of the same classes."""
    first = random_rows(n, d, seed=0, **kind)
    return first, first + 0.5 * random_rows(n, d, seed=1, **kind)


def _both_sides(function):
    def build(n, d, device="cpu", dtype=torch.float32):
        a, b = _pair(n, d, device=device, dtype=dtype)
        moved = in_turn(copy(a), copy(b))
        return Work(function, (a, b), (moved, copy(a), moved), (a, b))

    return build


def _standardized(n, d, device="cpu", dtype=torch.float32):
    student, teacher = _pair(n, d, device=device, dtype=dtype)
    moved = sum_of(student, teacher)
    floors = moved, copy(student), moved
    return Work(functional.standardized_kl, (student, teacher, TEMPERATURES), floors, (student,))


def _decoupled(n, k, device="cpu", dtype=torch.float32):
    student, teacher = _pair(n, k, device=device, dtype=dtype)
    labels, moved = torch.arange(n, device=device) % k, sum_of(student, teacher)
    floors = moved, copy(student), moved
    return Work(functional.decoupled_kl, (student, teacher, labels), floors, (student,))


def _dakd(n, k, d, device="cpu", dtype=torch.float32):
    """The floor adds the products with the prototypes: four forward, two backward."""
    kind = {"device": device, "dtype": dtype}
    student_v, student_i = (random_rows(n, d, seed=seed, **kind) for seed in (0, 1))
    teacher_v, teacher_i = (normalize(x + random_rows(n, d, seed=2, **kind)) for x in (student_v, student_i))
    prototypes = [normalize(random_rows(k, d, seed=seed, **kind)) for seed in (3, 4)]
    inputs, loss = (student_v, student_i, teacher_v, teacher_i, *prototypes), DAKDLoss()
    logits, forward, backward = torch.rand(n, k, **kind), [], []
    for student, teacher, to in zip(inputs[:2], inputs[2:4], prototypes, strict=True):
        forward += [product(student, to), product(teacher, to)]
        backward += [sum_of(student, teacher), product(logits, to.T.contiguous())]
    floors = in_turn(*forward, *backward), in_turn(*forward), in_turn(*backward)
    return Work(lambda *args: loss(*args)["loss"], inputs, floors, (student_v, student_i))


def _confidence(n, k, device="cpu", dtype=torch.float32):
    logits = random_rows(n, k, seed=0, device=device, dtype=dtype)
    return Work(functional.softmax_confidence, (logits,), (logits.sum,))


def _mask(n, device="cpu", dtype=torch.float32):
    confidence = random_rows(n, seed=0, device=device, dtype=dtype)
    return Work(functional.percentile_mask, (confidence,), (copy(confidence),))


LOGITS = ((60, 395), (120, 395), (512, 713))

CASES = (
    Case("symmetric_kl", LOGITS, _both_sides(functional.symmetric_kl)),
    Case("entropy_hinge", LOGITS, _both_sides(functional.entropy_hinge)),
    Case("standardized_kl", ((64, 395), (64, 2048), (128, 2048)), _standardized),
    Case("decoupled_kl", LOGITS, _decoupled),
    Case("softmax_confidence", ((64, 395), (64, 2048)), _confidence),
    Case("percentile_mask", ((64,), (1024,)), _mask),
    Case("dakd_loss", ((32, 395, 2048), (64, 395, 2048)), _dakd),
)
