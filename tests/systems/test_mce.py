import dataclasses

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from vifast.data.draws import channels
from vifast.systems.mce import MCE, MCEOptions
from vifast.testing import assert_close_to_oracle

TINY = MCEOptions(backbone="resnet_tiny", backbone_width=4, non_local=(0, 0, 1, 0))


@pytest.fixture
def mce():
    torch.manual_seed(0)
    made = MCE.build(TINY, num_classes=5)
    made.objective.memory.fill(torch.randn(3, 5, made.network.out_channels))
    return made


@pytest.fixture
def batch():
    """Two infrared and two visible images of each of three identities, mixed up."""
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(12, generator=generator)
    image = torch.randn(12, 3, 48, 24, generator=generator)
    label, modality = torch.tensor([4, 0, 2]).repeat_interleave(4)[order], torch.tensor([1, 0]).repeat(6)[order]
    auxiliary = image[modality == 0].flip(1)
    return {"image": image, "label": label, "modality": modality, "auxiliary": auxiliary}


def test_published_network():
    with torch.device("meta"):
        mce = MCE.build(MCEOptions(), num_classes=395)
    assert sum(p.numel() for p in mce.parameters()) == 23_508_032 + 28_687 + 1 + 2 * 2048
    assert sum(p.numel() for p in mce.parameters() if p.requires_grad) == 23_508_032 + 28_687 + 1 + 2048
    assert {name for name, _ in mce.named_children()} == {"network", "objective"}
    assert mce.objective.memory.live.shape == (4, 395, 2048)


def test_streams_are_forwarded_together_and_their_rows_aligned(mce, batch):
    seen, rows = [], []
    mce.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    mce.objective.register_forward_pre_hook(lambda module, args: rows.append(args))
    mce(batch)
    (images,), ((feat, labels),) = seen, rows
    assert images.shape == (18, 3, 48, 24)
    assert labels.tolist() == [0, 0, 2, 2, 4, 4]
    assert_close(feat.norm(dim=2), torch.ones(3, 6))
    visible, infrared, auxiliary = images.chunk(3)
    place = {tuple(image.flatten()[:5].tolist()): i for i, image in enumerate(batch["image"])}
    for stream, modality in ((visible, 0), (infrared, 1)):
        at = [place[tuple(image.flatten()[:5].tolist())] for image in stream]
        assert batch["modality"][at].tolist() == [modality] * 6
        assert torch.equal(batch["label"][at], labels)
    assert torch.equal(auxiliary, visible.flip(1))


def test_every_trainable_parameter_gets_a_gradient(mce, batch):
    torch.nn.init.normal_(mce.network.non_local["3_0"].norm.weight)
    mce(batch)["loss"].backward()
    assert [name for name, p in mce.named_parameters() if p.requires_grad and p.grad is None] == []


def test_memories_move_once_a_step_after_its_losses(mce, batch):
    memory, rows = mce.objective.memory, []
    mce.objective.register_forward_pre_hook(lambda module, args: rows.append([x.detach() for x in args]))
    before = memory.live.clone()
    mce(batch)["loss"].backward()
    mce({name: value.flip(0) if name == "auxiliary" else value for name, value in batch.items()})["loss"].backward()
    assert torch.equal(memory.live, before)
    mce.end_step()
    feat, labels = torch.cat([feat for feat, _ in rows], 1), torch.cat([labels for _, labels in rows])
    for k in range(5):
        own = feat[:, labels == k]
        if own.size(1) == 0:
            assert torch.equal(memory.live[:, k], before[:, k])
            continue
        assert_close(memory.live[:3, k], normalize(0.25 * before[:3, k] + 0.75 * own.mean(1), dim=1))
        every = own.flatten(0, 1)
        hardest = every[(every @ before[3, k]).argmin()]
        assert_close(memory.live[3, k], normalize(0.1 * before[3, k] + 0.9 * hardest, dim=0))
    assert torch.equal(memory.anchors[:3], before[:3])
    mce(batch)["loss"].backward()
    mce.end_step()
    assert mce._seen == []


