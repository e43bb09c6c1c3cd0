"""Learning rate over time, as a factor of the base rate: a pure function, so there is no state to resume."""

import math

from vifast.train.config import ScheduleConfig


def lr_factor(schedule: ScheduleConfig, *, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Factor of the base rate at an optimiser step (from 0).

    ``steps``: constant within an epoch; ``(epoch + 1) / warmup_epochs`` while warming up, then ``gamma`` to
    the number of milestones passed. ``cosine``: linear warm-up by step, then half a cosine down to 0.

    >>> agw = ScheduleConfig(name="steps", warmup_epochs=10, milestones=(20, 50), gamma=0.1)
    >>> [round(lr_factor(agw, step=e, steps_per_epoch=1, epochs=81), 4) for e in (0, 9, 10, 19, 20, 50)]
    [0.1, 1.0, 1.0, 1.0, 0.1, 0.01]
    """
    if schedule.name == "steps":
        epoch = step // steps_per_epoch
        if epoch < schedule.warmup_epochs:
            return (epoch + 1) / schedule.warmup_epochs
        return schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
    warmup = schedule.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(epochs * steps_per_epoch - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * progress))
