"""A teacher and its student on drawn people: half a minute of one core."""

import pytest

from vifast.data import synthetic
from vifast.train import stages
from vifast.train.config import load_config
from vifast.train.log import read_metrics
from vifast.train.loop import Trainer

SMALL = [
    "dataset={name: sysu, draw: agw, height: 48, width: 24, num_ids: 16, num_instances: 2, sampler: with_replacement, "
    "cache: memory, augment: {preset: dakd, pad: 3, erase: {p: 0.2}}}",
    "options={backbone: resnet_tiny, non_local: [0, 0, 0, 0]}",
    "optimizer={name: adamw, lr: 4.0e-3, weight_decay: 0.5}",
    "schedule={name: cosine, warmup_epochs: 1}",
    "epochs=5",
    "steps_per_epoch=40",
    "evaluate_every=0",
    "threads=1",
    "teacher_config={base: mce-sysu, epochs: 5, evaluate_every: 0, dataset: {num_ids: 16, num_instances: 2, augment: "
    "{pad: 3, erase: {p: 0.2}}}, optimizer: {name: adamw, lr: 4.0e-3, weight_decay: 0.5}, "
    "schedule: {name: cosine, warmup_epochs: 1, milestones: []}}",
]


def test_a_student_finds_people_that_neither_it_nor_its_teacher_has_seen(tmp_path):
    root = synthetic.write(
        "sysu", tmp_path / "people", seed=0, num_ids=160, num_test=40, images_per_camera=1, size=(64, 32)
    )
    config = load_config("dakd-sysu", [*SMALL, f"data={root}"])
    found = stages.train(config, tmp_path / "run", quiet=True).scores.mean_ap
    config = load_config("dakd-sysu", [*SMALL, f"data={root}", f"teacher={tmp_path / 'run' / 'teacher'}"])
    untrained = Trainer(config, tmp_path / "none", quiet=True).evaluate().scores.mean_ap
    assert found > 2 * untrained
    losses = [record["loss"] for record in read_metrics(tmp_path / "run") if record["kind"] == "train"]
    assert losses[-1] < 0.5 * losses[0]
    assert losses[0] == pytest.approx(0.9 * 5 * (1 + 0.5), rel=0.1)  # of rows that have nothing in common (dakd 5.1)
