import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from vifast.models import ViT, create_vit, load_vit

SMALL = {"width": 24, "depth": 3, "heads": 3, "image_size": (64, 40), "modalities": 2}


def timm_layout(width, depth, tokens):
    """Names and shapes of timm's vit_base_patch16_224 (jx_vit_base_p16_224-80ecf9dd.pth), at any size."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, tokens, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 16, 16), "patch_embed.proj.bias": (width,)}
    for i in range(depth):
        for name, n_out, n_in in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes |= {f"blocks.{i}.{name}.weight": (n_out, n_in), f"blocks.{i}.{name}.bias": (n_out,)}
        shapes |= {f"blocks.{i}.{n}.{kind}": (width,) for n in ("norm1", "norm2") for kind in ("weight", "bias")}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    return shapes | {"head.weight": (1000, width), "head.bias": (1000,)}


def published(**sizes):
    return {name: torch.randn(shape) for name, shape in timm_layout(**sizes).items()}


@pytest.fixture
def vit():
    return ViT(**SMALL)


def written_out(vit, images, modality):
    """The class token's output, every block in full, with attention by its formula."""
    x = vit.patch_embed.proj(images).flatten(2).mT
    x = torch.cat((vit.cls_token.expand(len(x), -1, -1), x), 1) + vit.pos_embed + vit.modality_embed[modality][:, None]
    for block in vit.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, dim=2)
        heads = [part.unflatten(2, (block.attn.heads, -1)).transpose(1, 2) for part in (q, k, v)]
        scores = heads[0] @ heads[1].mT / heads[0].size(3) ** 0.5
        x = x + block.attn.proj((scores.softmax(3) @ heads[2]).transpose(1, 2).flatten(2))
        x = x + block.mlp.fc2(functional.gelu(block.mlp.fc1(block.norm2(x))))
    return vit.norm(x)[:, 0]


def test_the_published_names_and_shapes():
    with torch.device("meta"):
        vit = create_vit("vit_base", modalities=2)
    assert vit.grid == (21, 10)
    shapes = {name: tuple(value.shape) for name, value in vit.state_dict().items()}
    assert shapes.pop("modality_embed") == (2, 768)
    wanted = timm_layout(768, 12, 211)
    assert shapes == {name: shape for name, shape in wanted.items() if not name.startswith("head.")}
    assert {module.eps for module in vit.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-5}


def test_parameter_counts():
    """Spec ckda 2.3."""
    with torch.device("meta"):
        vit = create_vit("vit_base", modalities=2)

    def count(part):
        return part.numel() if isinstance(part, torch.Tensor) else sum(p.numel() for p in part.parameters())

    counts = [vit.patch_embed, vit.cls_token, vit.pos_embed, vit.blocks, vit.norm, vit.modality_embed]
    assert [count(part) for part in counts] == [590_592, 768, 162_048, 85_054_464, 1_536, 1_536]


def test_the_shortened_last_block_is_the_full_one_for_the_class_token(vit):
    vit.double().eval()
    images, modality = torch.randn(4, 3, 64, 40, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 1, 0])
    got, wanted = vit(images, modality), written_out(vit, images, modality)
    assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    leaves, cotangent = [images, *vit.parameters()], torch.randn_like(got)
    for one, other in zip(*(torch.autograd.grad(out, leaves, cotangent) for out in (got, wanted)), strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_every_token_is_moved_by_the_modality(vit):
    vit.eval()
    images = torch.randn(1, 3, 64, 40)
    visible, infrared = (vit.embedded(images, torch.tensor([m])) for m in (0, 1))
    moved = vit.modality_embed[1] - vit.modality_embed[0]
    assert_close(infrared - visible, moved.expand_as(visible))
    assert ViT(**SMALL | {"modalities": 0}).modality_embed is None


def test_stochastic_depth_rises_to_the_last_block():
    with torch.device("meta"):
        rates = [block.drop_path for block in create_vit("vit_base", drop_path=0.1).blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])
    assert ViT(**SMALL | {"depth": 1}, drop_path=0.1).blocks[0].drop_path == 0


def test_a_dropped_branch_is_dropped_for_the_whole_image_and_keeps_its_mean():
    block = ViT(**SMALL, drop_path=0.5).blocks[2].train()
    x, branch = torch.zeros(2000, 3, 24), torch.ones(2000, 3, 24)
    kept = block._sum(x, branch)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert_close(kept, kept[:, :1, :1].expand_as(kept))
    assert kept.mean() == pytest.approx(1, abs=0.1)
    assert torch.equal(block.eval()._sum(x, branch), branch)


def test_dropout_is_at_the_four_places_of_training_only(vit):
    vit = ViT(**SMALL, dropout=0.5)
    assert sum(isinstance(module, torch.nn.Dropout) for module in vit.modules()) == 1 + 2 * 3
    images, modality = torch.randn(2, 3, 64, 40), torch.tensor([0, 1])
    share = vit.train().embedded(images, modality).eq(0).float().mean()
    assert share == pytest.approx(0.5, abs=0.1)
    assert not torch.equal(vit(images, modality), vit(images, modality))
    assert torch.equal(vit.eval()(images, modality), vit(images, modality))


