"""What a protocol returns, as a table, as JSON and as a figure."""

import json

import numpy as np
import pytest
import torch

from vifast.retrieval import protocols


@pytest.fixture(scope="module")
def result():
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.randn(n, 3, generator=generator) for n in (30, 150))
    q_ids, g_ids = torch.arange(30) % 6, torch.arange(150) % 6
    q_cams, g_cams = torch.tensor([3, 6])[torch.arange(30) % 2], torch.tensor([1, 2, 4, 5])[torch.arange(150) // 6 % 4]
    return protocols.sysu(query, gallery, q_ids, g_ids, q_cams, g_cams, topk=8)


def test_result_prints_as_a_table(result):
    lines = str(result).splitlines()
    assert lines[0] == result.protocol
    assert lines[1].split() == ["R-1", "R-5", "mAP", "mINP", "queries", "gallery"]
    assert len(lines) == 2 + 10 + 1
    shares = [result.rank1, float(result.cmc[4]), result.mean_ap, result.mean_inp]
    assert lines[-1].split() == ["mean", *(f"{100 * share:.2f}" for share in shares)]
    assert lines[2].split()[:3] == ["trial", "0", f"{100 * float(result.trials[0].cmc[0]):.2f}"]
    assert len({len(line) for line in lines[1:-1]}) == 1


def test_result_saves_as_json(result, tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("before")
    result.save(path)
    found = json.loads(path.read_text())
    assert found == result.to_dict()
    assert (found["rank1"], found["mean_ap"], found["cmc"]) == (result.rank1, result.mean_ap, result.cmc.tolist())
    assert len(found["trials"]) == 10
    assert found["trials"][4]["mean_inp"] == result.trials[4].mean_inp
    assert found["settings"] == {"metric": "cosine", "exclude": "sysu", "cmc": "identity", "mode": "all", "shots": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    with pytest.raises(OSError, match="nowhere"):
        result.save(tmp_path / "nowhere" / "scores.json")


def test_result_plots(result, tmp_path):
    pytest.importorskip("matplotlib")
    axes = result.plot(tmp_path / "cmc.png").axes[0]
    assert (tmp_path / "cmc.png").read_bytes()[1:4] == b"PNG"
    assert len(axes.lines) == 11
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), 100 * result.cmc.numpy())
    result.plot(tmp_path / "cmc.svg")
    assert "<svg" in (tmp_path / "cmc.svg").read_text()
