import torch

from vifast.nn import BNNeck


def test_shift_stays_zero_while_scale_learns():
    torch.manual_seed(0)
    neck = BNNeck(6)
    optimizer = torch.optim.SGD([p for p in neck.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        neck(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
    assert torch.equal(neck.bias, torch.zeros(6))
    assert not torch.equal(neck.weight, torch.ones(6))


def test_names_are_batch_norms():
    assert set(BNNeck(6).state_dict()) == set(torch.nn.BatchNorm1d(6).state_dict())
