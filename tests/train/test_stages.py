"""A student and its teacher: as one run, cut short anywhere, and with the run of another."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from same_runs import same_run, trajectory

from vifast.models import fold_norms
from vifast.report import render
from vifast.train import checkpoint, stages
from vifast.train.config import ConfigError, load_config
from vifast.train.evaluate import evaluate_run
from vifast.train.log import RunLog
from vifast.train.loop import RunError, Stopped
from vifast.train.plan import plan_run
from vifast.train.record import read_run
from vifast.train.run_page import make_page
from vifast.train.teacher import teacher_config, untrained_teacher

TEACHER = "teacher_config={base: agw-sysu, epochs: 2, evaluate_every: 1, dataset: {num_ids: 2, num_instances: 2}}"


@pytest.fixture
def overrides(tiny_overrides):
    """The tiny ones key by key, so that the rest of the preset stays."""
    dataset = ["name=sysu", "height=32", "width=16", "num_ids=2", "num_instances=2"]
    options = ["backbone=resnet_tiny", "backbone_width=4", "non_local=[0, 0, 1, 0]"]
    own = [f"dataset.{key}" for key in dataset] + [f"options.{key}" for key in options]
    return [*(o for o in tiny_overrides if not o.startswith(("dataset", "options"))), *own, TEACHER, "detail_every=2"]


@pytest.fixture
def config(overrides):
    return load_config("dakd-sysu", [*overrides, "checkpoint_every=1", "epochs=2"])


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def whole(shared, config):
    """Both stages, trained once."""
    if not (shared / "whole").exists():
        stages.train(config, shared / "whole", quiet=True)
    return shared / "whole"


def same_stages(out, whole):
    for run, other in ((out / "teacher", whole / "teacher"), (out, whole)):
        same_run(run, other)
        assert (run / "results.json").read_text() == (other / "results.json").read_text()


def killed_at(monkeypatch, step, config, out):
    """Both stages as far as the step of that number, of all."""
    record, seen = RunLog.train, []

    def killed(self, *args, **options):
        record(self, *args, **options)
        seen.append(args)
        if len(seen) == step:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "train", killed)
        with pytest.raises(MemoryError):
            stages.train(config, out, quiet=True)


@pytest.mark.parametrize("step", [1, 3, 5, 7])
def test_killed_in_either_stage_it_goes_on_to_the_same_bits(whole, config, tmp_path, monkeypatch, step):
    killed_at(monkeypatch, step, config, tmp_path / "run")
    assert (tmp_path / "run" / "teacher" / "results.json").exists() == (step > 4)
    torch.manual_seed(12345)
    with pytest.raises(RunError, match="already holds a run; add --resume"):
        stages.train(config, tmp_path / "run", quiet=True)
    stages.train(config, tmp_path / "run", resume=True, quiet=True)
    same_stages(tmp_path / "run", whole)


def test_killed_between_the_stages(whole, config, tmp_path, monkeypatch):
    def killed(*args, name, **options):
        if name == "student":
            raise MemoryError
        return trainer(*args, name=name, **options)

    trainer = stages.Trainer
    with monkeypatch.context() as patch:
        patch.setattr(stages, "Trainer", killed)
        with pytest.raises(MemoryError):
            stages.train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "config.yaml").exists()
    stages.train(config, tmp_path / "run", resume=True, quiet=True)
    same_stages(tmp_path / "run", whole)


def test_asked_to_stop_it_says_which_stage(config, tmp_path, monkeypatch):
    def stop(self, asked):
        raise Stopped(f"{self.name}: stopped")

    monkeypatch.setattr(stages.Trainer, "_stop_if", stop)
    with pytest.raises(Stopped, match="teacher: stopped"):
        stages.train(config, tmp_path / "run", quiet=True)


def test_a_run_of_both_has_all_of_both(whole, config):
    run = read_run(whole)
    assert run.parts() == ["instance", "class", "kept"]
    assert [record["step"] for record in run.details] == [1, 3]
    assert len(run.details[0]["confidence_r"]) == 11
    assert {f"{level}_{m}_T{t}" for level in ("instance", "class") for m in "vr" for t in (2, 3, 4, 5, 6)} <= {
        *run.details[0]
    }
    assert load_config(whole / "config.yaml") == config
    assert evaluate_run(whole, config.data).scores.to_json() == (whole / "results.json").read_text()
    weights = load_file(checkpoint.find_weights(whole))
    assert {name.partition(".")[0] for name in weights} == {"network", "prototypes_v", "prototypes_i"}


def test_its_page_shows_the_teacher_and_what_was_observed(whole):
    page = render(make_page([whole]))
    assert {"Teacher and student", "Observed"} <= {*re.findall("<h2>(.*?)</h2>", page)}
    results = [json.loads((run / "results.json").read_text()) for run in (whole / "teacher", whole)]
    for name, found in zip(("teacher</td><td>AGW", "student</td><td>DAKD"), results, strict=True):
        assert f"<td>{name}</td><td>{100 * found['rank1']:.1f} %</td>" in page
    shown = re.findall("<figure.*?<h3>(.*?)</h3>", page)
    assert [f"{level}_{m}" for level in ("class", "instance") for m in "rv"] == [
        name for name in shown if name.startswith(("class_", "instance_"))
    ]
    assert {"confidence_v", "confidence_r", "kept"} <= {*shown}
    alone = render(make_page([whole / "teacher"]))
    assert "Teacher and student" not in alone
    assert "Observed" not in alone


def test_a_finished_run_teaches_another(whole, overrides, tmp_path):
    """As the teacher of it gives the same bits wherever it lies, and a student teaches as well."""
    config = load_config("dakd-sysu", [*overrides, "checkpoint_every=1", "epochs=2", f"teacher={whole / 'teacher'}"])
    assert [name for name, *_ in stages.stages(config, tmp_path / "one")] == ["student"]
    stages.train(config, tmp_path / "one", quiet=True)
    assert trajectory(tmp_path / "one") == trajectory(whole)
    assert load_config(tmp_path / "one" / "config.yaml").teacher == whole / "teacher"
    again = load_config("dakd-sysu", [*overrides, "epochs=1", f"teacher={whole}", "options.student_init=teacher"])
    stages.train(again, tmp_path / "two", quiet=True)
    assert not (tmp_path / "two" / "teacher").exists()


def test_low_precision(overrides, whole, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)  # where the teacher was trained in this test
    config = load_config("dakd-sysu", [*overrides, "epochs=1", f"teacher={whole}", "precision=bf16"])
    assert stages.train(config, tmp_path / "run", quiet=True).scores.mean_ap > 0


def test_the_preset_s_own_teacher_is_mce(overrides, tmp_path):
    changes = ["epochs=1", "teacher_config={base: mce-sysu, epochs: 1, dataset: {num_ids: 2, num_instances: 2}}"]
    config = load_config("dakd-sysu", [*overrides, *changes])
    stages.train(config, tmp_path / "run", quiet=True)
    assert [read_run(run).config["system"] for run in (tmp_path / "run" / "teacher", tmp_path / "run")] == [
        "mce",
        "dakd",
    ]
    for name in ("sysu", "regdb", "llcm"):
        config = load_config(f"dakd-{name}")
        theirs = teacher_config(config)
        assert (theirs.system, theirs.dataset.name, theirs.dataset.augment.cutswap.p) == ("mce", name, 0)
        assert (theirs.dataset.height, theirs.dataset.width) == (config.dataset.height, config.dataset.width)


@pytest.mark.parametrize(
    "more", [["teacher_mode=ema", "proto_refresh=epoch"], ["teacher_view=weak"]], ids=["following", "weak view"]
)
def test_other_teachers_are_resumed_too(overrides, whole, tmp_path, monkeypatch, more):
    more = [*(f"options.{option}" for option in more), f"teacher={whole}", "checkpoint_every=1"]
    config = load_config("dakd-sysu", [*overrides, *more, "epochs=2"])
    stages.train(config, tmp_path / "whole", quiet=True)
    killed_at(monkeypatch, 3, config, tmp_path / "run")
    stages.train(config, tmp_path / "run", resume=True, quiet=True)
    assert trajectory(tmp_path / "run") == trajectory(tmp_path / "whole")
    one, two = (load_file(checkpoint.find_weights(tmp_path / name)) for name in ("run", "whole"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_temperatures_may_follow_the_step(overrides, whole, tmp_path, monkeypatch):
    """Counted from 0, and on where a run is resumed."""
    config = load_config("dakd-sysu", [*overrides, "checkpoint_every=1", "epochs=2", f"teacher={whole / 'teacher'}"])
    killed_at(monkeypatch, 3, config, tmp_path / "run")
    trainer, seen = stages.Trainer(config, tmp_path / "run", resume=True, quiet=True), []
    trainer.system.objective.temperature_fn = lambda step: seen.append(step) or trainer.system.objective.temperatures
    trainer.fit()
    assert seen == [2, 3]
    assert trajectory(tmp_path / "run") == trajectory(whole)


def test_exits_are_trained_in_one_stage_and_resumed(overrides, tmp_path, monkeypatch):
    changes = ["options.teacher_mode=exits", "teacher_config=null", "checkpoint_every=1", "epochs=2"]
    config = load_config("dakd-sysu", [*overrides, *changes])
    assert [name for name, *_ in stages.stages(config, tmp_path)] == ["training"]
    stages.train(config, tmp_path / "whole", quiet=True)
    killed_at(monkeypatch, 3, config, tmp_path / "run")
    torch.manual_seed(12345)
    stages.train(config, tmp_path / "run", resume=True, quiet=True)
    same_run(tmp_path / "run", tmp_path / "whole")
    assert not (tmp_path / "run" / "teacher").exists()
    run = read_run(tmp_path / "run")
    assert run.parts() == ["ce", "exit_1", "exit_2", "exit_3"]
    assert {f"exit_{term}_{stage}" for term in ("ce", "kl", "hint") for stage in (1, 2, 3)} <= {*run.details[0]}
    weights = load_file(checkpoint.find_weights(tmp_path / "run"))
    assert {name.partition(".")[0] for name in weights} == {"network", "exits", "classifiers"}
    assert evaluate_run(tmp_path / "run", config.data).scores.to_json() == (run.folder / "results.json").read_text()
    page = render(make_page([run.folder]))
    assert {"exit_1", "exit_kl"} <= {*re.findall("<figure.*?<h3>(.*?)</h3>", page)}
    assert plan_run(config).steps == len(run.steps)


def damaged(folder, change):
    return change(shutil.copytree(folder, folder.parent / f"damaged-{change.__name__}", dirs_exist_ok=True))


def no_results(run):
    (run / "results.json").unlink()
    return run, "its run is not finished, it has no results.json"


def no_config(run):
    (run / "config.yaml").unlink()
    return run, r"not a run's folder, it has no config\.yaml"


def other_dataset(run):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("name: sysu", "name: llcm"))
    return run, r"trained on dataset\.name llcm, this run is on sysu"


def other_classes(run):
    (run / "run.json").write_text(json.dumps({"num_classes": 5}))
    return run, "trained on 5 identities, this run is on 6"


@pytest.mark.parametrize("change", [no_results, no_config, other_dataset, other_classes])
def test_a_run_that_cannot_teach_is_refused_in_one_line(whole, overrides, tmp_path, change):
    folder, message = damaged(whole / "teacher", change)
    with pytest.raises(ConfigError, match=rf"^teacher: {folder}: {message}$") as caught:
        stages.train(load_config("dakd-sysu", [*overrides, f"teacher={folder}"]), tmp_path / "run", quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_missing_teacher_and_one_that_does_not_fit_are_refused(whole, overrides, tmp_path):
    for changes, message in (
        (["teacher=/nowhere"], r"^teacher: /nowhere: not a run's folder, it has no config\.yaml$"),
        ([f"teacher={whole}", "options.backbone_width=8"], "^teacher: expected features of width 64, got 32$"),
        (["teacher_config=null"], r"^teacher: expected a finished run's folder, or teacher_config\.base to train one"),
        (["teacher_config.bace=agw-sysu"], "^teacher_config: bace: unknown key; the nearest"),
        (["teacher_config.options.backbone_width=8"], "^teacher: expected features of width 32, got 64$"),
        (["options.student_init=teacher"], "^teacher: expected the student's network for student_init=teacher"),
        (
            ["options.teacher_mode=exits", f"teacher={whole}", "data=/nowhere"],
            "^teacher: expected none, DAKDExits learns from labels alone$",
        ),
        (
            ["options.teacher_mode=exits", "options.teacher_view=weak"],
            "^teacher_view: expected 'shared' for teacher_mode=exits, got 'weak'$",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            stages.train(load_config("dakd-sysu", [*overrides, *changes]), tmp_path / "run", quiet=True)
    plain = [o for o in overrides if not o.startswith(("teacher", "detail"))]
    config = load_config("agw-sysu", [*plain, f"teacher={whole}"])
    with pytest.raises(ValueError, match=r"^teacher: expected none, AGW learns from labels alone$"):
        stages.train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_trained_first_takes_over_the_run_s_data_and_network(overrides):
    changes = [
        "seed=5",
        "precision=bf16",
        "dataset.workers=0",
        "dataset.mode=indoor",
        "teacher_config.optimizer.lr=0.5",
    ]
    config = teacher_config(load_config("dakd-sysu", [*overrides, *changes]))
    assert (config.system, config.seed, config.precision, config.optimizer.lr) == ("agw", 5, "bf16", 0.5)
    assert (config.dataset.height, config.dataset.workers, config.dataset.mode) == (32, 0, "indoor")
    assert (config.dataset.sampler, config.dataset.augment.erase.p, config.epochs) == ("pk", 0, 2)
    assert (config.options.backbone, config.options.non_local) == ("resnet_tiny", (0, 0, 1, 0))


def test_a_plan_counts_the_teacher(overrides, whole):
    """A student's passes forward and backward, and the teacher's forward on top."""
    config = load_config("dakd-sysu", [*overrides, f"teacher={whole}"])
    plan = plan_run(config)
    weak = plan_run(load_config("dakd-sysu", [*overrides, f"teacher={whole}", "options.teacher_view=weak"]))
    images = weak.taught_bytes_per_image - plan.taught_bytes_per_image
    assert images == 4 * 3 * 32 * 16  # of its own view, put in order
    assert replace(weak, taught_bytes_per_image=plan.taught_bytes_per_image) == plan
    teacher = plan_run(load_config(whole / "teacher" / "config.yaml"))
    assert plan.flops_per_image > 1.2 * teacher.flops_per_image
    assert plan.trained < plan.parameters
    frozen = fold_norms(untrained_teacher(config, plan.num_classes))
    assert plan.teacher_bytes == sum(tensor.nbytes for tensor in (*frozen.parameters(), *frozen.buffers()))
    assert 0 < plan.taught_bytes_per_image < plan.saved_bytes_per_image


def test_a_teacher_may_lie_elsewhere_when_its_student_goes_on(whole, overrides, tmp_path, monkeypatch):
    given = [*overrides, "checkpoint_every=1", "epochs=2"]
    teacher = shutil.copytree(whole / "teacher", tmp_path / "teacher")
    killed_at(monkeypatch, 3, load_config("dakd-sysu", [*given, f"teacher={teacher}"]), tmp_path / "run")
    config = load_config("dakd-sysu", [*given, f"teacher={teacher.rename(tmp_path / 'elsewhere')}"])
    stages.train(config, tmp_path / "run", resume=True, quiet=True)
    assert trajectory(tmp_path / "run") == trajectory(whole)
    shutil.rmtree(tmp_path / "elsewhere")
    assert evaluate_run(tmp_path / "run", config.data).scores.to_json() == (whole / "results.json").read_text()
    assert "Teacher and student" not in render(make_page([tmp_path / "run"]))
    with pytest.raises(ConfigError, match=r"^teacher: .*elsewhere: not a run's folder, it has no config\.yaml$"):
        stages.train(config, tmp_path / "run", resume=True, quiet=True)
    other = config.model_copy(update={"teacher": whole})  # the student, as good a teacher as any
    with pytest.raises(RunError, match=f"^{tmp_path / 'run'}: teacher: {whole} is not what the run to resume was made"):
        stages.train(other, tmp_path / "run", resume=True, quiet=True)
    with pytest.raises(RunError, match=r"the run to resume has another teacher$"):
        stages.train(other.model_copy(update={"teacher": None}), tmp_path / "run", resume=True, quiet=True)
