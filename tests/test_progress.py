"""Who wants to know how far a call is sees every step once, and changes no bit."""

import pytest
import torch

import vifast
from vifast.retrieval import evaluate, evaluate_trials, protocols, rerank

QUERY, GALLERY = torch.randn(70, 8), torch.randn(600, 8)
IDS = torch.arange(70) % 9, torch.arange(600) % 9
CALLS = {
    "evaluate": (lambda: evaluate(QUERY, GALLERY, *IDS).ap, ["ranking"]),
    "trials": (lambda: evaluate_trials(QUERY, GALLERY, *IDS, trials=[[0, 1], [2, 3]])[0].inp, ["ranking"]),
    "rerank": (lambda: rerank(QUERY, GALLERY), ["finding neighbours", "comparing neighbours"]),
    "topk": (lambda: rerank(QUERY, GALLERY, topk=3)[0], ["finding neighbours", "comparing neighbours"]),
    "gnn": (lambda: rerank(QUERY, GALLERY, method="gnn"), ["finding neighbours", "comparing neighbours"]),
    "reference": (
        lambda: rerank(QUERY, GALLERY, precision="reference"),
        ["finding neighbours", "weighing neighbours", "comparing neighbours"],
    ),
    "protocol": (
        lambda: protocols.regdb(QUERY, GALLERY, *IDS, rerank={}).trials[0].ap,
        ["re-ranking galleries", "finding neighbours", "comparing neighbours", "ranking"],
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_step_is_seen(call):
    run, names = CALLS[call]
    seen = {}

    def wrap(steps, name):
        seen[name] = len(steps), 0
        for step in steps:
            yield step
            seen[name] = seen[name][0], seen[name][1] + 1

    with vifast.use_progress(wrap):
        found = run()
    assert list(seen) == names
    assert all(total == done > 0 for total, done in seen.values())
    seen.clear()
    torch.testing.assert_close(run(), found, rtol=0, atol=0, equal_nan=True)
    assert not seen


def test_neighbours_have_a_step_for_every_tile_of_pairs():
    lengths = []
    with vifast.use_progress(lambda steps, name: lengths.append(len(steps)) or steps):
        rerank(QUERY, GALLERY)
        rerank(QUERY, GALLERY, queries_only=True)
    assert lengths == [1 + 2 + 3, 1, 1 + 2, 1]  # tiles of 512 x 512: queries, across, and half of the gallery's


def test_an_error_or_an_interrupt_passes_through():
    class Stopped(BaseException):
        pass

    def wrap(steps, name):
        for step in steps:
            yield step
            raise Stopped

    with pytest.raises(Stopped), vifast.use_progress(wrap):
        rerank(QUERY, GALLERY)
    rerank(QUERY, GALLERY)  # and nothing is left behind
