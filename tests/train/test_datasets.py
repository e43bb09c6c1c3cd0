"""From a configuration to a dataset, and once through training and scoring for the layouts that need options."""

import re

import pytest
import torch

from vifast.data import CrossModalSampler, IdklSampler, ReplacementSampler, make_loader, synthetic
from vifast.train.config import dump_config, load_config
from vifast.train.datasets import eval_loader, open_dataset, train_loader
from vifast.train.log import read_metrics
from vifast.train.loop import Trainer

TINY = [
    *(f"dataset.{name}" for name in ("height=32", "width=16", "num_ids=2", "num_instances=2")),
    "options={backbone: resnet_tiny, backbone_width: 4, non_local: [0, 0, 0, 0]}",
    "epochs=1",
    "steps_per_epoch=2",
]


@pytest.fixture(scope="module", params=["regdb", "llcm", "vcm"])
def root(request, tmp_path_factory):
    frames = {"vcm": 13}.get(request.param, 2)
    folder = tmp_path_factory.mktemp("layouts") / request.param
    return synthetic.write(request.param, folder, num_ids=8, size=(32, 16), images_per_camera=frames)


def test_presets_train_and_score_on_their_layout(root, tmp_path):
    trainer = Trainer(load_config(f"agw-{root.name}", [f"data={root}", *TINY]), tmp_path / "run", quiet=True)
    scores = trainer.fit().scores
    name = {"regdb": "RegDB, visible to", "llcm": "LLCM, infrared to", "vcm": "HITSZ-VCM, tracklet level"}[root.name]
    assert scores.protocol.startswith(name)
    assert len(scores.trials) == (10 if root.name == "llcm" else 1)
    assert 0 <= scores.rank1 <= 1


def test_options_reach_the_reader(root):
    preset = f"agw-{root.name}"
    there, back = (
        open_dataset(load_config(preset, [f"data={root}", f"dataset.direction={way}"])) for way in ("v2i", "i2v")
    )
    assert there.query.paths == back.gallery.paths
    if root.name == "llcm":
        assert len(open_dataset(load_config(preset, [f"data={root}", "dataset.draw=whole"])).trials) == 1
        with pytest.raises(ValueError, match=re.escape("draw: expected one of random, whole, got 'agw'")):
            open_dataset(load_config(preset, [f"data={root}", "dataset.draw=agw"]))
    if root.name == "vcm":
        train = open_dataset(load_config(preset, [f"data={root}", "dataset.frames=2"])).train
        assert len(train) == 2 * len(set(train.tracklets))


def test_damage_is_the_users_choice(root, tmp_path):
    dataset = open_dataset(load_config(f"agw-{root.name}", [f"data={root}"]))
    lost = dataset.query.paths[0]
    hidden = lost.rename(tmp_path / lost.name)
    try:
        skip = ["dataset.on_damage=skip"]
        config = load_config(f"agw-{root.name}", [f"data={root}", *skip])
        assert lost not in open_dataset(config).query.paths
        lost.write_bytes(hidden.read_bytes()[:-40])
        assert lost in open_dataset(config).query.paths
        decoded = load_config(f"agw-{root.name}", [f"data={root}", *skip, "dataset.decode=true"])
        assert lost not in open_dataset(decoded).query.paths
        lost.unlink()
        if root.name != "llcm":  # whose folders are searched, not listed
            with pytest.raises(FileNotFoundError, match=re.escape(str(lost))):
                open_dataset(load_config(f"agw-{root.name}", [f"data={root}"]))
    finally:
        hidden.replace(lost)


