"""Learning rate over time: a pure function, so there is no state to resume."""

import math

from vifast.train.config import ScheduleConfig


def lr_factor(schedule: ScheduleConfig, *, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Factor of the base rate at an optimiser step (from 0), between 0 and 1.

    ``steps``: constant within an epoch; ``(epoch + 1) / warmup_epochs`` while warming up, then ``gamma`` to
    the number of milestones passed. ``cosine``: linear warm-up by step, then half a cosine down to 0.
    ``epoch_cosine``: constant within an epoch e = 1, 2, ..: ``e / warmup_epochs`` below ``warmup_epochs``, else
    ``(1 + cos(pi e / epochs)) / 2``, whose last is 0 (ckda 7).

    >>> agw = ScheduleConfig(name="steps", warmup_epochs=10, milestones=(20, 50), gamma=0.1)
    >>> [round(lr_factor(agw, step=e, steps_per_epoch=1, epochs=81), 4) for e in (0, 9, 10, 19, 20, 50)]
    [0.1, 1.0, 1.0, 1.0, 0.1, 0.01]
    """
    epoch = step // steps_per_epoch
    if schedule.name == "steps":
        if epoch < schedule.warmup_epochs:
            return (epoch + 1) / schedule.warmup_epochs
        return schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
    if schedule.name == "epoch_cosine":
        if epoch + 1 < schedule.warmup_epochs:
            return (epoch + 1) / schedule.warmup_epochs
        return 0.5 * (1 + math.cos(math.pi * (epoch + 1) / epochs))
    warmup = schedule.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(epochs * steps_per_epoch - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * progress))


def learning_rate(base: float, factor: float, floor: float) -> float:
    """The rate of a parameter group: ``factor`` of the way from ``floor`` to its base rate.

    >>> learning_rate(3e-4, 0.5, floor=0.0)
    0.00015
    """
    return floor + factor * (base - floor)
