"""Options of the loop: accumulation, best weights, room on the disk, the definitions in place of the ops."""

import errno
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import vifast
from vifast.systems.agw import AGW
from vifast.train import checkpoint
from vifast.train.config import load_config
from vifast.train.log import read_metrics
from vifast.train.loop import RunError, Trainer
from vifast.train.plan import PROBE, _Peak, plan_run

OPTIONS = "options={backbone: resnet_tiny, backbone_width: 4, reduction: 4, graph: light, dropout: 0.0}"
IDKL = ["system=idkl", "optimizer={name: adam}", OPTIONS]
CKDA = [
    "system=ckda",
    "options={backbone: vit_tiny_demo, dropout: 0.0, drop_path: 0.0, prompt_dropout: 0.0}",
    "optimizer={name: adamw}",
]
SYSTEMS = {"agw": [], "idkl": IDKL, "mce": ["system=mce", "dataset.augment={preset: mce}"], "ckda": CKDA}


def test_accumulated_batches_are_one_step_with_their_mean_gradient(tiny_overrides, tmp_path):
    steady = ["schedule={name: steps}", "optimizer={name: sgd, lr: 1.0, momentum: 0, weight_decay: 0}", "epochs=1"]
    config = load_config("agw-sysu", [*tiny_overrides, *steady, "steps_per_epoch=3", "accumulate=2"])
    trainer = Trainer(config, tmp_path / "run", quiet=True)
    system, batches = trainer.system.train(), list(trainer.loader)
    before = {name: p.detach().clone() for name, p in system.named_parameters()}
    state = {name: value.clone() for name, value in system.state_dict().items()}
    grads = {name: torch.zeros_like(p) for name, p in before.items()}
    for batch in batches[:2]:
        system.zero_grad()
        system(batch)["loss"].backward()
        for name, p in system.named_parameters():
            if p.grad is not None:
                grads[name] += p.grad / 2
    system.load_state_dict(state)
    trainer._train_step(batches[:2])
    for name, p in system.named_parameters():
        assert_close(p, before[name] - grads[name], rtol=1e-4, atol=1e-5, msg=name)
    system.load_state_dict(state)
    trainer.fit()
    assert [record["step"] for record in read_metrics(tmp_path / "run") if record["kind"] == "train"] == [1, 2]


def test_the_best_weights_are_kept_beside_the_last(tiny_overrides, tmp_path, monkeypatch):
    out = tmp_path / "run"
    trainer = Trainer(load_config("agw-sysu", [*tiny_overrides, "evaluate_every=1"]), out, quiet=True)
    weights, scores = [], iter([0.2, 0.9, 0.4])
    evaluate = trainer.evaluate

    def scored():
        found = evaluate()
        weights.append({name: value.clone() for name, value in trainer.system.state_dict().items()})
        wanted = next(scores)
        monkeypatch.setattr(type(found.scores), "scalars", lambda self: {"rank1": 0.5, "mean_ap": wanted})
        return found

    trainer.evaluate = scored
    trainer.fit()
    assert checkpoint.best_score(out) == {"epoch": 2, "rank1": 0.5, "mean_ap": 0.9}
    best, last = (load_file(checkpoint.find_weights(out, which)) for which in ("best", "last"))
    assert all(torch.equal(value, weights[1][name]) for name, value in best.items())
    assert all(torch.equal(value, weights[2][name]) for name, value in last.items())


def test_a_full_disk_is_noticed_before_the_first_step(tiny_overrides, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match=r"run: its checkpoints need .* MiB, the disk has 0 MiB left") as caught:
        Trainer(load_config("agw-sysu", tiny_overrides), tmp_path / "run", quiet=True)
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(tiny_overrides, tmp_path, monkeypatch):
    out, save, calls = tmp_path / "run", torch.save, []

    def full(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args)

    config = load_config("agw-sysu", tiny_overrides)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            Trainer(config, out, quiet=True).fit()
    assert checkpoint.latest(out).name == "epoch-0001"
    Trainer(config, out, resume=True, quiet=True).fit()


