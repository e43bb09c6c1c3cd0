"""What a stage of CKDA takes from the one before, and leaves to the next."""

import pytest
import torch
from ckda_cases import TINY, Images, batch, ckda, moved, write_stage
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from vifast.systems.ckda.merge import affinity_change, merge_
from vifast.systems.stage import FINAL, KNOWLEDGE, WEIGHTS

NAMES = {"prototypes_v", "prototypes_i"}


@pytest.fixture
def one(tmp_path):
    """A finished first stage."""
    write_stage(tmp_path / "one", moved(ckda()))
    return tmp_path / "one"


def weights(folder):
    return load_file(folder / FINAL / WEIGHTS)


def test_a_stage_starts_from_the_one_before(one):
    system, old = ckda(previous=str(one)), weights(one)
    for name, value in system.state_dict().items():
        assert torch.equal(value, old[name]) == (name != "classifier.weight"), name
    for name, value in system.teacher.module.state_dict().items():
        assert torch.equal(value, old[f"network.{name}"]), name
    knowledge = load_file(one / FINAL / KNOWLEDGE)
    assert torch.equal(system.prototypes_v, knowledge["prototypes_v"])
    assert torch.equal(system.prototypes_i, knowledge["prototypes_i"])


@pytest.mark.parametrize("classes", [3, 4])
def test_the_classifier_is_carried_on_request_and_if_it_fits(one, classes):
    """R8."""
    old = weights(one)["classifier.weight"]
    for preset, carried in (("clean", False), ("release", classes == 3)):
        system = moved(ckda(classes, preset=preset, previous=str(one)))
        assert torch.equal(ckda(classes, preset=preset, previous=str(one)).classifier.weight, old) == carried
        before = system.classifier.weight.clone()
        system.finish(Images(system))
        wanted = 0.7 * old + 0.3 * before if carried else before
        assert_close(system.classifier.weight, wanted)


@pytest.mark.parametrize(("share", "same_as"), [(0.0, "new"), (1.0, "old"), (0.7, None)])
def test_the_merge_is_a_share_of_the_old_weights(one, share, same_as):
    system, old = moved(ckda(previous=str(one), old_weight=share), seed=8), weights(one)
    new = {name: value.clone() for name, value in system.state_dict().items()}
    system.finish(Images(system))
    for name, value in system.state_dict().items():
        if name == "classifier.weight" or not value.is_floating_point():
            assert torch.equal(value, new[name]), name
        elif same_as is not None:
            assert torch.equal(value, {"new": new, "old": old}[same_as][name]), name
        else:
            assert_close(value, 0.7 * old[name] + 0.3 * new[name])


def test_counters_are_merged_on_request(one):
    """R9."""
    name = "network.neck.num_batches_tracked"
    old = weights(one)[name]
    for merged, wanted in ((False, old + 10), (True, old + 3)):
        system = moved(ckda(previous=str(one), merge_counters=merged))
        system.finish(Images(system))
        assert system.state_dict()[name] == wanted
        assert system.state_dict()[name].dtype == torch.int64


def test_without_a_merge_the_new_weights_stay(one):
    system = moved(ckda(previous=str(one), merge="off"))
    new = {name: value.clone() for name, value in system.state_dict().items()}
    system.finish(Images(system))
    assert all(torch.equal(value, new[name]) for name, value in system.state_dict().items())


def test_an_adaptive_merge_takes_more_of_the_old_weights_the_more_they_disagree(one):
    still = ckda(previous=str(one), merge="adaptive")
    before = {name: value.clone() for name, value in still.state_dict().items()}
    still.finish(Images(still))
    assert all(torch.equal(value, before[name]) for name, value in still.state_dict().items())
    system, old = moved(ckda(previous=str(one), merge="adaptive"), seed=8), weights(one)
    new = {name: value.clone() for name, value in system.state_dict().items()}
    features = {}
    for name, state in (("new", new), ("old", {**old, "classifier.weight": new["classifier.weight"]})):
        system.load_state_dict(state)
        features[name] = Images(system).features(system.embed)
    system.load_state_dict(new)
    affinities = [(100 * rows @ rows.T).softmax(1) for rows in features.values()]
    share = (affinities[0] - affinities[1]).abs().sum(1).mean().clamp(max=1)
    assert 0 < share < 1
    system.finish(Images(system))
    for name, value in system.state_dict().items():
        if value.is_floating_point() and name != "classifier.weight":
            assert_close(value, share * old[name] + (1 - share) * new[name])


def test_affinities_are_compared_in_blocks(monkeypatch):
    one, other = (torch.nn.functional.normalize(torch.randn(10, 4)) for _ in range(2))
    whole = affinity_change(one, other)
    monkeypatch.setattr("vifast.systems.ckda.merge.ROWS", 3)
    assert affinity_change(one, other) == pytest.approx(whole, rel=1e-6)
    assert affinity_change(one[:0], other[:0]) == 0
    assert affinity_change(torch.eye(4), torch.eye(4)[[0, 0, 0, 0]]) == 1


