"""The commands on feature files."""

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from vifast import _progress as progress
from vifast import retrieval
from vifast.data.matfile import write_mat
from vifast.retrieval import protocols
from vifast.retrieval.feature_files import load, load_pair

safetensors = pytest.importorskip("safetensors.numpy")


def people(seed, n, cams, frames=1):
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(6, 8))
    ids = np.repeat(rng.integers(0, 6, n), frames)
    return {
        "features": (centers[ids] + rng.normal(size=(len(ids), 8))).astype(np.float32),
        "ids": ids,
        "cams": np.repeat(rng.choice(cams, n), frames),
        "tracklets": np.repeat(np.arange(n), frames),
    }


@pytest.fixture
def files(tmp_path):
    query, gallery = people(0, 40, [3, 6]), people(1, 90, [1, 2, 4, 5])
    np.savez(tmp_path / "q.npz", **query)
    safetensors.save_file(gallery, tmp_path / "g.safetensors")
    return tmp_path / "q.npz", tmp_path / "g.safetensors", query, gallery


def columns(query, gallery):
    names = ("features", "ids", "cams")
    return [torch.from_numpy(side[name]) for name in names for side in (query, gallery)]


def test_evaluate_plain(vifast, files, tmp_path):
    q, g, query, gallery = files
    expected = retrieval.evaluate(*columns(query, gallery), exclude="sysu", cmc="identity", metric="euclidean", topk=6)
    how = ("--exclude", "sysu", "--cmc", "identity", "--metric", "euclidean", "--topk", 6)
    status, output, _ = vifast("evaluate", q, g, *how, "--json", tmp_path / "s.json", "--html", tmp_path / "s.html")
    assert status == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["mean_ap"] == expected.mean_ap
    assert found["cmc"] == expected.cmc.tolist()
    assert f"{100 * expected.mean_ap:.2f}" in output
    page = (tmp_path / "s.html").read_text()
    assert f"<b>{100 * expected.mean_ap:.1f} %</b>" in page
    assert page.count("<svg") == 1


@pytest.mark.parametrize("published", [False, True])
def test_evaluate_sysu(vifast, files, tmp_path, published):
    q, g, query, gallery = files
    options, draw = {"mode": "indoor", "shots": 10, "topk": 5}, ()
    if published:
        rng = np.random.default_rng(3)
        cell = np.empty((6, 1), dtype=object)
        for cam in range(1, 7):
            cell[cam - 1, 0] = np.empty((5, 1), dtype=object)
            for identity in range(1, 6):
                n = int(((gallery["ids"] == identity) & (gallery["cams"] == cam)).sum())
                rows = np.array([rng.permutation(n) + 1 for _ in range(10)], np.uint8).reshape(10, n)
                cell[cam - 1, 0][identity - 1, 0] = rows
        gallery["ids"] = np.where(gallery["ids"] == 0, 5, gallery["ids"])
        query["ids"] = np.where(query["ids"] == 0, 5, query["ids"])
        for cam in range(1, 7):
            n = int(((gallery["ids"] == 5) & (gallery["cams"] == cam)).sum())
            rows = np.array([rng.permutation(n) + 1 for _ in range(10)], np.uint8).reshape(10, n)
            cell[cam - 1, 0][4, 0] = rows
        np.savez(q, **query)
        safetensors.save_file(gallery, g)
        write_mat(tmp_path / "perm.mat", {"rand_perm_cam": cell})
        options |= {"draw": "published", "permutations": cell}
        draw = ("--permutations", tmp_path / "perm.mat")
    expected = protocols.sysu(*columns(query, gallery), **options)
    how = ("--protocol", "sysu", "--mode", "indoor", "--shots", 10, "--topk", 5)
    status, output, _ = vifast("evaluate", q, g, *how, *draw, "--json", tmp_path / "s.json")
    assert status == 0
    assert json.loads((tmp_path / "s.json").read_text()) == expected.to_dict()
    assert output.splitlines()[0] == expected.protocol
    assert output.splitlines()[-1].split()[-1] == f"{100 * expected.mean_inp:.2f}"


