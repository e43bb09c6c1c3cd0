"""One of several processes that train together: writes the rows of every batch, the weights it ends with, features."""

import os
import sys
from pathlib import Path

import torch


def main(folder, rank, ranks, preset, *overrides):
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
    from vifast.train import stages
    from vifast.train.config import load_config

    torch.set_num_threads(1)
    trainers = []

    class Recorded(stages.Trainer):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.rows = []
            trainers.append(self)

        def _train_step(self, batches):
            self.rows.extend(batch["index"].tolist() for batch in batches)
            return super()._train_step(batches)

    stages.Trainer = Recorded
    found = stages.train(load_config(preset, overrides), Path(folder) / f"run-{ranks}", quiet=True)
    told = [{"rows": t.rows, "step": t.step, "weights": t.system.state_dict()} for t in trainers]
    small = small_batches(trainers[-1].system, trainers[-1].dataset)
    told = {"stages": told, "query": found.query, "gallery": found.gallery, "small": small}
    torch.save(told, Path(folder) / f"{ranks}-{rank}.pt")


def small_batches(system, dataset):
    """Features by batches that two processes cannot share evenly, and by one that they both make."""
    from vifast.data import make_loader
    from vifast.train.evaluate import extract

    loaders = [make_loader(dataset.gallery, size=(32, 16), batch_size=size) for size in (3, 5, 500)]
    return [extract(system, loader) for loader in loaders]


if __name__ == "__main__":
    main(*sys.argv[1:])
