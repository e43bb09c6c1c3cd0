"""CKDA's prompts by PyTorch's own layers, before they were fused: no host synchronisation, many passes."""

import torch
from torch.nn.functional import dropout, pixel_shuffle, pixel_unshuffle, relu


def prompts(images, modality, module):
    """With the parameters and running statistics of a ``vifast.nn.ModalityPrompts`` in training."""
    side, grid = module.cell, (images.size(2) // module.cell, images.size(3) // module.cell)
    cells = pixel_unshuffle(images, side).flatten(2).transpose(1, 2)  # [B, cells, channels * side**2]
    parts = [sum(_specific(part, cells, modality == m) for m, part in enumerate(module.specific))]
    parts.append(_common(module.common, cells, grid))
    images_of = (pixel_shuffle(part.transpose(1, 2).unflatten(2, grid), side) for part in parts)
    prompt = sum(dropout(image, module.dropout) for image in images_of)
    return images + prompt, prompt


def _specific(part, cells, own):
    """Linear, batch normalisation by the rows of one modality, linear; zero in the rows of the other."""
    own, norm, hidden = own[:, None, None], part.norm, part.down(cells)
    count = own.sum() * hidden.size(1)
    size = count.clamp(min=1)
    mean = torch.where(own, hidden, 0.0).sum((0, 1)) / size
    var = torch.where(own, hidden - mean, 0.0).square().sum((0, 1)) / size
    with torch.no_grad():
        share = norm.momentum * (count > 0)
        norm.running_mean.lerp_(mean, share)
        norm.running_var.lerp_(var * (size / (size - 1).clamp(min=1)), share)
        norm.num_batches_tracked += count > 0
    normed = (hidden - mean) * ((var + norm.eps).rsqrt() * norm.weight) + norm.bias
    return torch.where(own, part.up(normed), 0.0)


def _common(part, cells, grid):
    """Linear, the gated mixture of the map and its instance normalisation, linear."""
    hidden = part.down(cells).transpose(1, 2).unflatten(2, grid)
    normed, share = part.norm(hidden), part.gate_raw(hidden)
    mixed = share * hidden + (1 - share) * (part.gate_normed(normed) * normed)
    return part.up(relu(mixed).flatten(2).transpose(1, 2))
