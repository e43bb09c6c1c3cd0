"""What two runs that ought to be the same must share."""

import torch
from safetensors.torch import load_file

from vifast.train import checkpoint
from vifast.train.log import read_metrics


def trajectory(out):
    """Everything recorded but the time, which no seed decides."""
    timed = ("images_per_second", "share_")
    return [{k: v for k, v in record.items() if not k.startswith(timed)} for record in read_metrics(out)]


def same_run(out, whole):
    assert trajectory(out) == trajectory(whole)
    one, other = (load_file(checkpoint.find_weights(run)) for run in (out, whole))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
