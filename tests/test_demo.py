import functools
import json

import numpy as np
import pytest
import torch

from vifast import demo
from vifast.data import Dataset, synthetic
from vifast.data.records import Samples
from vifast.train.config import DatasetConfig
from vifast.train.evaluate import Evaluation, score

TINY = [
    "dataset={height: 32, width: 16, num_ids: 2, num_instances: 2}",
    "options={backbone_width: 4}",
    "epochs=2",
    "steps_per_epoch=2",
]


@pytest.fixture
def small_dataset(monkeypatch):
    write = functools.partial(synthetic.write, num_ids=8, size=(32, 32), images_per_camera=1)
    monkeypatch.setattr(synthetic, "write", lambda *args, seed, **people: write(*args, seed=seed))


def test_leaves_page_metrics_dataset_and_run(small_dataset, tmp_path):
    out = tmp_path / "demo"
    result = demo.run_demo(out, seed=5, overrides=TINY)
    assert sorted(path.name for path in out.iterdir()) == ["data", "metrics.json", "report.html", "run"]
    assert json.loads((out / "metrics.json").read_text()) == result
    for moment in ("before", "after"):
        assert sorted(result[moment]) == ["mean_ap", "mean_inp", "rank1"]
        assert all(0 <= value <= 1 for value in result[moment].values())
    assert result["seconds"] > 0
    page = (out / "report.html").read_text()
    assert page.count('<div class="ranking">') == demo.NUM_QUERIES
    assert page.count("<svg") == 4
    assert "2 epochs, 4 steps, seed 5" in page
    assert f"<b>{100 * result['after']['rank1']:.1f} %</b>" in page


def test_rankings_follow_distance_and_leave_out_what_the_protocol_leaves_out(tmp_path, monkeypatch):
    images = {}
    monkeypatch.setattr(demo, "read_image", lambda path, size: images.setdefault(path, len(images)))
    query = Samples(("q",), np.array([7]), np.array([3]), np.array([1]))
    gallery = Samples(("a", "b", "c"), np.array([7, 8, 7]), np.array([2, 1, 4]), np.zeros(3, np.int64))
    dataset = Dataset("SYSU-MM01", tmp_path, query, query, gallery, np.array([7]), (np.arange(3),))
    feat = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.4]]))
    found = torch.tensor([[1.0, 0.0]])
    evaluation = Evaluation(score(found, feat, dataset, DatasetConfig()), found, feat)
    ranked = demo._ranked_queries(evaluation, dataset)
    assert ranked[0].gallery == [images["b"], images["c"]]  # camera 3 does not search camera 2
    assert ranked[0].hits == [False, True]
    assert ranked[0].label == "person 7"