def test_an_output_folder_that_cannot_be_made_is_named(tiny_overrides, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/run"):
        Trainer(load_config("agw-sysu", tiny_overrides), tmp_path / "file" / "run", quiet=True).fit()


@pytest.mark.parametrize("system", SYSTEMS)
def test_ops_and_definitions_agree_along_a_loss_curve(tiny_overrides, tmp_path, system):
    """Twenty steps, each also taken by the definitions from the same weights: apart, two runs would soon differ by more
    than an op's error, for training amplifies the last bit."""
    steady = ["optimizer={name: sgd, lr: 1.0e-3}", "schedule={name: steps}", "epochs=1", "steps_per_epoch=20"]
    steady += ["dataset.height=64", "dataset.width=32"]
    own = SYSTEMS[system]
    if system == "ckda":  # a later stage, whose loss has all its terms
        first = load_config("agw-sysu", [*tiny_overrides, *own, *steady, "steps_per_epoch=1"])
        Trainer(first, tmp_path / "one", quiet=True).fit()
        own = [*own, f"options.previous={tmp_path / 'one'}"]
    config = load_config("agw-sysu", [*tiny_overrides, *own, *steady])
    trainer = Trainer(config, tmp_path / "run", quiet=True)
    model, train_step, curve = trainer.system, trainer._train_step, []

    def checked(batches):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        parameters = dict(model.named_parameters())
        with vifast.use_reference():
            loss = model(batches[0])["loss"]
            wanted = torch.autograd.grad(loss, [p for p in parameters.values() if p.requires_grad], allow_unused=True)
            model.end_step()
        moved = {name: value.clone() for name, value in model.named_buffers() if "memory" in name}
        model.load_state_dict(before)
        parts = train_step(batches)
        for name, value in moved.items():
            assert_close(model.state_dict()[name], value, msg=name)
        assert_close(parts["loss"], loss.detach(), rtol=1e-5, atol=0)
        got = [p.grad for p in parameters.values() if p.requires_grad]
        pairs = [pair for pair in zip(got, wanted, strict=True) if pair[1] is not None]
        size = sum(grad.square().sum() for _, grad in pairs).sqrt()
        assert sum((one - other).square().sum() for one, other in pairs).sqrt() < 1e-3 * size
        curve.append(parts["loss"].item())
        return parts

    trainer._train_step = checked
    trainer.fit()
    assert len(curve) == 20
    assert len(set(curve)) == 20


def test_the_time_of_a_step_is_recorded_by_part(tiny_overrides, tmp_path):
    Trainer(load_config("agw-sysu", [*tiny_overrides, "epochs=1"]), tmp_path / "run", quiet=True).fit()
    records = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "train"]
    assert len(records) == 2
    for record in records:
        shares = {key.removeprefix("share_"): value for key, value in record.items() if key.startswith("share_")}
        assert list(shares) == ["data", "forward", "losses", "backward", "optimizer"]
        assert sum(shares.values()) == pytest.approx(1)


def test_compiled_backbone_and_fused_optimizer_train(tiny_overrides, tmp_path):
    overrides = [*tiny_overrides, "compile=true", "epochs=1", "steps_per_epoch=1", "optimizer.name=adam"]
    trainer = Trainer(load_config("agw-sysu", overrides), tmp_path / "run", quiet=True)
    trainer.fit()
    weights = load_file(checkpoint.find_weights(tmp_path / "run"))
    assert weights.keys() == trainer.system.state_dict().keys()
    assert not any("_orig_mod" in name for name in weights)


def test_deterministic_mode_refuses_what_is_not(tiny_overrides, tmp_path):
    torch.use_deterministic_algorithms(False)
    Trainer(load_config("agw-sysu", [*tiny_overrides, "deterministic=true"]), tmp_path / "run", quiet=True)
    assert torch.are_deterministic_algorithms_enabled()


def test_plan_counts_what_a_run_takes(tiny_overrides):
    config = load_config("agw-sysu", [*tiny_overrides, *IDKL, "accumulate=2", "steps_per_epoch=5", "epochs=4"])
    plan = plan_run(config)
    assert (plan.num_classes, plan.batch, plan.steps_per_epoch, plan.steps) == (6, 8, 3, 12)
    assert plan.parameters > plan.trained > 0
    assert plan.flops == plan.flops_per_image * 8 * 2 * 12
    assert plan.memory > plan.state_bytes > 4 * plan.parameters
    half = plan_run(load_config("agw-sysu", [*tiny_overrides, *IDKL, "precision=bf16"]))
    assert half.flops_per_image == plan.flops_per_image
    assert half.saved_bytes_per_image < plan.saved_bytes_per_image
    assert PROBE % 4 == 0  # IDKL's full graphs need an even half