def test_evaluate_regdb_splits_both_ways(vifast, tmp_path):
    splits = [(people(2 * n, 20, [2]), people(2 * n + 1, 25, [3])) for n in range(1, 11)]
    for n, (visible, infrared) in enumerate(splits, 1):
        np.savez(tmp_path / f"v{n}.npz", **visible)
        np.savez(tmp_path / f"i{n}.npz", **infrared)
    sides = [[torch.from_numpy(split[k][name]) for split in splits] for name in ("features", "ids") for k in (0, 1)]
    how = ("--protocol", "regdb", "--direction", "both", "--html", tmp_path / "s.html")
    pair = [tmp_path / f"{side}{{split}}.npz" for side in "vi"]
    status, _, error = vifast("evaluate", *pair, *how, "--json", tmp_path / "s.json")
    assert (status, error) == (0, "")
    found = json.loads((tmp_path / "s.json").read_text())["results"]
    for way, result in zip(("v2i", "i2v"), found, strict=True):
        assert result == protocols.regdb(*sides, direction=way).to_dict()
    assert "RegDB, infrared to visible" in (tmp_path / "s.html").read_text()


def test_evaluate_llcm_and_vcm(vifast, tmp_path):
    visible, infrared = people(5, 30, [1, 2, 3], frames=3), people(6, 20, [1, 2, 7], frames=3)
    np.savez(tmp_path / "v.npz", **visible)
    folder = tmp_path / "infrared"
    folder.mkdir()
    for name, value in infrared.items():
        np.save(folder / f"{name}.npy", value)
    sides = columns(visible, infrared)
    tracks = {
        f"{name}_tracklets": torch.from_numpy(side["tracklets"])
        for name, side in (("visible", visible), ("infrared", infrared))
    }
    cases = (
        (("--protocol", "llcm"), protocols.llcm(*sides, direction="i2v")),
        (("--protocol", "llcm", "--variant", "idkl"), protocols.llcm(*sides, direction="i2v", protocol="idkl")),
        (("--protocol", "vcm"), protocols.vcm(*sides, direction="i2v", **tracks)),
        (
            ("--protocol", "vcm", "--variant", "vi-lreid", "--direction", "i2v"),
            protocols.vcm(*sides, **tracks, direction="i2v", protocol="vi-lreid"),
        ),
    )
    for how, expected in cases:  # infrared queries, so QUERY is the infrared side
        assert vifast("evaluate", folder, tmp_path / "v.npz", *how, "--json", tmp_path / "s.json")[0] == 0
        assert json.loads((tmp_path / "s.json").read_text()) == expected.to_dict()


@pytest.mark.parametrize("exclude", ["none", "same_camera", "same_id_camera", "sysu"])
def test_search(vifast, files, tmp_path, monkeypatch, exclude):
    monkeypatch.setattr("vifast.commands_retrieval.SEARCHED", 7)
    q, g, query, gallery = files
    query["cams"][::2] = 1
    np.savez(q, **query)
    feat, other, ids, other_ids, cams, other_cams = columns(query, gallery)
    same = cams[:, None] == other_cams
    mask = {
        "none": torch.zeros(40, 90) > 0,
        "same_camera": same,
        "same_id_camera": same & (ids[:, None] == other_ids),
        "sysu": (cams == 3)[:, None] & (other_cams == 2),
    }[exclude]
    dist, index = retrieval.search(feat, other, 5, metric="euclidean", exclude=mask)
    files = {name: tmp_path / f"n.{name}" for name in ("npz", "json", "html")}
    options = [f"--{'out' if name == 'npz' else name}={path}" for name, path in files.items()]
    assert vifast("search", q, g, "-k", 5, "--metric", "euclidean", "--exclude", exclude, *options)[0] == 0
    with np.load(files["npz"]) as found:
        np.testing.assert_array_equal(found["dist"], dist)
        np.testing.assert_array_equal(found["index"], index)
    assert json.loads(files["json"].read_text())["index"] == index.tolist()
    page = files["html"].read_text()
    hits = int((ids[:, None] == other_ids[index]).sum())
    assert (page.count('class="hit"'), page.count('class="miss"')) == (hits, 200 - hits)


def test_rerank(vifast, files, tmp_path):
    q, g, query, gallery = files
    feat, other, *labels = columns(query, gallery)
    expected = retrieval.rerank(feat, other, k1=6, k2=3, lambda_=0.2, queries_only=True)
    out, scores, page = (tmp_path / f"d.{kind}" for kind in ("npy", "json", "html"))
    how = ("--k1", 6, "--k2", 3, "--lambda", 0.2, "--queries-only", "--exclude", "sysu", "--cmc", "identity")
    status, output, _ = vifast("rerank", q, g, *how, "--out", out, "--json", scores, "--html", page)
    assert status == 0
    np.testing.assert_array_equal(np.load(out), expected)
    found = json.loads(scores.read_text())
    after = retrieval.evaluate_distance(expected, *labels, exclude="sysu", cmc="identity")
    before = retrieval.evaluate(feat, other, *labels, exclude="sysu", cmc="identity", metric="sqeuclidean")
    assert (found["before"]["mean_ap"], found["after"]["mean_ap"]) == (before.mean_ap, after.mean_ap)
    assert f"{100 * after.mean_ap:.2f}" in output.splitlines()[-1]
    assert (
        f"{100 * before.rank1 if hasattr(before, 'rank1') else 100 * float(before.cmc[0]):.1f} → " in page.read_text()
    )
    assert vifast("rerank", q, g, "--topk", 4, "--out", tmp_path / "top.npz")[0] == 0
    dist, index = retrieval.rerank(feat, other, topk=4)
    with np.load(tmp_path / "top.npz") as found:
        np.testing.assert_array_equal(found["dist"], dist)
        np.testing.assert_array_equal(found["index"], index)