def test_compiled_network_leaves_the_memories_to_the_step(mce, batch):
    steps = []
    before = {name: value.clone() for name, value in mce.state_dict().items()}
    for compiled in (False, True):
        mce.load_state_dict(before)
        if compiled:
            for module in mce.backbones():
                module.compile(backend="aot_eager", fullgraph=True)
        loss = mce(batch)["loss"]
        loss.backward()
        mce.end_step()
        steps.append((loss.detach(), mce.objective.memory.live.clone()))
    for eager, compiled in zip(*steps, strict=True):
        assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


class Images:
    """`TrainingImages` of a few images, embedded in parts."""

    seed, dataset = 3, "SYSU-MM01"

    def __init__(self, images, labels, modality):
        self.images, self.labels, self.modality = images, labels, modality

    def features(self, embed):
        rows = torch.arange(len(self.images)).split(4)
        parts = [{"image": self.images[r], "index": r, "modality": self.modality[r]} for r in rows]
        with torch.inference_mode():
            return torch.cat([embed(part) for part in parts]).clone()


def test_memories_are_filled_with_mean_features_of_the_plain_images(mce):
    images = torch.randn(10, 3, 48, 24)
    labels, modality = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 7, -1]), torch.tensor([0, 1, 0, 0, 1, 1, 0, 1, 0, 1])
    mce.eval()
    mce.start_epoch(4, Images(images, labels, modality))
    drawn = channels(torch.arange(10).numpy(), seed=3, epoch=4)
    shown = torch.stack([image[c].expand(3, -1, -1) for image, c in zip(images, drawn, strict=True)])
    with torch.no_grad():
        plain, auxiliary = mce.network(images), mce.network(shown)
    memory = mce.objective.memory.live
    for k in range(3):
        own = [modality.eq(m) & labels.eq(k) for m in (0, 1)]
        wanted = [normalize(x.mean(0), dim=0) for x in (plain[own[0]], plain[own[1]], auxiliary[own[0]])]
        assert_close(memory[:3, k], torch.stack(wanted), rtol=1e-4, atol=1e-5)
        assert_close(memory[3, k], torch.stack(wanted).mean(0), rtol=1e-4, atol=1e-5)
    assert not memory[:, 3:].any()
    assert torch.equal(memory, mce.objective.memory.anchors)


def test_channels_are_a_function_of_seed_epoch_and_image():
    index = torch.arange(3000).numpy()
    one = channels(index, seed=1, epoch=2)
    assert (channels(index[::-1].copy(), seed=1, epoch=2)[::-1] == one).all()
    assert set(one.tolist()) == {0, 1, 2}
    assert abs(torch.from_numpy(one).bincount() - 1000).max() < 100
    for other in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}):
        assert 0.2 < (channels(index, **other) == one).mean() < 0.5


def test_float64_is_the_oracle_of_float32(mce, batch):
    wide = MCE.build(TINY, num_classes=5).double()
    wide.load_state_dict(mce.state_dict())
    parts = mce(batch)
    wanted = wide({name: value.double() if value.is_floating_point() else value for name, value in batch.items()})
    assert_close_to_oracle(parts["center"], wanted["center"], length=32)
    assert_close(parts["loss"].double(), wanted["loss"], rtol=1e-4, atol=0)  # of logits that a temperature scales by 20


def test_batches_that_do_not_fit_are_named(mce, batch):
    with pytest.raises(ValueError, match="batch: expected auxiliary images, see make_loader"):
        mce({name: value for name, value in batch.items() if name != "auxiliary"})
    with pytest.raises(ValueError, match="batch: expected as many infrared images as visible, 5, of 12"):
        mce({**batch, "auxiliary": batch["auxiliary"][:5]})


def test_options_reach_the_objective():
    given = {"temperature": 0.1, "margin": 0.2, "auxiliary_weight": 0.5, "kl_weight": 0.0}
    mce = MCE.build(dataclasses.replace(TINY, **given, keep=0.5, keep_global=0.6), num_classes=2)
    assert {name: getattr(mce.objective, name) for name in given} == given
    assert (mce.objective.memory.keep, mce.objective.memory.keep_global) == (0.5, 0.6)
