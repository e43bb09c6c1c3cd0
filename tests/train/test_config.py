import pytest
import yaml
from pydantic import ValidationError

from vifast import systems
from vifast.data import Augment
from vifast.data.augmentation import CutSwap
from vifast.systems.mce import MCEOptions
from vifast.train.config import ConfigError, build_config, dump_config, load_config, presets, read_config
from vifast.train.lifelong_config import is_lifelong
from vifast.train.schedule import lr_factor


@pytest.mark.parametrize("preset", [name for name in presets() if not is_lifelong(read_config(name))])
def test_preset_loads_and_survives_a_round_trip(preset, tmp_path):
    config = load_config(preset)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert isinstance(config.options, systems.get(config.system).Options)


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
        ("dataset.protocol=ckda", r"dataset\.protocol: expected none for sysu, got 'ckda'"),
        (
            "dataset={name: regdb, protocol: ckda}",
            r"dataset\.protocol: expected benchmark or idkl for regdb, got 'ckda'",
        ),
        ("system=agv", r"system: expected one of agw, .*, got 'agv'"),
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


def test_idkl_presets_are_the_published_recipe():
    sysu, regdb, llcm, paper = (load_config(f"idkl-{name}") for name in ("sysu", "regdb", "llcm", "paper"))
    for config in (sysu, llcm, paper):
        assert (config.dataset.height, config.dataset.width) == (384, 144)
        assert 2 * config.dataset.num_ids * config.dataset.num_instances == 120
        assert config.options.graph == "full"
    assert (regdb.dataset.height, regdb.dataset.width, regdb.options.graph) == (256, 128, "off")
    assert 2 * regdb.dataset.num_ids * regdb.dataset.num_instances == 60
    assert (llcm.dataset.name, llcm.dataset.draw) == ("llcm", "whole")
    assert [config.options.distill for config in (sysu, paper)] == ["symmetric", "to_shared"]
    for config in (sysu, regdb, llcm):
        assert (config.optimizer.name, config.optimizer.weight_decay, config.epochs) == ("adam", 5e-3, 160)
        assert config.dataset.sampler == "idkl"
        rates = [
            config.optimizer.lr * lr_factor(config.schedule, step=7 * (epoch - 1), steps_per_epoch=7, epochs=160)
            for epoch in (1, 55, 56, 95, 96, 160)
        ]
        assert rates == pytest.approx([3.5e-4, 3.5e-4, 3.5e-5, 3.5e-5, 3.5e-6, 3.5e-6])
        augment = config.dataset.augment
        assert (augment.flip, augment.pad, augment.pad_value, augment.erase.p) == (0.5, 10, 127, 0.5)


def test_words_that_older_yaml_takes_for_booleans_are_words():
    config = load_config("idkl-sysu", ["precision=no", "options.graph=off", "channels_last=false"])
    assert (config.precision, config.options.graph, config.channels_last) == ("no", "off", False)
    assert build_config(yaml.safe_load(dump_config(config))) == config


def test_mce_presets_are_the_published_recipe():
    sysu, regdb, llcm = (load_config(f"mce-{name}") for name in ("sysu", "regdb", "llcm"))
    for config in (sysu, regdb, llcm):
        assert config.system == "mce"
        assert (config.dataset.num_ids, config.dataset.num_instances) == (8, 4)
        assert config.dataset.sampler == "with_replacement"
        assert config.dataset.augment == Augment.preset("mce")
        assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == ("adam", 3.5e-4, 5e-4)
        assert (config.options, config.epochs) == (MCEOptions(), 160)
    assert [(c.dataset.height, c.dataset.width) for c in (sysu, regdb, llcm)] == [(384, 128), (288, 144), (384, 192)]

    def rates(config, *epochs):
        return [round(lr_factor(config.schedule, step=e, steps_per_epoch=1, epochs=160), 6) for e in epochs]

    assert rates(sysu, 0, 9, 10, 20, 21, 39, 40, 159) == [0.1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert rates(regdb, 30, 31, 59, 60) == [1, 0.1, 0.1, 0.01]


def test_dakd_presets_are_the_published_recipe():
    sysu, regdb, llcm = (load_config(f"dakd-{name}") for name in ("sysu", "regdb", "llcm"))
    sizes = [
        (c.dataset.height, c.dataset.width, 2 * c.dataset.num_ids * c.dataset.num_instances) for c in (sysu, regdb)
    ]
    assert sizes == [(384, 128, 64), (288, 144, 80)]
    assert (llcm.dataset.name, regdb.dataset.augment.pad_value) == ("llcm", 127)
    for config in (sysu, regdb, llcm):
        assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == ("adam", 3.5e-4, 0)
        assert {lr_factor(config.schedule, step=s, steps_per_epoch=2, epochs=160) for s in (0, 99, 319)} == {1}
        assert (config.epochs, config.evaluate_every, config.best_by) == (160, 1, "mean_ap")
        assert (config.dataset.sampler, config.options.variant) == ("with_replacement", "intended")


@pytest.mark.parametrize(
    ("preset", "intended", "release"),
    [("dakd-sysu", (0.5, "region"), (0.5, "image")), ("dakd-regdb", (0.5, "region"), (0.0, "image"))],
)
def test_one_override_makes_dakd_the_release(preset, intended, release, tmp_path):
    def swap(config):
        return config.dataset.augment.cutswap.p, config.dataset.augment.cutswap.scope

    assert swap(load_config(preset)) == intended
    config = load_config(preset, ["options.variant=release"])
    assert swap(config) == release
    assert swap(load_config(preset, ["dataset.augment.cutswap.p=0.2", "options.variant=release"])) == (0.2, "image")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
    (tmp_path / "own.yaml").write_text(f"base: {preset}\noptions: {{variant: release}}\n")
    assert load_config(tmp_path / "own.yaml") == config


def test_presets_of_ckda():
    """Spec ckda 2, 6, 7 and 13."""
    clean, release = load_config("ckda-clean"), load_config("ckda-release")
    assert (clean.options.preset, release.options.preset) == ("clean", "release")
    assert (clean.options.kappa, release.options.kappa) == (10.0, 0.1)
    assert (clean.dataset.untrained, release.dataset.untrained) == ("drop", "prototypes")
    for config in (clean, release):
        data, options = config.dataset, config.options
        assert 2 * data.num_ids * data.num_instances == 64
        assert (data.height, data.width, data.sampler) == (256, 128, "with_replacement")
        assert data.augment == Augment.preset("ckda")
        assert config.epochs == 50
        assert (config.optimizer.name, config.optimizer.weight_decay) == ("adamw", 1e-4)
        assert (options.alpha, options.beta, options.mu, options.tau, options.old_weight) == (1, 1, 0.5, 0.1, 0.7)
        assert (options.omega, options.nu, options.margin) == (1, 0.5, 0.1)
