"""A run that is cut short anywhere goes on to the bits of a whole one."""

import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from same_runs import same_run, trajectory

from vifast.data import synthetic
from vifast.train import checkpoint
from vifast.train.config import dump_config, load_config
from vifast.train.log import RunLog, read_metrics
from vifast.train.loop import Stopped, Trainer

IDKL = [  # dropout draws random numbers in every step
    "options={backbone: resnet_tiny, backbone_width: 4, reduction: 4, graph: light}",
    "dataset.sampler=pk",
    "steps_per_epoch=3",
    "epochs=2",
    "evaluate_every=1",
    "precision=no",
]


@pytest.fixture(params=[0, 1, 2], ids="checkpoint_every={}".format)
def config(request, tiny_overrides):
    return load_config("idkl-sysu", [*tiny_overrides, *IDKL, f"checkpoint_every={request.param}"])


@pytest.fixture
def whole(config, tmp_path):
    Trainer(config, tmp_path / "whole", quiet=True).fit()
    return tmp_path / "whole"


def fit_until(killed_at, config, out):
    record = RunLog.train

    def killed(self, step, *args, **options):
        record(self, step, *args, **options)
        if step == killed_at:
            raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "train", killed)
        with pytest.raises(MemoryError):
            Trainer(config, out, quiet=True).fit()


@pytest.mark.parametrize("killed_at", [1, 3, 5])
def test_killed_while_it_records_a_step(whole, config, tmp_path, killed_at):
    fit_until(killed_at, config, tmp_path / "run")
    torch.manual_seed(12345)  # whatever the new process's generator holds must not matter
    trainer = Trainer(config, tmp_path / "run", resume=True, quiet=True)
    if config.checkpoint_every == 1:
        assert trainer.step >= killed_at - 1
    trainer.fit()
    same_run(tmp_path / "run", whole)


def test_epochs_of_different_lengths_are_counted_and_resumed(tiny_overrides, tmp_path):
    root = synthetic.write("regdb", tmp_path / "regdb", num_ids=10, size=(32, 16), images_per_camera=6)
    overrides = ["dataset.name=regdb", f"data={root}", "dataset.sampler=idkl", "steps_per_epoch=null", "epochs=4"]
    overrides += ["dataset.num_ids=3", "schedule.warmup_epochs=4", "checkpoint_every=2"]
    config = load_config("agw-sysu", [*tiny_overrides, *overrides])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    Trainer(config, whole, quiet=True).fit()
    records = [record for record in trajectory(whole) if record["kind"] == "train"]
    lengths = Counter(record["epoch"] for record in records)
    assert len(set(lengths.values())) > 1
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    assert all(record["lr_factor"] == pytest.approx((record["epoch"] + 1) / 4) for record in records)
    fit_until(len(records) - 1, config, cut)
    Trainer(config, cut, resume=True, quiet=True).fit()
    same_run(cut, whole)


@pytest.mark.parametrize("killed_at", [2, 4])
def test_memories_are_those_of_the_moment_it_was_cut(tiny_overrides, tmp_path, killed_at):
    """MCE's move every step: a run resumed within an epoch may not fill them again."""
    overrides = [*tiny_overrides, "steps_per_epoch=3", "epochs=2", "checkpoint_every=1", "accumulate=2"]
    config = load_config("mce-sysu", [*overrides, "dataset.num_ids=2", "dataset.num_instances=2"])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    Trainer(config, whole, quiet=True).fit()
    fit_until(killed_at - 1, config, cut)
    Trainer(config, cut, resume=True, quiet=True).fit()
    same_run(cut, whole)
    weights = load_file(checkpoint.find_weights(cut))
    live, anchors = (weights[f"objective.memory.{name}"] for name in ("live", "anchors"))
    assert not torch.equal(live, anchors)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_the_step_under_way(whole, config, tmp_path, monkeypatch, number):
    train_step = Trainer._train_step

    def asked(self, batches):
        if self.step == 3:
            signal.raise_signal(number)
        return train_step(self, batches)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", asked)
        with pytest.raises(Stopped, match="stopped after 1 epochs and 1 steps, and saved"):
            Trainer(config, tmp_path / "run", quiet=True).fit()
    assert signal.getsignal(number) == before
    assert checkpoint.latest(tmp_path / "run").name == "epoch-0001-step-00001"
    Trainer(config, tmp_path / "run", resume=True, quiet=True).fit()
    same_run(tmp_path / "run", whole)


def test_killed_by_the_system_at_a_random_moment(tiny_overrides, tmp_path):
    """kill -9 again and again, at whatever point the run has come to, until it is through."""
    config = load_config("idkl-sysu", [*tiny_overrides, *IDKL, "checkpoint_every=1", "epochs=3"])
    Trainer(config, tmp_path / "whole", quiet=True).fit()
    (tmp_path / "config.yaml").write_text(dump_config(config))
    program = "from vifast.train.loop import Trainer; from vifast.train.config import load_config; import sys, pathlib;"
    program += "Trainer(load_config(sys.argv[1]), pathlib.Path(sys.argv[2]), resume=True, quiet=True).fit()"
    command = [sys.executable, "-c", program, str(tmp_path / "config.yaml"), str(tmp_path / "run")]
    kills = 0
    for steps in (2, 5, 99):
        run = subprocess.Popen(command, cwd=tmp_path)
        while run.poll() is None and len(read_metrics(tmp_path / "run")) < steps:
            time.sleep(0.002)
        run.kill()
        kills += run.wait() == -signal.SIGKILL
    assert subprocess.run(command, cwd=tmp_path, check=True).returncode == 0
    assert kills >= 2
    same_run(tmp_path / "run", tmp_path / "whole")


CKDA = [  # two stages: dropout, stochastic depth, a teacher and a merge
    "options={preset: release, backbone: vit_tiny_demo}",
    "dataset={name: sysu, height: 64, width: 32, num_ids: 2, num_instances: 2}",
    "steps_per_epoch=2",
    "epochs=2",
    "precision=no",
]


@pytest.mark.parametrize("killed_at", [3, "finish"])
def test_a_later_stage_goes_on_to_the_same_bits(sysu_root, tmp_path, monkeypatch, killed_at):
    first = load_config("ckda-clean", [f"data={sysu_root}", *CKDA])
    Trainer(first, tmp_path / "one", quiet=True).fit()
    config = load_config("ckda-clean", [f"data={sysu_root}", *CKDA, f"options.previous={tmp_path / 'one'}", "seed=1"])
    config = config.model_copy(update={"checkpoint_every": 1})
    Trainer(config, tmp_path / "whole", quiet=True).fit()
    if killed_at == "finish":

        def killed(*args):
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_final", killed)
            with pytest.raises(MemoryError):
                Trainer(config, tmp_path / "run", quiet=True).fit()
    else:
        fit_until(killed_at, config, tmp_path / "run")
    torch.manual_seed(12345)
    Trainer(config, tmp_path / "run", resume=True, quiet=True).fit()
    same_run(tmp_path / "run", tmp_path / "whole")
    knowledge = [load_file(tmp_path / run / checkpoint.FINAL / checkpoint.KNOWLEDGE) for run in ("run", "whole")]
    assert all(torch.equal(rows, knowledge[1][name]) for name, rows in knowledge[0].items())
    assert not torch.equal(
        knowledge[0]["prototypes_v"], load_file(tmp_path / "one/final/knowledge.safetensors")["prototypes_v"]
    )
