"""What can be done to pictures: noise, blur, light, geometry.

Each function takes and gives (N, C, h, w) float32 in 0..1 on any device. Which strengths are tried is said in
`perturbations`, `corruptions` and `worst_case`. Random numbers are drawn on the CPU, one generator a picture, so that
every device and every batch size gets the same ones.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V2

from blurify.metrics.subject import middle

_SUBPIXELS = 16  # points along each side of a pixel, to find the disc's share of it


def generators(seed: int, indices: Tensor, purpose: str) -> list[torch.Generator]:
    """One source of random numbers for each picture: a function of the seed, its index and what they are for.

    Args:
        indices: (N,) which pictures of the whole set.
        purpose: sources of different purposes are independent of each other.
    """
    found = []
    for index in indices.tolist():
        digest = hashlib.blake2b(f"{seed} {index} {purpose}".encode(), digest_size=8).digest()
        found.append(torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1))
    return found


def gaussian_noise(pictures: Tensor, sigma: float, sources: Sequence[torch.Generator]) -> Tensor:
    """Add independent normal noise of standard deviation `sigma`, and clip to 0..1."""
    noise = torch.stack([torch.randn(pictures.shape[1:], generator=source) for source in sources])
    return (pictures + sigma * noise.to(pictures.device)).clamp(0, 1)


def shot_noise(pictures: Tensor, photons: float, sources: Sequence[torch.Generator]) -> Tensor:
    """Poisson noise: a value v becomes the count of a Poisson variable of mean `v * photons`, over `photons`."""
    rates = (pictures * photons).cpu()
    counts = torch.stack([torch.poisson(rate, generator=source) for rate, source in zip(rates, sources, strict=True)])
    return (counts.to(pictures.device) / photons).clamp(0, 1)


def impulse_noise(pictures: Tensor, share: float, sources: Sequence[torch.Generator]) -> Tensor:
    """Salt and pepper: of all values, `share` becomes 0 or 1, with equal chances."""
    draws = torch.stack([torch.rand(pictures.shape[1:], generator=source) for source in sources]).to(pictures.device)
    return torch.where(draws < share, (draws < share / 2).to(pictures), pictures)


def brighten(pictures: Tensor, amount: float) -> Tensor:
    """Add `amount` to the value of the HSV colour (the largest channel), and clip it to 0..1.

    Hue and saturation stay, so that all channels are scaled by the same factor. torchvision's `adjust_brightness` is
    another thing: it multiplies.
    """
    value = pictures.amax(1, keepdim=True)
    brighter = (value + amount).clamp(0, 1)
    # Black has no hue: it becomes grey.
    return torch.where(value > 0, pictures * (brighter / value.clamp(min=1e-12)), brighter)


def contrast(pictures: Tensor, factor: float) -> Tensor:
    """Draw each channel towards its own mean over the picture: `(x - mean) * factor + mean`.

    torchvision's `adjust_contrast` draws towards the mean of the grey picture instead.
    """
    mean = pictures.mean((-2, -1), keepdim=True)
    return ((pictures - mean) * factor + mean).clamp(0, 1)


def defocus(pictures: Tensor, radius: float, softness: float) -> Tensor:
    """Convolve with a disc of `radius` pixels whose edge is softened by a Gaussian of `softness` pixels."""
    kernel = _disc(radius, softness).to(pictures)
    reach = len(kernel) // 2
    flat = F.pad(pictures, (reach,) * 4, mode="reflect").flatten(0, 1)[:, None]
    return F.conv2d(flat, kernel[None, None]).reshape(pictures.shape).clamp(0, 1)


@functools.lru_cache(maxsize=16)
def _disc(radius: float, softness: float) -> Tensor:
    """The disc's share of each pixel, softened; sums to 1. A square, odd in size."""
    reach = math.ceil(radius) + 1
    side = 2 * reach + 1
    points = (torch.arange(side * _SUBPIXELS) + 0.5) / _SUBPIXELS - side / 2
    inside = (points[:, None] ** 2 + points**2 <= radius**2).float()
    shares = F.avg_pool2d(inside[None], _SUBPIXELS)
    shares = V2.gaussian_blur(shares, [3, 3], [softness, softness])[0]
    return shares / shares.sum()


