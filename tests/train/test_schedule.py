import pytest

from vifast.train.config import ScheduleConfig, load_config
from vifast.train.schedule import learning_rate, lr_factor


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


def test_rates_of_ckda():
    """Spec ckda 7 and 14: base rates of the two groups, by epoch."""
    config = load_config("ckda-clean")
    wanted = {3e-4: {1: 1.02e-4, 2: 2.01e-4, 3: 2.973697e-4, 25: 1.515e-4, 49: 3.293031e-6, 50: 3e-6}}
    wanted[1.5e-4] = {1: 5.2e-5, 25: 7.65e-5, 50: 3e-6}
    groups = {name: config.optimizer.lr * config.optimizer.lr_scale.get(name, 1) for name in ("blocks", "rest")}
    assert groups == {"blocks": 1.5e-4, "rest": 3e-4}
    for base, rates in wanted.items():
        for epoch, rate in rates.items():
            for step in (7 * (epoch - 1), 7 * epoch - 1):  # first and last of the epoch
                factor = lr_factor(config.schedule, step=step, steps_per_epoch=7, epochs=config.epochs)
                assert learning_rate(base, factor, config.schedule.floor) == pytest.approx(rate, rel=1e-6)


def test_without_a_floor_rates_are_factors_of_the_base():
    assert learning_rate(0.3, 0.1, 0.0) == 0.3 * 0.1
    assert learning_rate(0.3, 0.0, 0.2) == 0.2