def test_without_identities(vifast, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        np.save(tmp_path / f"{name}.npy", people(seed, 30, [1])["features"])
    pair = (tmp_path / "a.npy", tmp_path / "b.npy")
    status, output, _ = vifast(
        "rerank", *pair, "--out", tmp_path / "d.npy", "--json", tmp_path / "d.json", "--html", tmp_path / "d.html"
    )
    assert (status, output.count("\n")) == (0, 1)
    assert sorted(json.loads((tmp_path / "d.json").read_text())) == ["options", "seconds"]
    assert "Re-ranking" in (tmp_path / "d.html").read_text()
    assert vifast("search", *pair, "-k", 3, "--html", tmp_path / "n.html")[0] == 0
    assert 'class="hit"' not in (tmp_path / "n.html").read_text()


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """A folder with files of every fault, which is the current one."""
    monkeypatch.chdir(tmp_path)
    good = people(0, 9, [3])
    np.savez("q.npz", **good)
    np.savez("wide.npz", **good | {"features": np.ones((9, 3), np.float32)})
    np.savez("double.npz", **good | {"features": good["features"].astype(np.float64)})
    np.savez("bare.npz", features=good["features"])
    np.savez("ids.npz", features=good["features"], ids=good["ids"])
    np.savez("short.npz", features=good["features"], ids=good["ids"][:3])
    np.savez("floats.npz", features=good["features"], ids=good["ids"] / 2)
    np.savez("none.npz", feat=good["features"])
    np.savez("nan.npz", features=good["features"] * np.where(np.arange(9) == 4, np.nan, 1)[:, None].astype(np.float32))
    np.savez("whole.npz", features=np.ones((9, 3), np.int64))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "q.npz").read_bytes()[:300])
    (tmp_path / "zero.npz").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    (tmp_path / "text.txt").write_text("1 2 3")
    write_mat(tmp_path / "other.mat", {"rand": np.ones((6, 1))})
    return {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "q.npz"], "q.npz: expected either --data ROOT for a run, or the features of a gallery"),
        (["search", "q.npz", "q.npz", "--data", "x"], "q.npz: expected either --data ROOT for a run"),
        (["rerank", "nowhere", "--data", "x"], "nowhere: not a run's folder"),
        (["search", "q.npz", "q.npz", "--checkpoint", "best"], "checkpoint: expected none with files of features"),
        (["evaluate", "q.npz", "q.npz", "--rerank"], "rerank: expected another --protocol than plain"),
        (["evaluate", "q.npz", "absent.npz"], "absent.npz: no such file"),
        (["evaluate", "absent.safetensors", "q.npz"], "absent.safetensors: no such file"),
        (["evaluate", "absent.txt", "q.npz"], "absent.txt: no such file"),
        (["evaluate", "text.txt", "q.npz"], "text.txt: expected a .npz, .npy or .safetensors file"),
        (["evaluate", "cut.npz", "q.npz"], "cut.npz: damaged .npz ("),
        (["evaluate", "zero.npz", "q.npz"], "zero.npz: damaged .npz ("),
        (["evaluate", "cut.safetensors", "q.npz"], "cut.safetensors: truncated or damaged"),
        (["evaluate", "none.npz", "q.npz"], "none.npz: expected an array named features"),
        (["evaluate", "whole.npz", "q.npz"], "whole.npz: features: expected a floating-point tensor"),
        (["evaluate", "short.npz", "q.npz"], "short.npz: ids: expected shape [9]"),
        (["evaluate", "floats.npz", "q.npz"], "floats.npz: ids: expected an integer tensor"),
        (["evaluate", "nan.npz", "q.npz"], "nan.npz: features: row 4 is not finite"),
        (["evaluate", "q.npz", "wide.npz"], "wide.npz: expected columns 8 as in q.npz, got 3"),
        (["evaluate", "q.npz", "double.npz"], "double.npz: expected dtype torch.float32 as in q.npz"),
        (["evaluate", "q.npz", "bare.npz"], "bare.npz: has no ids, which a score needs; it has features"),
        (["evaluate", "q.npz", "ids.npz", "--exclude", "sysu"], "ids.npz: has no cams, which --exclude sysu needs"),
        (["evaluate", "q.npz", "ids.npz", "--protocol", "sysu"], "ids.npz: has no cams, which --protocol sysu needs"),
        (["evaluate", "q.npz", "ids.npz", "--protocol", "llcm"], "ids.npz: has no cams, which LLCM's benchmark needs"),
        (
            ["evaluate", "q.npz", "ids.npz", "--protocol", "vcm"],
            "ids.npz: has no tracklets, which --protocol vcm needs",
        ),
        (["evaluate", "q.npz", "q.npz", "--protocol", "market"], "protocol: expected one of plain, sysu, regdb"),
        (["evaluate", "q.npz", "q.npz", "--direction", "v2i"], "direction: expected none with --protocol plain"),
        (["evaluate", "q.npz", "q.npz", "--variant", "idkl"], "variant: expected none with --protocol plain"),
        (["evaluate", "q.npz", "q.npz", "--metric", "l2"], "metric: expected one of cosine"),
        (["evaluate", "q.npz", "q.npz", "--protocol", "regdb", "--direction", "up"], "direction: expected one of v2i"),
        (
            ["evaluate", "q.npz", "q.npz", "--protocol", "sysu", "--permutations", "other.mat"],
            "other.mat: expected a cell named rand_perm_cam",
        ),
        (["evaluate", "q{split}.npz", "q.npz", "--protocol", "regdb"], "q1.npz: no such file"),
        (["search", "q.npz", "q.npz", "-k", "10"], "k: expected at most 9"),
        (["search", "q.npz", "q.npz", "--out", "n.npy"], "out: expected a .npz file, got n.npy"),
        (["search", "q.npz", "ids.npz", "--exclude", "same_camera"], "ids.npz: has no cams, which --exclude same_cam"),
        (["search", "q.npz", "q.npz", "-k", "2", "--json", "no/n.json"], "[Errno 2]"),
        (["rerank", "q.npz", "q.npz", "--out", "d.npz"], "out: expected a .npy file, got d.npz"),
        (["rerank", "q.npz", "q.npz", "--topk", "2", "--out", "d.npy"], "out: expected a .npz file, got d.npy"),
        (["rerank", "q.npz", "q.npz", "--lambda", "2"], "lambda_: expected 0"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(vifast, bad, arguments, message, tmp_path):
    status, _, error = vifast(*arguments)
    assert status == 2
    assert error.startswith(f"vifast: {message}")
    assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == bad


def test_the_commands_of_the_page_run(vifast, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "retrieval.md").read_text()
    monkeypatch.chdir(tmp_path)
    python = [
        block for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if "savez" in block
    ]
    exec(python[0], {})
    (shell,) = re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    for line in shell.splitlines():
        assert vifast(*shlex.split(line)[1:])[0] == 0
    written = {"scores.json", "scores.html", "neighbours.npz", "neighbours.html", "distances.npy", "reranked.html"}
    assert {path.name for path in tmp_path.iterdir()} == {"query.npz", "gallery.npz", "nearest.npz"} | written


def test_load_maps_files_and_keeps_labels(files):
    q, g, query, gallery = files
    one, other = load_pair(q, g)
    assert set(one.labels) == set(other.labels) == {"ids", "cams", "tracklets"}
    np.testing.assert_array_equal(one.features, query["features"])
    np.testing.assert_array_equal(other.labels["ids"], gallery["ids"])
    assert load(str(q)).features.dtype == torch.float32


def test_bars_on_a_terminal_come_and_go(vifast, files, monkeypatch):
    from rich.console import Console

    from vifast import commands_retrieval

    screen = io.StringIO()
    monkeypatch.setattr(commands_retrieval, "_console", Console(file=screen, force_terminal=True, width=60))
    q, g, *_ = files
    assert vifast("rerank", q, g)[0] == 0
    shown = screen.getvalue()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 2  # the cursor is hidden and shown again
    assert "finding neighbours" in shown
    screen.truncate(0)
    screen.seek(0)

    def interrupted(*args, **options):
        for _ in progress.steps(range(3), "ranking"):
            raise KeyboardInterrupt

    monkeypatch.setattr(retrieval, "evaluate", interrupted)
    assert vifast("evaluate", q, g)[0] == 130
    assert screen.getvalue().count("\x1b[?25l") == 1
    assert screen.getvalue().rpartition("\x1b[2K")[2].strip() == "\x1b[?25h"  # the line is wiped last