def motion_blur(pictures: Tensor, radius: float, sigma: float, degrees: float) -> Tensor:
    """Blur along a line at `degrees`: the mean over `2 * ceil(radius) + 1` points, one pixel apart, from the pixel on.

    The weights are half a Gaussian of `sigma` pixels. That is ImageMagick's motion blur, with which the published sets
    were made (edge pixels repeated), save that points between pixels are interpolated, not rounded to the next pixel:
    small pictures would not see small changes of the angle.
    """
    weights = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(2 * math.ceil(radius) + 1)]
    angle = math.radians(degrees)
    taps: dict[tuple[int, int], float] = defaultdict(float)
    for k, weight in enumerate(weights):
        y, x = k * math.sin(angle), k * math.cos(angle)
        top, left = math.floor(y), math.floor(x)
        for row, near_y in ((top, top + 1 - y), (top + 1, y - top)):
            for column, near_x in ((left, left + 1 - x), (left + 1, x - left)):
                taps[row, column] += weight * near_y * near_x / sum(weights)
    height, width = pictures.shape[-2:]
    reach = len(weights)
    padded = F.pad(pictures, (reach,) * 4, mode="replicate")
    blurred = torch.zeros_like(pictures)
    for (dy, dx), share in taps.items():
        if share > 0:
            top, left = reach + dy, reach + dx
            blurred.add_(padded[..., top : top + height, left : left + width], alpha=share)
    return blurred


def pixelate(pictures: Tensor, share: float) -> Tensor:
    """Scale each side to `int(share * side)` and back, with box filters: a pixel becomes the mean of its block."""
    rows, columns = (_blocks(side, max(int(side * share), 1)).to(pictures) for side in pictures.shape[-2:])
    return rows @ pictures @ columns.T


def _blocks(side: int, count: int) -> Tensor:
    """(side, side): row i averages over the pixels of that one of `count` equal blocks that i's centre lies in.

    A centre right between two blocks counts for the first, and shows the second: what PIL's box filter does.
    """
    centre, width = (2 * torch.arange(side) + 1) * count, 2 * side
    counts_for, shows = -(-centre // width) - 1, centre // width
    member = (shows[:, None] == counts_for).float()
    return member / member.sum(1, keepdim=True)


def jpeg(pictures: Tensor, quality: int) -> Tensor:
    """Encode as JPEG and decode again, in 8 bits, on the CPU."""
    encoded = V2.jpeg((pictures * 255).round().to(torch.uint8).cpu(), quality)
    return encoded.to(pictures.device, pictures.dtype) / 255


def moved(
    canvases: Tensor,
    crop: tuple[int, int],
    *,
    dy: float = 0,
    dx: float = 0,
    degrees: float = 0,
    scale: float = 1,
) -> Tensor:
    """Rotate and scale canvases around their middle, move them, and cut out the middle.

    Pixels come from the canvas as long as it reaches; beyond it all is black. Bilinear; a move by whole pixels alone is
    exact.

    Args:
        canvases: (N, C, H, W).
        crop: (h, w) of the result.
        dy, dx: pixels down and to the right.
        degrees: clockwise.
        scale: above 1 enlarges.
    """
    exact = degrees == 0 and scale == 1 and dy == int(dy) and dx == int(dx)
    mode = InterpolationMode.NEAREST if exact else InterpolationMode.BILINEAR
    placed = V2.affine(canvases, degrees, [dx, dy], scale, [0.0, 0.0], interpolation=mode)
    return middle(placed, crop)


def tilted(canvases: Tensor, crop: tuple[int, int], degrees: float) -> Tensor:
    """Turn the canvas by `degrees` about its vertical, then its horizontal middle line, and cut out the middle.

    It is seen in perspective from as far as its diagonal is long; 0 degrees changes nothing. Beyond the canvas all is
    black.
    """
    height, width = canvases.shape[-2:]
    distance = math.hypot(height, width)
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    # A point (x, y, 0) of the canvas goes to rows 0 and 1 of turned @ (x, y), its depth is row 2 beyond `distance`.
    turned = [[cos, 0.0], [-sin * sin, cos], [sin * cos, sin]]
    project = torch.tensor(
        [[distance * a, distance * b, 0.0] for a, b in turned[:2]] + [[*turned[2], distance]], dtype=torch.float64
    )
    corner = torch.tensor([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]], dtype=torch.float64)
    backward = corner @ torch.linalg.inv(project) @ torch.linalg.inv(corner)
    coefficients = (backward / backward[2, 2]).flatten()[:8].tolist()
    return middle(V2.perspective(canvases, None, None, coefficients=coefficients), crop)
