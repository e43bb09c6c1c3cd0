"""The configuration of a lifelong run."""

import pytest
import yaml

from vifast.train.config import ConfigError, read_config
from vifast.train.lifelong_config import build_lifelong, dump_lifelong, is_lifelong, load_lifelong

LIFELONG = ["ckda", "ckda-ema", "ckda-finetune", "ckda-joint", "ckda-lifelong-release", "ckda-lwf"]


@pytest.mark.parametrize("preset", LIFELONG)
def test_preset_loads_and_survives_a_round_trip(preset):
    assert is_lifelong(read_config(preset))
    config = load_lifelong(preset, ["data.sysu=some/where"])
    assert build_lifelong(yaml.safe_load(dump_lifelong(config))) == config
    assert [name for number in range(len(config.order)) for name in config.names(number)] == [
        "regdb",
        "sysu",
        "llcm",
        "vcm",
    ]


def test_keys_are_of_all_datasets_and_of_one():
    config = load_lifelong("ckda", ["epochs=7", "stages.llcm.epochs=3", "order=[llcm, vcm]", "options.kappa=5"])
    assert config.order == ("llcm", "vcm")
    assert {name: run.epochs for name, run in config.datasets.items()} == {"sysu": 7, "regdb": 7, "llcm": 3, "vcm": 7}
    assert all(run.options.kappa == 5 for run in config.datasets.values())
    assert {run.dataset.name for run in config.datasets.values()} == {"sysu", "regdb", "llcm", "vcm"}


def test_a_stage_goes_on_from_a_folder(tmp_path):
    config = load_lifelong("ckda", ["data={llcm: a, vcm: b}", "order=[llcm, vcm]"])
    assert config.stage(0, None).options.previous is None
    second = config.stage(1, tmp_path)
    assert (second.options.previous, str(second.data), second.dataset.name) == (str(tmp_path), "b", "vcm")
    with pytest.raises(ConfigError, match=r"data\.sysu: expected the dataset's root folder, for example data\.sysu="):
        config.root("sysu")


def test_the_protocols_are_the_papers():
    clean, release = load_lifelong("ckda").datasets, load_lifelong("ckda-lifelong-release").datasets
    for runs in (clean, release):
        of = {name: run.dataset for name, run in runs.items()}
        assert (of["regdb"].split, of["regdb"].direction) == (1, "v2i")
        assert (of["sysu"].mode, of["sysu"].shots, of["sysu"].draw) == ("all", 1, "agw")
        assert (of["llcm"].direction, of["llcm"].protocol, of["llcm"].train_ids) == ("i2v", "ckda", 500)
        assert (of["vcm"].frames, of["vcm"].min_frames, of["vcm"].level) == (3, 12, "image")
    assert (clean["llcm"].dataset.untrained, clean["llcm"].dataset.swapped_flags) == ("drop", False)
    assert (release["llcm"].dataset.untrained, release["llcm"].dataset.swapped_flags) == ("prototypes", True)
    assert {run.options.preset for run in release.values()} == {"release"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("order=[sysu, regbd]", "order: no dataset 'regbd'; the nearest known name is 'regdb'"),
        ("order=[sysu, regdb+sysu]", "order: expected every dataset once, got sysu 2 times"),
        ("order=sysu", "order: expected datasets, for example [regdb, sysu], got 'sysu'"),
        ("order=[]", "order: expected datasets, for example [regdb, sysu], got ()"),
        ("data=x", "data: expected a value for each dataset, for example data.sysu=/path/to/SYSU-MM01, got 'x'"),
        ("data.sysuu=x", "data.sysuu: unknown key; the nearest known name is 'sysu'"),
        ("data.sysu=3", "data.sysu: input is not a valid path for <class 'pathlib.Path'>, got 3"),
        ("stages.llcn.epochs=2", "stages.llcn: unknown key; the nearest known name is 'llcm'"),
        ("stages.llcm.epocs=2", "stages.llcm.epocs: unknown key; the nearest known name is 'epochs'"),
        ("stages.llcm.dataset.protocol=x", "stages.llcm.dataset.protocol: expected benchmark or ckda or idkl for llcm"),
        ("stages.sysu=3", "stages.sysu: expected the keys of a run, got 3"),
        ("epocs=1", "epocs: unknown key; the nearest known name is 'epochs'"),
        ("options.alpah=1", "options.alpah: unknown key; the nearest known name is 'alpha'"),
    ],
)
def test_wrong_override_is_one_clear_line(override, message):
    with pytest.raises(ConfigError) as caught:
        load_lifelong("ckda", [override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_system_must_be_able_to_go_on():
    with pytest.raises(ConfigError, match=r"system: agw cannot go on from another stage, it has no options\.previous"):
        load_lifelong("ckda", ["system=agw", "options={}"])
    assert load_lifelong("ckda", ["system=agw", "options={}", "order=[sysu]"]).datasets["sysu"].system == "agw"
