"""The last word of a system on its weights, and what it leaves to a next stage."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from vifast.systems.agw import AGW
from vifast.train import checkpoint
from vifast.train.config import load_config
from vifast.train.evaluate import evaluate_run
from vifast.train.loop import Trainer


def halved(self, images):
    """Half of every parameter, a draw of the generator, and the images' own features."""
    feat = images.features(self.embed)
    with torch.no_grad():
        for parameter in self.parameters():
            parameter.mul_(0.5)
    return {"feat": feat, "labels": images.labels, "drawn": torch.rand(3)}


@pytest.fixture
def config(tiny_overrides, monkeypatch):
    monkeypatch.setattr(AGW, "finish", halved)
    return load_config("agw-sysu", [*tiny_overrides, "evaluate_every=0"])


def files(out):
    return {path.name: load_file(path) for path in sorted((out / checkpoint.FINAL).iterdir())}


def test_final_weights_and_knowledge_are_written_before_the_evaluation(config, tmp_path):
    trainer = Trainer(config, tmp_path / "run", quiet=True)
    scores = trainer.fit().scores
    found = files(tmp_path / "run")
    assert found.keys() == {checkpoint.WEIGHTS, checkpoint.KNOWLEDGE}
    assert checkpoint.find_weights(tmp_path / "run") == tmp_path / "run" / "final" / "weights.safetensors"
    trained = load_file(checkpoint.latest(tmp_path / "run") / checkpoint.WEIGHTS)
    for name, parameter in trainer.system.named_parameters():
        assert torch.equal(found[checkpoint.WEIGHTS][name], 0.5 * trained[name]), name
        assert torch.equal(found[checkpoint.WEIGHTS][name], parameter), name
    knowledge = found[checkpoint.KNOWLEDGE]
    assert torch.equal(knowledge["labels"], torch.from_numpy(trainer.dataset.train.labels))
    assert_close(knowledge["feat"].norm(dim=1), torch.ones(len(knowledge["labels"])))
    assert evaluate_run(tmp_path / "run", config.data).scores.to_json() == scores.to_json()


@pytest.mark.parametrize("where", ["save_final", "evaluate"])
def test_a_run_that_is_cut_short_there_does_it_again_to_the_same_bits(config, tmp_path, monkeypatch, where):
    Trainer(config, tmp_path / "whole", quiet=True).fit()

    def killed(*args):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint if where == "save_final" else Trainer, where, killed)
        with pytest.raises(MemoryError):
            Trainer(config, tmp_path / "run", quiet=True).fit()
    assert (tmp_path / "run" / checkpoint.FINAL).exists() == (where == "evaluate")
    torch.manual_seed(12345)
    Trainer(config, tmp_path / "run", resume=True, quiet=True).fit()
    for name, tensors in files(tmp_path / "whole").items():
        again = files(tmp_path / "run")[name]
        assert all(torch.equal(value, again[key]) for key, value in tensors.items())
    results = [(tmp_path / run / "results.json").read_text() for run in ("whole", "run")]
    assert results[0] == results[1]


def test_without_knowledge_there_are_weights_alone(config, tmp_path, monkeypatch):
    monkeypatch.setattr(AGW, "finish", lambda self, images: {})
    Trainer(config, tmp_path / "run", quiet=True).fit()
    assert files(tmp_path / "run").keys() == {checkpoint.WEIGHTS}


def test_a_system_without_a_last_word_has_no_final_weights(tiny_overrides, tmp_path):
    Trainer(load_config("agw-sysu", tiny_overrides), tmp_path / "run", quiet=True).fit()
    assert not (tmp_path / "run" / checkpoint.FINAL).exists()
    assert checkpoint.find_weights(tmp_path / "run").parent.name == "epoch-0003"
