import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from vifast import cli
from vifast.data import synthetic, sysu
from vifast.train.log import read_metrics
from vifast.train.loop import Trainer

TINY = [
    "dataset={name: sysu, height: 32, width: 16, num_ids: 2, num_instances: 2}",
    "options={backbone: resnet_tiny, backbone_width: 4, non_local: [0, 0, 0, 0]}",
    "epochs=2",
    "steps_per_epoch=2",
]

COMMANDS = {"demo", "synth", "data", "train", "evaluate", "search", "rerank", "report", "bench", "doctor"}


@pytest.fixture(scope="module")
def sysu_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli") / "sysu"
    return synthetic.write("sysu", root, num_ids=8, size=(32, 32), images_per_camera=1)


def test_synth_train_resume_evaluate(vifast, tmp_path):
    data, out, scores = tmp_path / "data", tmp_path / "run", tmp_path / "scores.json"
    assert vifast("synth", "--layout", "sysu", "--ids", 8, "--seed", 3, "--out", data)[0] == 0
    assert (data / "exp" / "train_id.txt").is_file()
    status, output, _ = vifast("train", "agw-sysu", f"data={data}", *TINY, "--out", out)
    assert status == 0
    assert "epoch 2: rank1" in output
    assert vifast("train", "agw-sysu", f"data={data}", *TINY, "--out", out, "--resume")[0] == 0
    page = tmp_path / "page.html"
    best = ("--checkpoint", "best", "--json", scores, "--html", page)
    assert vifast("evaluate", out, "--data", data, *best)[0] == 0
    evaluated = read_metrics(out)[-1]  # once, after the last epoch
    assert json.loads(scores.read_text())["rank1"] == evaluated["rank1"]
    assert "<td>checkpoint</td><td>best</td>" in page.read_text()
    status, output, _ = vifast("evaluate", out, "--data", data, "--json", scores)
    assert status == 0
    found = json.loads(scores.read_text())
    assert found == json.loads((out / "results.json").read_text())
    assert f"{100 * found['rank1']:.2f}" in output.splitlines()[-1]
    assert vifast("evaluate", out, "--data", data, "--rerank", "--json", scores)[0] == 0
    reranked = json.loads(scores.read_text())
    assert reranked["settings"]["rerank"] == {"queries_only": True}
    distances = tmp_path / "distances.npy"
    options = ("--json", scores, "--html", page, "--out", distances)
    assert vifast("rerank", out, "--data", data, *options)[0] == 0
    both = json.loads(scores.read_text())
    assert (both["before"], both["after"]["mean_ap"]) == (found, reranked["mean_ap"])
    assert "re-ranked" in page.read_text()
    dataset = sysu.load(data)
    assert np.load(distances).shape == (len(dataset.query), len(dataset.gallery))
    assert vifast("search", out, "--data", data, "-k", 3, "--exclude", "sysu", "--html", page)[0] == 0
    assert page.read_text().count("(person ") == min(50, len(dataset.query))
    assert vifast("report", out)[:2] == (0, f"wrote {out / 'report.html'}\n")
    assert vifast("report", out, out, "--data", tmp_path, "--out", page)[0] == 0
    assert "not at hand" in page.read_text()


def test_ctrl_c_saves_and_says_how_to_go_on(vifast, sysu_root, tmp_path, monkeypatch):
    train_step = Trainer._train_step

    def interrupted(self, batches):
        if self.step == 3:
            signal.raise_signal(signal.SIGINT)
        return train_step(self, batches)

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    status, output, error = vifast("train", "agw-sysu", f"data={sysu_root}", *TINY, "--out", tmp_path / "run")
    assert (status, error) == (130, "vifast: interrupted\n")
    assert re.search(r"stopped after \d epochs and \d steps, and saved; the same command with --resume goes on", output)
    assert list((tmp_path / "run" / "checkpoints").glob("epoch-*"))