def test_plan_counts_the_teacher_of_a_later_stage(tiny_overrides, tmp_path):
    sized = ["dataset.height=64", "dataset.width=32", "epochs=1", "steps_per_epoch=1"]
    config = load_config("agw-sysu", [*tiny_overrides, *CKDA, *sized])
    Trainer(config, tmp_path / "one", quiet=True).fit()
    later = load_config("agw-sysu", [*tiny_overrides, *CKDA, *sized, f"options.previous={tmp_path / 'one'}"])
    plans = [plan_run(each) for each in (config, later)]
    assert plans[0].parameters == plans[1].parameters
    # A forward and its backward, two products for one, are three; the teacher's forward is the fourth.
    assert plans[1].flops_per_image / plans[0].flops_per_image == pytest.approx(4 / 3, rel=0.05)
    assert (plans[0].teacher_bytes, plans[0].taught_bytes_per_image) == (0, 0)
    assert not any(name == "teacher" for name, _ in plans[0].rows())
    assert dict(plans[1].rows())["teacher"].startswith("0.00 GiB of it for weights; its forward holds 0.0 before")
    with pytest.raises(FileNotFoundError, match=r"^previous: expected the folder of a finished stage"):
        plan_run(load_config("agw-sysu", [*tiny_overrides, *CKDA, *sized, "options.previous=nowhere"]))


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("system", ["ckda", "lwf"])
def test_plan_counts_the_bytes_of_the_teacher(tiny_overrides, tmp_path, precision, system):
    sized = ["dataset.height=64", "dataset.width=32", "epochs=1", "steps_per_epoch=1", f"system={system}"]
    overrides = [*tiny_overrides, *CKDA, *sized, f"precision={precision}"]
    Trainer(load_config("agw-sysu", overrides), tmp_path / "one", quiet=True).fit()
    config = load_config("agw-sysu", [*overrides, f"options.previous={tmp_path / 'one'}"])
    trainer = Trainer(config, tmp_path / "two", quiet=True)
    trainer.fit()
    plan, teacher = plan_run(config), trainer.system.teacher.module
    assert plan.teacher_bytes == sum(tensor.nbytes for tensor in (*teacher.parameters(), *teacher.buffers()))
    own = sum(tensor.nbytes for tensor in (*trainer.system.parameters(), *trainer.system.buffers()))
    assert plan.state_bytes == own + 4 * plan.trained * (1 + 2)
    assert plan.memory == plan.state_bytes + plan.teacher_bytes + plan.batch * plan.saved_bytes_per_image
    assert 0 < plan.taught_bytes_per_image < plan.saved_bytes_per_image


def test_a_peak_is_what_lives_at_a_time():
    given = torch.ones(1000)
    with _Peak({torch.Size((7, 7))}) as peak:
        one = given + 1
        two = (one * 2).relu()  # three of 4,000 bytes
        one.mul_(2)
        del one
        rows = two.view(10, 100).t()
        torch.ones(7, 7)
        kept = rows.contiguous()
        del rows, two
    assert (peak.most, peak.held) == (12_000, kept.nbytes)


def test_a_wrong_configuration_of_the_system_is_an_error_before_any_file(tiny_overrides, tmp_path):
    config = load_config("agw-sysu", [*tiny_overrides, *IDKL, "options.graph=half"])
    with pytest.raises((RunError, ValueError), match="graph: expected one of full, light, off"):
        Trainer(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_system_looks_at_all_training_images_once_before_an_epoch(tiny_overrides, tmp_path, monkeypatch):
    config = load_config("agw-sysu", [*tiny_overrides, "checkpoint_every=1", "evaluate_every=0"])
    seen = []

    def start_epoch(self, epoch, images):
        features = images.features(self.embed)
        assert not features.is_inference()
        assert len(features) == len(images.labels) == len(images.modality)
        assert_close(features.norm(dim=1), torch.ones(len(features)))
        seen.append(epoch)

    monkeypatch.setattr(AGW, "start_epoch", start_epoch)
    trainer = Trainer(config, tmp_path / "run", quiet=True)
    monkeypatch.setattr(Trainer, "_record", _interrupt_after(6))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    monkeypatch.undo()
    assert seen == [0, 1]
    monkeypatch.setattr(AGW, "start_epoch", start_epoch)
    Trainer(config, tmp_path / "run", resume=True, quiet=True).fit()
    assert seen == [0, 1, 2]


def _interrupt_after(calls):
    """In the place of `Trainer._record`: a kill in the middle of the second epoch, after its checkpoint."""
    left = iter(range(calls))

    def record(self, pending, log):
        if next(left, None) is None:
            raise KeyboardInterrupt

    return record
