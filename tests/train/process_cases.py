"""One of several processes that train together: writes the rows of every batch and the weights it ends with."""

import os
import sys
from pathlib import Path

import torch


def main(folder, rank, ranks, *overrides):
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "ACCELERATE_USE_CPU": "true"}
    from vifast.train.config import load_config
    from vifast.train.loop import Trainer

    torch.set_num_threads(1)
    trainer = Trainer(load_config("agw-sysu", overrides), Path(folder) / f"run-{ranks}", quiet=True)
    step, rows = trainer._train_step, []

    def recorded(batches):
        rows.extend(batch["index"].tolist() for batch in batches)
        return step(batches)

    trainer._train_step = recorded
    trainer.fit()
    state = {"rows": rows, "step": trainer.step, "weights": trainer.system.state_dict()}
    torch.save(state, Path(folder) / f"{ranks}-{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
