"""What a run made of a few training images before its network saw them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vifast.data import Augment, Dataset, Samples
from vifast.data.augmentation import partners
from vifast.data.contact_sheet import augmented
from vifast.data.images import read_image
from vifast.data.records import INFRARED, VISIBLE
from vifast.functional import AugmentParams
from vifast.report import Pictures, Section
from vifast.train.config import ConfigError, TrainConfig, load_config
from vifast.train.datasets import open_dataset
from vifast.train.record import CONFIG, Run

_PEOPLE, _EPOCHS = 3, 10
_HEIGHT = 128  # of the pictures on a page
_TITLE = "Training images"


def seen(run: Run, data: Path | None) -> list[Section]:
    """Images of some people in both modalities, each as it is and as the run's first epochs drew it."""
    try:
        overrides = ["dataset.decode=false"] + ([] if data is None else [f"data={json.dumps(str(data))}"])
        config = load_config(run.folder / CONFIG, overrides)
        dataset = open_dataset(config)
        rows = _rows(dataset.train)
        pictures = _pictures(dataset, rows, config)
    except ConfigError:  # of another version
        return []
    except (OSError, ValueError) as error:
        words = f"Not shown: the images are not at hand ({error}); --data ROOT says where the dataset is."
        return [Section(title=_TITLE, text=words)]
    text = f"Each row starts with an image as it is; then as the network sees it in epochs 1 to {_EPOCHS}, by random "
    text += "numbers of the run's own. Erased boxes have the colour that their fill stands for."
    if config.dataset.augment.mixes:
        text += " Partners are of these images, in training of the batch."
    return [Pictures(title=_TITLE, text=text, rows=pictures)]


def _rows(train: Samples) -> np.ndarray:
    """The first image in each modality of the first people that have both."""
    sides = []
    for modality in (VISIBLE, INFRARED):
        own = np.flatnonzero(train.modality == modality)
        labels, first = np.unique(train.labels[own], return_index=True)
        sides.append(dict(zip(labels.tolist(), own[first].tolist(), strict=True)))
    both = [label for label in sides[0] if label in sides[1]][:_PEOPLE]
    return np.array([side[label] for side in sides for label in both], np.int64)


def _pictures(dataset: Dataset, rows: np.ndarray, config: TrainConfig) -> list[list[tuple[np.ndarray, str]]]:
    options, train = config.dataset, dataset.train.select(rows)
    size = (options.height, options.width)
    images = torch.from_numpy(np.stack([read_image(path, size, options.resample) for path in train.paths]))
    partner = partners(train.labels, train.modality)
    names = [dataset.identities[label] for label in train.labels]
    columns = [[(_small(image), f"person {name}") for image, name in zip(images, names, strict=True)]]
    for epoch in range(_EPOCHS):
        params = options.augment.draw(rows, train.modality, size, seed=config.seed, epoch=epoch, partner=partner)
        done = _done(options.augment, params, train.modality)
        columns.append([(_small(image), words) for image, words in zip(augmented(images, params), done, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]


def _done(policy: Augment, params: AugmentParams, modality: np.ndarray) -> list[str]:
    """What was done to each image besides geometry. A modality has CutSwap or exchange, CutMix or MixUp, never both."""
    done = []
    for k, side in enumerate("vi"[m] for m in modality):
        swap, cut = (part.p > 0 and side in part.modalities for part in (policy.cutswap, policy.cutmix_cross))
        names = {"mix": "CutMix" if cut else "MixUp", "color": "CutSwap" if swap else "exchange", "erase": "erased"}
        done.append(", ".join(name for box, name in names.items() if params.column(f"{box}_height")[k] > 0))
    return done


def _small(image: Tensor) -> np.ndarray:
    from PIL import Image

    height, width = image.shape[:2]
    return np.array(Image.fromarray(image.numpy()).resize((max(1, round(_HEIGHT * width / height)), _HEIGHT)))
