"""The page's training images are those that the loader hands to the network."""

import numpy as np
import pytest
import torch
from PIL import Image

from vifast.data.contact_sheet import augmented
from vifast.data.images import read_image
from vifast.functional import AugmentParams
from vifast.report import Page, Pictures, render
from vifast.train.config import dump_config, load_config
from vifast.train.datasets import open_dataset, train_loader
from vifast.train.record import CONFIG, Run
from vifast.train.seen import seen

SIZE = [f"dataset.{option}" for option in ("height=128", "width=64", "num_ids=4", "num_instances=1")]


def run_of(folder, preset, sysu_root, *overrides):
    config = load_config(preset, [f"data={sysu_root}", *SIZE, "seed=3", *overrides])
    (folder / CONFIG).write_text(dump_config(config))
    return Run(folder, {}, {}, [], [], None), config


@pytest.mark.parametrize("preset", ["dakd-sysu", "agw-sysu"])
def test_they_are_the_batches_of_the_first_epochs(tmp_path, sysu_root, preset):
    run, config = run_of(tmp_path, preset, sysu_root)
    [section] = seen(run, None)
    assert isinstance(section, Pictures)
    assert [row[0][1] for row in section.rows[:3]] == [row[0][1] for row in section.rows[3:]]  # people, either modality
    train = open_dataset(config).train
    loader, plain = train_loader(open_dataset(config), config), AugmentParams.identity(1)
    found = 0
    for epoch in range(3):
        loader.set_epoch(epoch)
        handed = {}
        for batch in loader:
            handed |= zip(batch["index"].tolist(), batch["image"], strict=True)
        for row in section.rows:
            same = [k for k in handed if (read_image(train.paths[k], (128, 64)) == row[0][0]).all()]
            if same:
                shown = torch.tensor(row[1 + epoch][0], dtype=torch.float32).permute(2, 0, 1)
                std, mean = (torch.tensor(value)[:, None, None] for value in (plain.std, plain.mean))
                assert (shown - ((handed[same[0]] * std + mean) * 255).clamp(0, 255)).abs().max() < 0.51
                found += 1
    assert found > 0


def test_cutswap_is_named_and_leaves_grey(tmp_path, sysu_root):
    run, _ = run_of(tmp_path, "dakd-sysu", sysu_root, "dataset.augment.cutswap.p=1", "dataset.augment.erase.p=0")
    [section] = seen(run, None)
    for row in section.rows[:3]:
        assert {words for _, words in row[1:]} == {"CutSwap"}
        grey = [np.mean((image.max(2) - image.min(2)) <= 1) for image, _ in row]
        assert min(grey[1:]) > grey[0]
    assert {words for row in section.rows[3:] for _, words in row[1:]} <= {"", "exchange"}
    assert render(Page("", "", [section])).count("CutSwap") == 30


def test_without_the_dataset_it_is_one_line_and_of_another_version_nothing(tmp_path, sysu_root):
    run, _ = run_of(tmp_path, "agw-sysu", sysu_root)
    [section] = seen(run, tmp_path / "else: [where")
    assert "the images are not at hand" in section.text
    (tmp_path / CONFIG).write_text("epochss: 3\n")
    assert seen(run, None) == []


def test_partners_are_of_the_pictures(tmp_path, sysu_root):
    mixed = "dataset.augment={mixup_cross: {p: 1}}"
    run, _ = run_of(tmp_path, "agw-sysu", sysu_root, mixed)
    [section] = seen(run, None)
    assert "Partners" in section.text
    assert {words for row in section.rows[:3] for _, words in row[1:]} == {"MixUp"}


def test_other_sizes_keep_their_form(tmp_path, sysu_root):
    run, _ = run_of(tmp_path, "agw-sysu", sysu_root, "dataset.height=64", "dataset.width=48")
    [section] = seen(run, None)
    assert {image.shape for row in section.rows for image, _ in row} == {(128, 96, 3)}
    assert Image.fromarray(section.rows[0][0][0]).size == (96, 128)
    same = augmented(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), AugmentParams.identity(1))
    assert (same == 0).all()