def test_merging_tensors():
    new = {"a": torch.tensor([1.0, 2.0]), "n": torch.tensor(7), "own": torch.tensor(5.0)}
    merge_(new, {"a": torch.tensor([3.0, 6.0], dtype=torch.float64), "n": torch.tensor(2)}, 0.25, counters=True)
    assert new["a"].tolist() == [1.5, 3.0]
    assert new["n"] == 5  # 5.75, cut
    assert new["own"] == 5


def test_prototypes_are_means_of_unit_features_of_the_merged_weights(one):
    system = moved(ckda(previous=str(one)), seed=8)
    images = Images(system)
    knowledge = system.finish(images)
    assert knowledge.keys() == NAMES
    feat = images.features(system.embed)
    assert_close(feat.norm(dim=1), torch.ones(len(feat)))
    for name, modality in (("prototypes_v", 0), ("prototypes_i", 1)):
        rows = [feat[(images.labels == k) & (images.modality == modality)].mean(0) for k in range(3)]
        assert_close(knowledge[name], torch.stack(rows))
        assert knowledge[name].dtype == torch.float32


def test_regdbs_infrared_prototypes_of_visible_images_are_a_choice():
    """R4, of RegDB alone."""
    system = moved(ckda()).eval()
    for way in ("infrared", "visible"):
        for dataset in ("RegDB", "LLCM"):
            chosen = ckda(regdb_ir_proto=way).eval()
            chosen.load_state_dict(system.state_dict())
            images = Images(chosen, dataset)
            found = chosen.finish(images)["prototypes_i"]
            seen, called = images.modality, images.modality
            if way == "visible" and dataset == "RegDB":
                seen, called = 1 - images.modality, torch.ones_like(images.modality)
            with torch.no_grad():
                feat = chosen.embed(batch(seed=5) | {"modality": called})
            rows = [feat[(images.labels == k) & (seen == 1)].mean(0) for k in range(3)]
            assert_close(found, torch.stack(rows))


def test_untrained_identities_among_the_images_have_prototypes():
    """R5; the data decide whether they are among them."""
    system = moved(ckda(2))
    assert system.finish(Images(system))["prototypes_v"].shape == (3, 64)


@pytest.mark.parametrize(("history", "count"), [("last", 3), ("all", 6)])
def test_prototypes_of_all_stages_are_a_choice(one, tmp_path, history, count):
    """R6."""
    two = tmp_path / "two"
    write_stage(two, moved(ckda(previous=str(one), proto_history=history)))
    system = ckda(previous=str(two))
    assert system.prototypes_v.shape == system.prototypes_i.shape == (count, 64)
    if history == "all":
        assert torch.equal(system.prototypes_v[:3], load_file(one / FINAL / KNOWLEDGE)["prototypes_v"])
    system.train()(batch())["loss"].backward()


def test_a_folder_that_is_no_finished_stage_is_one_clear_line(one, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^previous: expected the folder of a finished stage, .*nowhere/final"):
        ckda(previous=str(tmp_path / "nowhere"))
    (one / FINAL / KNOWLEDGE).rename(one / "moved")
    with pytest.raises(FileNotFoundError, match=rf"^previous: .* there is no {one}/final/knowledge.safetensors$"):
        ckda(previous=str(one))
    assert ckda(previous=str(one), terms=("ce", "triplet")).teacher is None  # needs none of it


@pytest.mark.parametrize("name", [WEIGHTS, KNOWLEDGE])
def test_a_damaged_file_is_named(one, name):
    path = one / FINAL / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{path}: damaged"):
        ckda(previous=str(one))


def test_another_network_is_one_clear_line(one):
    for options, message in (
        ({"image_size": (64, 64)}, r"wrong shape: network\.backbone\.pos_embed \[1, 16, 64\] instead of \[1, 26, 64\]"),
        ({"common": 0}, r"unexpected: network\.prompts\.common\."),
        ({"specific": 4}, r"wrong shape: network\.prompts\.specific\.0\.down\.weight"),
    ):
        with pytest.raises(ValueError, match=f"^previous: {one}/final/weights.safetensors: does not fit") as caught:
            ckda(previous=str(one), **options)
        assert caught.match(message)
        assert "\n" not in str(caught.value)
    path = one / FINAL / KNOWLEDGE
    for knowledge in ({"prototypes_v": torch.zeros(3, 64)}, dict.fromkeys(NAMES, torch.zeros(3, 32))):
        save_file({name: value.clone() for name, value in knowledge.items()}, path)
        words = rf"^previous: {path}: expected prototypes_v and prototypes_i \[K, 64\], got"
        with pytest.raises(ValueError, match=words):
            ckda(previous=str(one))


def test_image_size_is_of_the_patches_grid():
    assert ckda().network.backbone.grid == (5, 3)
    assert TINY["image_size"] == (64, 48)