@pytest.mark.parametrize("oldest", [False, True])
def test_a_published_checkpoint(vit, tmp_path, oldest):
    file = published(width=24, depth=3, tokens=197)
    given = dict(file)
    if oldest:
        given["patch_embed.proj.weight"] = given["patch_embed.proj.weight"].flatten(1)
    torch.save(given, tmp_path / "vit.pth")
    modality = vit.modality_embed.clone()
    assert load_vit(vit, tmp_path / "vit.pth") == ["head.weight", "head.bias"]
    assert torch.equal(vit.modality_embed, modality)
    for name, value in vit.state_dict().items():
        if name not in ("modality_embed", "pos_embed"):
            assert torch.equal(value, file[name]), name


def test_the_backbone_of_a_trained_system(vit, tmp_path):
    theirs = {f"network.backbone.{name}": value + 1 for name, value in vit.state_dict().items()}
    torch.save({**theirs, "classifier.weight": torch.zeros(5, 64)}, tmp_path / "run.pth")
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    assert load_vit(vit, tmp_path / "run.pth") == []
    assert all(torch.equal(value, before[name] + 1) for name, value in vit.state_dict().items())


def test_positions_are_resized_as_rows_and_columns(tmp_path):
    """A position that grows with the row, and one that grows with the column, along 14 x 14 cells of 16 pixels."""
    vit = ViT(width=2, depth=1, heads=1, image_size=(256, 128))
    file = published(width=2, depth=1, tokens=197)
    row, column = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    file["pos_embed"][0, 1:] = torch.stack((row.flatten(), column.flatten()), 1)
    torch.save(file, tmp_path / "vit.pth")
    load_vit(vit, tmp_path / "vit.pth")
    assert torch.equal(vit.pos_embed[:, 0], file["pos_embed"][:, 0])

    def centers(n):  # of the new cells in units of the old ones, clamped at the border
        return ((torch.arange(float(n)) + 0.5) * 14 / n - 0.5).clamp(0, 13)

    grid = vit.pos_embed[0, 1:].unflatten(0, (21, 10))
    assert_close(grid[..., 0], centers(21)[:, None].expand(21, 10))
    assert_close(grid[..., 1], centers(10).expand(21, 10))


def test_what_does_not_fit_is_named_and_changes_nothing(vit, tmp_path):
    path = tmp_path / "vit.pth"
    file = published(width=24, depth=3, tokens=197)
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    cases = [
        (file | {"norm.bias": torch.zeros(25)}, r"wrong shape: norm\.bias \[25\] instead of \[24\]"),
        (file | {"pos_embed": torch.zeros(1, 200, 24)}, r"wrong shape: pos_embed \[1, 200, 24\]"),
        (file | {"blocks.3.norm1.bias": torch.zeros(24)}, r"unexpected: blocks\.3\.norm1\.bias"),
        ({name: value for name, value in file.items() if name != "cls_token"}, r"missing: cls_token"),
    ]
    for tensors, message in cases:
        torch.save(tensors, path)
        with pytest.raises(ValueError, match=rf"vit\.pth: does not fit this network; {message}"):
            load_vit(vit, path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"vit\.pth: damaged"):
        load_vit(vit, path)
    with pytest.raises(FileNotFoundError):
        load_vit(vit, tmp_path / "absent.pth")
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "heads: expected a divisor of width 24, got 5"),
        ({"depth": 0}, "depth: expected an integer >= 1, got 0"),
        ({"image_size": (8, 128)}, r"image_size: expected \(height, width\) of at least 16, got \(8, 128\)"),
        ({"dropout": 1.5}, "dropout: expected 0 to 1, got 1.5"),
        ({"drop_path": 1.0}, "drop_path: expected at least 0 and below 1, got 1.0"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ViT(**SMALL | options)
    with pytest.raises(ValueError, match="name: expected one of vit_base, vit_tiny_demo, got 'vit'"):
        create_vit("vit")


def test_a_wrong_argument_is_named(vit):
    with pytest.raises(ValueError, match=r"images: expected shape \[B, 3, 64, 40\], got \[2, 3, 64, 32\]"):
        vit(torch.zeros(2, 3, 64, 32), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"modality: expected shape \[2\]"):
        vit(torch.zeros(2, 3, 64, 40), torch.tensor([0]))
    with pytest.raises(TypeError, match="modality: expected an integer tensor"):
        vit(torch.zeros(2, 3, 64, 40))


def test_low_precision_and_one_graph(vit):
    vit.eval()
    images, modality = torch.randn(2, 3, 64, 40), torch.tensor([0, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = vit(images, modality)
    assert_close(low.float(), vit(images, modality), rtol=0.1, atol=0.1)
    compiled = torch.compile(vit, backend="aot_eager", fullgraph=True)
    assert_close(compiled(images, modality), vit(images, modality))