def test_dry_run_says_what_it_would_take_and_writes_nothing(vifast, sysu_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, output, error = vifast("train", "agw-sysu", f"data={sysu_root}", *TINY, "--dry-run")
    assert (status, error) == (0, "")
    assert "system: agw" in output
    for words in ("parameters", "operations", "GFLOP an image", "GiB: "):
        assert words in output
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_two_stages_says_which_is_under_way(vifast, sysu_root, tmp_path):
    stages = [*TINY, "teacher_config={base: agw-sysu, epochs: 1, dataset: {num_ids: 2, num_instances: 2}}"]
    status, output, _ = vifast("train", "dakd-sysu", f"data={sysu_root}", *stages, "--dry-run")
    assert status == 0
    assert re.findall(r"^# (\w+)$|^system: (\w+)$", output, re.MULTILINE) == [
        *(("teacher", ""), ("", "agw"), ("student", ""), ("", "dakd"))
    ]
    out = tmp_path / "run"
    status, output, error = vifast("train", "dakd-sysu", f"data={sysu_root}", *stages, "teacher=x", "--out", out)
    assert (status, error) == (2, "vifast: teacher: x: not a run's folder, it has no config.yaml\n")
    status, output, _ = vifast("train", "dakd-sysu", f"data={sysu_root}", *stages, "--out", out)
    assert status == 0
    assert re.findall(r"^(\w+), epoch (\d): rank1", output, re.MULTILINE) == [
        *(("teacher", "1"), ("student", "1"), ("student", "2"))
    ]
    assert vifast("evaluate", out, "--data", sysu_root, "--json", tmp_path / "scores.json")[0] == 0
    assert vifast("report", out)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "agw-sisu", "--out", "x"], "agw-sisu: no such file, and not a preset; the nearest"),
        (["train", "agw-sysu", "epocs=1", "--out", "x"], "epocs: unknown key; the nearest known name is 'epochs'"),
        (["train", "agw-sysu", "--out", "x"], "data: expected the dataset's root folder"),
        (["train", "agw-sysu", "data=nowhere", "--out", "x"], "SYSU-MM01: folder not found: nowhere"),
        (["train", "agw-sysu"], "out: expected the folder to create, --out DIR"),
        (
            ["synth", "--layout", "lifelong", "--domain", "sysu", "--out", "x"],
            "domain: expected none for lifelong, which has one for each layout, got 'sysu'",
        ),
        (["synth", "--layout", "market", "--out", "x"], "layout: expected one of sysu, regdb, llcm, vcm, got 'market'"),
        (["evaluate", "nowhere", "--data", "x"], "nowhere: not a run's folder"),
        (["report", "nowhere"], "nowhere: not a run's folder, it has no config.yaml"),
        (["report", "nowhere", "--out", "."], "out: expected a file to write, got the folder ."),
        (["report", "nowhere", "--out", "x/y.html"], "out: expected a file in a folder that exists, got x/y.html"),
        (["report"], "Missing argument 'RUN...'"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["demo", "--seed", "-1"], "Invalid value for '--seed'"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(vifast, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, output, error = vifast(*arguments)
    assert (status, output) == (2, "")
    assert error.startswith(f"vifast: {message}")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_traceback_on_request(vifast, monkeypatch):
    monkeypatch.setenv("VIFAST_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["vifast", "train", "agw-sisu", "--out", "x"])
    with pytest.raises(ValueError, match="no such file"):
        cli.main()


def test_demo_leaves_a_filled_folder_alone(vifast, tmp_path):
    (tmp_path / "mine").write_text("keep")
    status, _, error = vifast("demo", "--out", tmp_path)
    assert (status, error) == (2, f"vifast: out: expected a new or an empty folder, got {tmp_path}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("granted", "message"),
    [
        (os.R_OK, "out: expected a file in a folder that can be written to, got run/x.html"),
        (os.W_OK | os.X_OK, "Invalid value for 'RUN...': path 'run' is not readable."),
    ],
)
def test_report_without_permission(vifast, tmp_path, monkeypatch, granted, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: mode & granted == mode)
    assert vifast("report", "run", "--out", "run/x.html") == (2, "", f"vifast: {message}\n")


def test_doctor_reports_parts_that_are_there_and_missing(vifast, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    status, output, _ = vifast("doctor")
    assert status == 0
    lines = {line.split("  ")[0]: line for line in output.splitlines()}
    assert "ok instruction set" in lines["C++ for the CPU"]
    assert "ok 0." in lines["vifast"]
    assert "missing" in lines["nvidia-dali-cuda130"] or "ok" in lines["nvidia-dali-cuda130"]
    assert re.search("ok (DALI|Pillow) on the [CG]PU", lines["image decoder"])


def test_version_and_help(vifast):
    from vifast import __version__

    assert vifast("--version") == (0, f"vifast {__version__}\n", "")
    for arguments in ([], ["--help"]):
        status, output, _ = vifast(*arguments)
        assert status == 0
        assert all(
            name in output for name in ("demo", "synth", "train", "evaluate", "search", "rerank", "report", "doctor")
        )


def test_without_the_train_extra_one_line_says_what_to_install(tmp_path):
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError('blocked', name='typer')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from vifast.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert 'this needs typer, which is not installed: pip install "vifast[train]"' in done.stderr


def test_importing_vifast_pulls_in_no_optional_package(tmp_path):
    optional = ["typer", "rich", "pydantic", "accelerate", "matplotlib", "jinja2", "PIL", "safetensors", "yaml"]
    code = f"import sys, vifast; print([name for name in {optional!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_lifelong_train_dry_run_and_evaluate(vifast, tmp_path):
    data, out = tmp_path / "four", tmp_path / "run"
    assert vifast("synth", "--layout", "lifelong", "--ids", 8, "--out", data)[0] == 0
    given = [f"data.{name}={data / name}" for name in ("regdb", "llcm")] + ["order=[llcm, regdb]", *TINY[2:]]
    given += ["dataset={height: 32, width: 16, num_ids: 2, num_instances: 2}", "options.backbone=vit_tiny_demo"]
    status, output, _ = vifast("train", "ckda", *given, "precision=no", "--dry-run")
    assert status == 0
    assert "# stage 1: llcm" in output
    assert "# stage 2: regdb" in output
    assert not out.exists()
    status, output, _ = vifast("train", "ckda", *given, "precision=no", "--out", out)
    assert status == 0
    assert "stage 2 of 2: regdb" in output
    assert "forgetting" in output.splitlines()[-2]
    assert vifast("evaluate", out, "--data", data / "llcm", "--json", tmp_path / "scores.json")[0] == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    matrix = json.loads((out / "matrix.json").read_text())
    assert found["mean_ap"] == matrix["stages"][1]["llcm"]["mean_ap"]
    status, _, error = vifast("train", "ckda", *given, "--out", out)
    assert (status, error) == (2, f"vifast: {out}: already holds a run; add --resume or choose another folder\n")