@pytest.mark.parametrize(
    ("name", "kind"), [("pk", CrossModalSampler), ("idkl", IdklSampler), ("with_replacement", ReplacementSampler)]
)
def test_the_sampler_is_chosen_and_divided(sysu_root, name, kind):
    overrides = [f"data={sysu_root}", *TINY, f"dataset.sampler={name}", "dataset.short=repeat", "seed=3"]
    config = load_config("agw-sysu", overrides)
    loader = train_loader(open_dataset(config), config, rank=1, world_size=2)
    sampler = loader.batch_sampler
    assert type(sampler) is kind
    assert (sampler.rank, sampler.world_size, sampler.seed, sampler.num_ids, len(loader)) == (1, 2, 3, 2, 2)
    with pytest.raises(ValueError, match="num_ids: expected a multiple of world_size 3, got 2"):
        train_loader(open_dataset(config), config, world_size=3)


def test_a_cache_changes_no_number(sysu_root, tiny_overrides, tmp_path, monkeypatch):
    def run(name, *overrides):
        config = load_config("agw-sysu", [*tiny_overrides, "dataset.augment.flip=0.5", "epochs=2", *overrides])
        scores = Trainer(config, tmp_path / name, quiet=True).fit().scores
        losses = [record.get("loss") for record in read_metrics(tmp_path / name)]
        return losses, scores.to_json()

    plain = run("plain")
    assert run("memory", "dataset.cache=memory") == plain
    on_disk = ["dataset.cache=disk", f"dataset.cache_folder={tmp_path / 'kept'}"]
    assert run("first", *on_disk) == plain
    monkeypatch.setattr("vifast.data.cache.read_image", None)  # nothing is left to decode
    assert run("second", *on_disk) == plain
    assert len(list((tmp_path / "kept").glob("*.images"))) == 3


@pytest.mark.parametrize(("value", "name"), [("true", "memory"), ("false", "none"), ("none", "none"), ("disk", "disk")])
def test_the_cache_is_a_choice_once_a_flag(value, name):
    config = load_config("agw-sysu", [f"dataset.cache={value}"])
    assert config.dataset.cache == name
    assert f"cache: {name}\n" in dump_config(config)


def test_how_images_are_decoded_is_configured(sysu_root, tmp_path):
    options = ["loader=pillow", "resample=lanczos", "workers=0"]
    cached = ["cache=disk", f"cache_folder={tmp_path}"]

    def config(*options):
        return load_config("agw-sysu", [f"data={sysu_root}", *TINY, *(f"dataset.{option}" for option in options)])

    dataset = open_dataset(config())
    expected = next(iter(make_loader(dataset.query, size=(32, 16), resample="lanczos", loader="pillow")))["image"]
    for chosen, name in ((options, "pillow"), ([*options, *cached], "memory")):
        loader = eval_loader(dataset.query, config(*chosen))
        assert loader.loader == name
        assert torch.equal(next(iter(loader))["image"], expected)
    batch = next(iter(train_loader(dataset, config(*options))))
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("untrained", ["drop", "prototypes"])
def test_the_first_labels_alone_are_trained(root, untrained):
    whole = open_dataset(load_config(f"agw-{root.name}", [f"data={root}"]))
    config = load_config(
        f"agw-{root.name}", [f"data={root}", *TINY, "dataset.train_ids=3", f"dataset.untrained={untrained}"]
    )
    dataset = open_dataset(config)
    assert dataset.identities.tolist() == whole.identities[:3].tolist()
    trained = (whole.train.labels < 3).sum()
    assert len(dataset.train) == (trained if untrained == "drop" else len(whole.train))
    assert (dataset.train.labels[:trained] < 3).all()
    assert (dataset.train.labels[trained:] >= 3).all()
    assert max(max(rows) for rows in train_loader(dataset, config).batch_sampler) < trained
    assert len(open_dataset(load_config(f"agw-{root.name}", [f"data={root}", "dataset.train_ids=500"])).train) == len(
        whole.train
    )


def test_flags_may_be_swapped_in_tests(root):
    config = load_config(f"agw-{root.name}", [f"data={root}", *TINY, "dataset.swapped_flags=true"])
    query = open_dataset(config).query
    batch = next(iter(eval_loader(query, config)))
    assert batch["modality"].tolist() == (1 - query.modality[: len(batch["modality"])]).tolist()
