import time

import torch

from vifast.train.stopwatch import Stopwatch


def test_shares_add_up_and_start_again():
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch("data"):
            time.sleep(0.01)
        with watch("forward"):
            pass
    shares = watch.shares()
    assert list(shares) == ["data", "forward"]
    assert sum(shares.values()) == 1
    assert shares["data"] > 0.9
    assert watch.shares() == {}
