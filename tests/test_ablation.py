"""The runner of studies, without training: what is run, what is recorded, and the table of it."""

import ablation
import pytest

STUDY = """
preset: demo
datasets: {people: {layout: sysu, num_ids: 8}}
common: ["data={people}", epochs=1]
variants: {plain: [], more: [options.margin=0.5]}
seeds: [3, 4]
"""
SCORES = {("plain", 3): 0.5, ("plain", 4): 0.6, ("more", 3): 0.7, ("more", 4): 0.9}


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "HERE", tmp_path)
    for folder in ("studies", "results"):
        (tmp_path / folder).mkdir()
    (tmp_path / "studies/small.yaml").write_text(STUDY)
    return ablation.load("small")


def lines(study):
    told = {"device": "Card", "torch": "2", "commit": "abc"}
    for run in study.runs():
        score = SCORES[run["variant"], run["seed"]]
        yield {**run, "scores": {"mean_ap": score, "rank1": score + 0.05, "mean_inp": 0.25}, **told}


def test_every_variant_runs_with_every_seed_under_its_overrides(study):
    assert [(run["variant"], run["seed"]) for run in study.runs()] == [*SCORES][::2] + [*SCORES][1::2]
    assert study.runs()[1]["overrides"] == ["data={people}", "epochs=1", "options.margin=0.5"]


def test_a_line_counts_while_the_study_says_the_same(study):
    runs = study.runs()
    assert ablation.recorded("small", runs) == [None] * 4
    ablation.write("small", [None, *list(lines(study))[1:]])
    assert [line is None for line in ablation.recorded("small", runs)] == [True, False, False, False]
    (ablation.HERE / "studies/small.yaml").write_text(STUDY.replace("0.5", "0.6"))
    found = ablation.recorded("small", ablation.load("small").runs())
    assert [line and line["variant"] for line in found] == [None, None, "plain", None]


def test_a_teacher_is_the_run_of_a_variant_with_the_same_seed(study):
    assert ablation.teachers_of(study.runs()[0]) == {}
    text = STUDY.replace("[options.margin=0.5]", '["options.margin={plain}"]') + "teachers: [plain]\n"
    (ablation.HERE / "studies/small.yaml").write_text(text)
    plain, more, *others = ablation.load("small").runs()
    folder = ablation.teachers_of(more)["plain"]
    assert ablation.teachers_of(plain)["plain"] == folder
    assert ablation.settings(more, {"plain": folder})[-2:] == [f"options.margin={folder}", "seed=3"]
    assert all(ablation.teachers_of(run)["plain"] != folder for run in others)


def test_table_has_means_deviations_and_differences_of_the_same_seed(study):
    with pytest.raises(SystemExit, match="small: no record of plain 3, more 3"):
        ablation.table("small")
    ablation.write("small", lines(study))
    assert ablation.table("small").splitlines() == [
        "2 seeds each, mean ± standard deviation in %; the difference is of runs of the same seed. Card, torch 2, "
        "commit abc.",
        "",
        "| | mAP | Rank-1 | mINP | mAP − plain |",
        "|---|--:|--:|--:|--:|",
        "| plain | 55.0 ± 7.1 | 60.0 ± 7.1 | 25.0 ± 0.0 |  |",
        "| more | 80.0 ± 14.1 | 85.0 ± 14.1 | 25.0 ± 0.0 | +25.0 ± 7.1 |",
    ]


def test_errors_say_what_was_expected(study):
    with pytest.raises(SystemExit, match="lost: expected a study, one of small"):
        ablation.load("lost")
    (ablation.HERE / "studies/small.yaml").write_text(STUDY + "sedes: [1]\n")
    with pytest.raises(SystemExit, match="sedes"):
        ablation.load("small")


@pytest.mark.parametrize("file", sorted((ablation.HERE / "studies").glob("*.yaml")), ids=lambda file: file.stem)
def test_studies_that_are_kept_can_be_configured(file):
    from vifast.train.config import build_config, read_config
    from vifast.train.lifelong_config import build_lifelong, is_lifelong

    study = ablation.load(file.stem)
    for run in study.runs():
        folders = dict.fromkeys([*run["datasets"], *study.teachers], "folder")
        given = read_config(run["preset"], ablation.settings(run, folders))
        (build_lifelong if is_lifelong(given) else build_config)(given)
