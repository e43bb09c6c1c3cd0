"""What users have today for decoded images, as in ``rivals``: PyTorch on a batch, Pillow one image after the other."""

import numpy as np
import torch


def _gaussian(sigma, radius=10):
    weight = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=sigma.device) / sigma[:, None]).square())
    return weight / weight.sum(1, keepdim=True)


def blur_jitter(images, jittered, blurred, brightness, contrast, sigma):
    """Brightness, contrast and a 21 x 21 blur of some images of a batch, each step for all of them at once."""
    out = images.clone()
    x = (images[jittered].float() * brightness[:, None, None, None]).clamp(0, 255).floor()
    gray = (x * x.new_tensor([0.299, 0.587, 0.114])).sum(3).mean((1, 2)).round()[:, None, None, None]
    out[jittered] = (gray + contrast[:, None, None, None] * (x - gray)).clamp(0, 255).to(torch.uint8)
    _, h, w, _ = images.shape
    taps = _gaussian(sigma).repeat_interleave(3, 0)[:, None]
    x = images[blurred].permute(0, 3, 1, 2).reshape(1, -1, h, w).float()
    x = torch.nn.functional.pad(x, (10, 10, 10, 10), mode="reflect")
    for kernel in (taps[:, :, None], taps[..., None]):
        x = torch.nn.functional.conv2d(x, kernel, groups=len(taps))
    out[blurred] = x.round().to(torch.uint8).view(-1, 3, h, w).permute(0, 2, 3, 1)
    return out


def blur_jitter_pillow(images, jittered, blurred, brightness, contrast, sigma):
    """One image after the other: Pillow's ImageEnhance, and the depthwise convolution of torchvision's GaussianBlur."""
    from PIL import Image, ImageEnhance

    out = images.clone()
    for row, bright, contrasted in zip(jittered.tolist(), brightness.tolist(), contrast.tolist(), strict=True):
        image = ImageEnhance.Brightness(Image.fromarray(images[row].numpy())).enhance(bright)
        out[row] = torch.from_numpy(np.array(ImageEnhance.Contrast(image).enhance(contrasted)))
    for row, taps in zip(blurred.tolist(), _gaussian(sigma), strict=True):
        x = torch.nn.functional.pad(images[row].permute(2, 0, 1).float(), (10, 10, 10, 10), mode="reflect")
        kernel = torch.outer(taps, taps).expand(3, 1, 21, 21)
        out[row] = torch.nn.functional.conv2d(x[None], kernel, groups=3)[0].round().permute(1, 2, 0).to(torch.uint8)
    return out


def augment(images, r, constants):
    """Crop, flip, normalise, exchange channels and erase, each step for all images of a batch at once.

    ``r``: columns of the records; those with ``stage`` 2 erase before they exchange.
    """
    n, h, w, _ = images.shape
    y, x = torch.arange(h, device=images.device), torch.arange(w, device=images.device)
    padded = torch.nn.functional.pad(images, (0, 0, 10, 10, 10, 10), value=0)
    columns = torch.where(r["flip"][:, None] == 1, w - 1 - x, x) + r["dx"][:, None] + 10
    rows = y + r["dy"][:, None] + 10
    image = torch.arange(n, device=images.device)[:, None, None]
    cropped = padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    mean, std, fill = (images.new_tensor(v, dtype=torch.float32)[:, None, None] for v in constants)
    out = cropped.float().div(255).sub(mean).div(std)

    def inside(box):
        top, left, height, width = (r[f"{box}_{side}"][:, None] for side in ("top", "left", "height", "width"))
        return ((top <= y) & (y < top + height))[:, None, :, None] & ((left <= x) & (x < left + width))[:, None, None]

    late = (r["stage"] == 2)[:, None, None, None]
    out = torch.where(inside("erase") & late, fill, out)
    gray = (out * out.new_tensor([0.2989, 0.5870, 0.1140])[:, None, None]).sum(1, keepdim=True)
    source = r["red"][:, None, None, None].long().expand(n, 1, h, w)
    out = torch.where(inside("color"), torch.cat((out, gray), 1).gather(1, source), out)
    return torch.where(inside("erase") & ~late, fill, out)


def augment_pillow(images, r, constants):
    """One image after the other, by torchvision's transforms of Pillow images, then tensors, and their copies."""
    from PIL import Image, ImageOps

    mean, std, fill = (torch.tensor(v)[:, None, None] for v in constants)
    weights = torch.tensor([0.2989, 0.5870, 0.1140])[:, None, None]
    out = []
    for k, image in enumerate(images.numpy()):
        h, w, _ = image.shape
        top, left = 10 + r["dy"][k], 10 + r["dx"][k]
        padded = ImageOps.expand(Image.fromarray(image), 10, 0)
        shown = padded.crop((int(left), int(top), int(left) + w, int(top) + h))
        if r["flip"][k]:
            shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = torch.from_numpy(np.array(shown)).permute(2, 0, 1).contiguous().float().div(255)
        x = x.clone().sub_(mean).div_(std)
        boxes = [
            [int(r[f"{box}_{side}"][k]) for side in ("top", "left", "height", "width")] for box in ("color", "erase")
        ]
        color, erase = (x[:, top : top + h, left : left + w] for top, left, h, w in boxes)
        if r["stage"][k] == 2:
            erase.copy_(fill.expand_as(erase))
        color.copy_((color * weights).sum(0) if r["red"][k] == 3 else color[int(r["red"][k])].clone())
        if r["stage"][k] != 2:
            erase.copy_(fill.expand_as(erase))
        out.append(x)
    return torch.stack(out)
