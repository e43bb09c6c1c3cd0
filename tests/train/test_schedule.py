import pytest

from vifast.train.config import ScheduleConfig
from vifast.train.schedule import lr_factor


def factors(schedule, *, epochs, steps_per_epoch):
    steps = range(epochs * steps_per_epoch)
    return [lr_factor(schedule, step=s, steps_per_epoch=steps_per_epoch, epochs=epochs) for s in steps]


def test_steps_are_constant_within_an_epoch():
    schedule = ScheduleConfig(name="steps", warmup_epochs=2, milestones=(3, 4), gamma=0.1)
    expected = [0.5, 0.5, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert factors(schedule, epochs=5, steps_per_epoch=2) == pytest.approx(expected)


def test_cosine_warms_up_linearly_and_ends_near_zero():
    values = factors(ScheduleConfig(name="cosine", warmup_epochs=1), epochs=5, steps_per_epoch=4)
    assert values[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert values[4] == 1.0
    assert values[12] == pytest.approx(0.5)
    assert values[4:] == sorted(values[4:], reverse=True)
    assert 0 < values[-1] < 0.02


def test_fractional_warm_up():
    values = factors(ScheduleConfig(name="cosine", warmup_epochs=0.5), epochs=2, steps_per_epoch=4)
    assert values[:2] == pytest.approx([0.5, 1.0])
