import pytest
from pydantic import ValidationError

from vifast.data import Augment
from vifast.data.augmentation import CutSwap
from vifast.systems.agw import AGWOptions
from vifast.train.config import ConfigError, dump_config, load_config, presets


@pytest.mark.parametrize("preset", presets())
def test_preset_loads_and_survives_a_round_trip(preset, tmp_path):
    config = load_config(preset)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert isinstance(config.options, AGWOptions)


def test_base_is_merged_key_by_key():
    sysu, regdb = load_config("agw-sysu"), load_config("agw-regdb")
    assert regdb.dataset.name == "regdb"
    assert regdb.dataset.height == sysu.dataset.height
    assert regdb.optimizer == sysu.optimizer


def test_overrides_are_typed_and_nested():
    config = load_config(
        "agw-sysu", ["epochs=2", "optimizer.lr=1e-3", "data=some/where", "options.non_local=[0, 0, 0, 0]"]
    )
    assert (config.epochs, config.optimizer.lr, str(config.data)) == (2, 1e-3, "some/where")
    assert config.options.non_local == (0, 0, 0, 0)


def test_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        load_config("agw-sysu").epochs = 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epocs=1", r"epocs: unknown key; the nearest known name is 'epochs'"),
        ("optimizer.lrr=1", r"optimizer\.lrr: unknown key; the nearest known name is 'lr'"),
        ("options.bakbone=x", r"options\.bakbone: unknown key; the nearest known name is 'backbone'"),
        ("epochs=many", r"epochs: input should be a valid integer.*got 'many'"),
        ("epochs=0", r"epochs: input should be greater than or equal to 1, got 0"),
        ("optimizer.name=lion", r"optimizer\.name: input should be 'sgd', 'adam' or 'adamw', got 'lion'"),
        ("options.gem_p=wide", r"options\.gem_p: input should be a valid number"),
        ("system=agv", r"system: expected one of agw, idkl, got 'agv'"),
        ("epochs.a=2", r"epochs\.a: epochs is a value, not a section"),
        ("options=3", r"options: .*, got 3"),
        ("nonsense", r"'nonsense': expected KEY=VALUE"),
        ("a..b=1", r"'a\.\.b=1': expected KEY=VALUE"),
        ("epochs=[1", r"epochs=\[1: not valid YAML"),
    ],
)
def test_wrong_override_is_one_clear_line(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("agw-sysu", [override])
    assert "\n" not in str(caught.value)


def test_every_problem_has_its_line():
    with pytest.raises(ConfigError) as caught:
        load_config("agw-sysu", ["epocs=1", "optimizer.lrr=1"])
    assert len(str(caught.value).splitlines()) == 2


def test_unknown_source_names_the_nearest_preset(tmp_path):
    with pytest.raises(ConfigError, match=r"agw-sisu: no such file, and not a preset; .*'agw-sysu'"):
        load_config("agw-sisu")
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"list\.yaml: expected a mapping of keys to values, got list"):
        load_config(path)
    path.write_text("a: [1\n")
    with pytest.raises(ConfigError, match=r"list\.yaml: not valid YAML"):
        load_config(path)


def test_an_augmentation_preset_under_what_is_given_beside_it():
    config = load_config("agw-sysu", ["dataset.augment.preset=dakd", "dataset.augment.cutswap.scope=image"])
    assert config.dataset.augment == Augment.preset("dakd", cutswap=CutSwap(scope="image"))
    assert load_config("agw-sysu").dataset.augment == Augment.preset("agw")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("preset=dakt", "dataset.augment.preset: no 'dakt'; the nearest known name is 'dakd'"),
        ("cutswap.scop=image", "dataset.augment.cutswap.scop: unknown key; the nearest known name is 'scope'"),
        ("erase.p=2", "dataset.augment.erase: .*erase.p: expected 0 to 1, got 2"),
        ("cutswap.fill=grey", "dataset.augment.cutswap.fill: input should be 'channel', 'gray' or 'permute'"),
    ],
)
def test_wrong_augmentation_is_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config("agw-sysu", [f"dataset.augment.{override}"])
