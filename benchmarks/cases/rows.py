"""Losses on rows of logits; the floor reads every input once, backward again, and writes every gradient once."""

import rivals
import torch

from cases._case import Case, copy, in_turn, loss_passes, product, random_rows, sum_of
from vifast import functional
from vifast.losses import DAKDLoss

TEMPERATURES = (2, 3, 4, 5, 6)


def _pair(n, d, device):
    """Rows as they are in training: two views of the same classes."""
    first = random_rows(n, d, seed=0, device=device)
    return first, first + 0.5 * random_rows(n, d, seed=1, device=device)


def _both_sides(ours, eager):
    def build(n, d, device="cpu"):
        a, b = _pair(n, d, device)
        moved = in_turn(copy(a), copy(b))
        return loss_passes(lambda: ours(a, b), lambda: eager(a, b), (a, b), (moved, copy(a), moved))

    return build


def _standardized(n, d, device="cpu"):
    student, teacher = _pair(n, d, device)
    moved = sum_of(student, teacher)
    return loss_passes(
        lambda: functional.standardized_kl(student, teacher, TEMPERATURES),
        lambda: rivals.standardized_kl(student, teacher),
        (student,),
        (moved, copy(student), moved),
    )


def _dakd(n, k, d, device="cpu"):
    """The floor adds the products with the prototypes: four forward, two backward."""
    normalize = torch.nn.functional.normalize
    student_v, student_i = (random_rows(n, d, seed=seed, device=device) for seed in (0, 1))
    teacher_v, teacher_i = (normalize(x + random_rows(n, d, seed=2, device=device)) for x in (student_v, student_i))
    prototypes = [normalize(random_rows(k, d, seed=seed, device=device)) for seed in (3, 4)]
    inputs, loss = (student_v, student_i, teacher_v, teacher_i, *prototypes), DAKDLoss()
    logits, forward, backward = torch.rand(n, k, device=device), [], []
    for student, teacher, to in zip(inputs[:2], inputs[2:4], prototypes, strict=True):
        forward += [product(student, to), product(teacher, to)]
        backward += [sum_of(student, teacher), product(logits, to.T.contiguous())]
    floors = in_turn(*forward, *backward), in_turn(*forward), in_turn(*backward)
    return loss_passes(lambda: loss(*inputs)["loss"], lambda: rivals.dakd(*inputs), (student_v, student_i), floors)


LOGITS = ((60, 395), (120, 395), (512, 713))

CASES = (
    Case("symmetric_kl", LOGITS, _both_sides(functional.symmetric_kl, rivals.symmetric_kl)),
    Case("entropy_hinge", LOGITS, _both_sides(functional.entropy_hinge, rivals.entropy_hinge)),
    Case("standardized_kl", ((64, 395), (64, 2048), (128, 2048)), _standardized),
    Case("dakd_loss", ((32, 395, 2048), (64, 395, 2048)), _dakd),
)
