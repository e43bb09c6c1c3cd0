import functools
import json
import re

import pytest

from vifast import demo
from vifast.data import synthetic

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
    assert sorted(path.name for path in out.iterdir()) == ["agw", "data", "metrics.json", "report.html", "run"]
    assert json.loads((out / "metrics.json").read_text()) == result
    for moment in ("before", "after", "agw"):
        assert sorted(result[moment]) == ["mean_ap", "mean_inp", "rank1"]
        assert all(0 <= value <= 1 for value in result[moment].values())
    assert result["seconds"] > 0
    page = (out / "report.html").read_text()
    assert page.count('<div class="ranking">') == 4  # all there are
    assert page.count("<svg") == 4
    assert "2 epochs, 4 steps, seed 5" in page
    assert re.findall(r"<td>(untrained|AGW|IDKL)</td><td>([\d.]+) %", page) == [
        (name, f"{100 * result[key]['rank1']:.1f}")
        for name, key in (("untrained", "before"), ("AGW", "agw"), ("IDKL", "after"))
    ]
    assert f"<b>{100 * result['after']['rank1']:.1f} %</b>" in page
