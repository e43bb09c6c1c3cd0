"""Where a run, its dataset and the run before it lie changes nothing; what they are does."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from same_runs import same_run

from vifast.data import synthetic
from vifast.report import render
from vifast.train import checkpoint
from vifast.train.build import build_system
from vifast.train.config import load_config
from vifast.train.evaluate import evaluate_run
from vifast.train.log import RunLog
from vifast.train.loop import RunError, Trainer
from vifast.train.record import read_facts
from vifast.train.run_page import make_page

CKDA = [
    "options.backbone=vit_tiny_demo",
    *(f"dataset.{size}" for size in ("height=64", "width=32", "num_ids=2", "num_instances=2")),
    *("steps_per_epoch=2", "epochs=2", "precision=no", "checkpoint_every=1"),
]


@pytest.fixture
def data(sysu_root, tmp_path):
    return shutil.copytree(sysu_root, tmp_path / "data")


def config(data, *more):
    return load_config("ckda-clean", [f"data={data}", *CKDA, *more])


def train(config, out, killed_at=None, **options):
    record = RunLog.train

    def killed(self, step, *args, **named):
        record(self, step, *args, **named)
        if step == killed_at:
            raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "train", killed)
        try:
            Trainer(config, out, quiet=True, **options).fit()
        except MemoryError:
            assert killed_at is not None


@pytest.fixture
def one(data, tmp_path):
    """A finished first stage."""
    train(config(data), tmp_path / "one")
    return tmp_path / "one"


@pytest.fixture
def cut(data, one, tmp_path):
    """A second stage that was killed, and beside it ``whole``, which was not."""
    train(config(data, f"options.previous={one}"), tmp_path / "whole")
    train(config(data, f"options.previous={one}"), tmp_path / "cut", killed_at=3)
    return tmp_path / "cut"


def moved(path):
    """To another folder with another name."""
    place = path.parent / "elsewhere" / f"other-{path.name}"
    place.parent.mkdir(exist_ok=True)
    return path.rename(place)


def test_run_dataset_and_stage_before_may_lie_elsewhere_when_it_goes_on(data, one, cut, tmp_path):
    data, one, cut = map(moved, (data, one, cut))
    now = config(data, f"options.previous={one}")
    train(now, cut, resume=True)
    same_run(cut, tmp_path / "whole")
    assert load_config(cut / "config.yaml") == now
    assert read_facts(cut)["sources"] == read_facts(tmp_path / "whole")["sources"]
    train(now, cut, resume=True)  # finished, it stays what it is
    same_run(cut, tmp_path / "whole")


def test_a_run_is_evaluated_and_shown_without_what_it_was_made_from(data, one, cut, tmp_path):
    data, whole = map(moved, (data, tmp_path / "whole"))
    shutil.rmtree(one)
    assert evaluate_run(whole, data).scores.to_json() == (whole / "results.json").read_text()
    assert "Training images" in render(make_page([whole], data))
    assert "--data ROOT says where" in render(make_page([whole]))
    with pytest.raises(FileNotFoundError, match=rf"^previous: .* there is no {one}/final/weights\.safetensors$"):
        Trainer(config(data, f"options.previous={one}"), cut, resume=True, quiet=True)
    gone = config(data, f"options.previous={one}", f"data={tmp_path / 'nowhere'}")
    with pytest.raises(FileNotFoundError, match=r"SYSU-MM01: folder not found: .*nowhere"):
        Trainer(gone, cut, resume=True, quiet=True)


def test_other_images_or_another_stage_are_refused(data, one, cut, tmp_path):
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}
    more = synthetic.write("sysu", tmp_path / "more", num_ids=8, size=(32, 32), images_per_camera=2)
    with pytest.raises(RunError, match=f"^{cut}: data: {more} is not what the run to resume was made from$"):
        Trainer(config(more, f"options.previous={one}"), cut, resume=True, quiet=True)
    train(config(data, "seed=1"), tmp_path / "two")
    with pytest.raises(RunError, match=f"^{cut}: options.previous: {tmp_path / 'two'} is not what the run to resume"):
        Trainer(config(data, f"options.previous={tmp_path / 'two'}"), cut, resume=True, quiet=True)
    with pytest.raises(RunError, match=r"the run to resume has another options\.previous$"):
        Trainer(config(data), cut, resume=True, quiet=True)
    assert {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()} == before


def test_initial_weights_are_needed_once(data, tmp_path):
    """A checkpoint has what became of them."""
    system = build_system(config(data), 6)
    file = {n: value for n, value in system.network.backbone.state_dict().items() if n != "modality_embed"}
    torch.save(file, tmp_path / "vit.pth")
    started = config(data, f"options.weights={tmp_path / 'vit.pth'}")
    train(started, tmp_path / "whole")
    train(started, tmp_path / "cut", killed_at=3)
    (tmp_path / "vit.pth").unlink()
    train(started, tmp_path / "cut", resume=True)
    same_run(tmp_path / "cut", tmp_path / "whole")
    assert set(read_facts(tmp_path / "cut")["sources"]) == {"data", "options.weights"}
    assert load_file(checkpoint.find_weights(tmp_path / "cut")).keys() == system.state_dict().keys()
    with pytest.raises(FileNotFoundError, match=r"vit\.pth: no such file"):
        Trainer(started, tmp_path / "new", resume=True, quiet=True)
    torch.save({name: value + 1 for name, value in file.items()}, tmp_path / "vit.pth")
    with pytest.raises(RunError, match=r"options\.weights: .*vit\.pth is not what the run to resume was made from"):
        Trainer(started, tmp_path / "cut", resume=True, quiet=True)
