"""The page of a lifelong run, without training."""

import json

import pytest

from vifast.report import render
from vifast.train.matrix import KEYS, Matrix
from vifast.train.run_page import make_page


@pytest.fixture
def run(tmp_path):
    """Two of three stages are scored."""
    matrix = Matrix((("regdb",), ("sysu",), ("llcm",)))
    for stage, name, score in ((0, "regdb", 0.5), (1, "regdb", 0.375), (1, "sysu", 0.75)):
        matrix.put(stage, name, dict.fromkeys(KEYS, score))
    matrix.save(tmp_path)
    (tmp_path / "config.yaml").write_text("order: [regdb, sysu, llcm]\n")
    for stage in ("1-regdb", "2-sysu"):
        (tmp_path / stage).mkdir()
        config = {"system": "ckda", "dataset": {"name": "sysu"}, "optimizer": {}, "epochs": 1, "seed": 7, "data": "x"}
        (tmp_path / stage / "config.yaml").write_text(json.dumps(config))
        (tmp_path / stage / "run.json").write_text('{"num_classes": 12, "commit": "abc", "versions": {}}')
        (tmp_path / stage / "results.json").write_text('{"protocol": "by hand", "trials": []}')
    return tmp_path


def test_the_matrix_its_course_and_what_was_forgotten(run):
    page = make_page([run])
    assert page.title.endswith(": CKDA, lifelong")
    assert page.summary.startswith("Trained on RegDB, then SYSU-MM01, then LLCM.")
    assert page.summary.endswith("2 of 3 stages are finished.")
    tiles, matrices, courses, forgotten, stages, _ = page.sections
    assert [(tile.name, tile.value) for tile in tiles.tiles] == [
        ("mean mAP", "56.2 %"),
        ("mean Rank-1", "56.2 %"),
        ("forgetting", "12.5 %"),
        ("backward transfer", "-12.5 %"),
    ]
    assert all(number in matrices.figures[0][1] for number in (">50.0<", ">37.5<", ">75.0<"))
    assert courses.legend == ["regdb", "sysu"]
    assert forgotten.rows[0] == ["regdb", "50.0", "50.0", "37.5", "12.5", "-12.5"]
    assert [row[0] for row in stages.rows] == ["1-regdb", "2-sysu"]
    assert "SYSU-MM01" in render(page)


def test_a_stage_must_be_scored(run):
    Matrix((("regdb",),)).save(run)
    with pytest.raises(ValueError, match="no stage is scored on all datasets yet"):
        make_page([run])
