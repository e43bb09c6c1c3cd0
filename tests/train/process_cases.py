"""One of several processes that train together: writes the rows of every batch, the weights it ends with, features."""

import os
import sys
from pathlib import Path

import torch


def main(folder, rank, ranks, *overrides):
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
    from vifast.train.config import load_config
    from vifast.train.loop import Trainer

    torch.set_num_threads(1)
    trainer = Trainer(load_config("agw-sysu", overrides), Path(folder) / f"run-{ranks}", quiet=True)
    step, rows = trainer._train_step, []

    def recorded(batches):
        rows.extend(batch["index"].tolist() for batch in batches)
        return step(batches)

    trainer._train_step = recorded
    found = trainer.fit()
    state = {"rows": rows, "step": trainer.step, "weights": trainer.system.state_dict()}
    state |= {"query": found.query, "gallery": found.gallery, "small": small_batches(trainer.system, trainer.dataset)}
    torch.save(state, Path(folder) / f"{ranks}-{rank}.pt")


def small_batches(system, dataset):
    """Features by batches that two processes cannot share evenly, and by one that they both make."""
    from vifast.data import make_loader
    from vifast.train.evaluate import extract

    loaders = [make_loader(dataset.gallery, size=(32, 16), batch_size=size) for size in (3, 5, 500)]
    return [extract(system, loader) for loader in loaders]


if __name__ == "__main__":
    main(*sys.argv[1:])
