"""Pictures: grids of images, points and densities of the plane.

Matplotlib and PIL are imported when used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "density_figure",
    "image_grid",
    "latent_figure",
    "save_image",
    "save_samples",
    "scatter_figure",
]


def image_grid(images: Tensor, num_columns: int | None = None, min_side: int = 480) -> Tensor:
    """Images side by side, enlarged in whole steps so that small ones can be seen.

    Arguments:
        images: Images in [−1, 1], with shape `(B, C, H, W)`; values beyond are clipped.
        num_columns: Images per row; about the square root of B if None.
        min_side: Least width of the grid in pixels.

    Returns:
        Bytes, with shape `(C, H', W')`.
    """
    num, channels, height, width = images.shape
    columns = num_columns or max(1, round(num**0.5))
    rows = -(-num // columns)
    pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    tiles = pixels.new_full((rows * columns, channels, height + 1, width + 1), 255)
    tiles[:num, :, :height, :width] = pixels
    tiles = tiles.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4)  # C, rows, H, columns, W
    grid = tiles.reshape(channels, rows * (height + 1), columns * (width + 1))
    factor = max(1, -(-min_side // grid.shape[2]))
    return grid.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def save_image(image: Tensor, path: Path) -> None:
    """Write bytes `(C, H, W)` with 1 or 3 channels to a PNG file."""
    from PIL import Image

    array = image.permute(1, 2, 0).numpy()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(path)


def _figure(columns: int) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(4.2 * columns, 4.2), layout="constrained")


def scatter_figure(points: Tensor) -> "Figure":
    """Points of the plane, `(B, 2)`."""
    figure = _figure(1)
    axes = figure.add_subplot(aspect="equal")
    x, y = points.double().cpu().T.numpy()
    axes.scatter(x, y, s=3, alpha=0.5, linewidths=0)
    return figure


def density_figure(
    densities: dict[str, Tensor], samples: Tensor, bounds: tuple[tuple[float, float], ...]
) -> "Figure":
    """Densities of the plane as heat maps on one color scale, and samples beside them.

    Arguments:
        densities: Title to log densities on the cells of a square grid, each `(R²,)`.
        samples: Points, with shape `(N, 2)`.
        bounds: The box, `((x_low, x_high), (y_low, y_high))`.
    """
    figure = _figure(len(densities) + 1)
    extent = (*bounds[0], *bounds[1])
    top = max(float(log_prob.exp().max()) for log_prob in densities.values())
    for i, (title, log_prob) in enumerate(densities.items()):
        side = round(len(log_prob) ** 0.5)
        values = log_prob.exp().view(side, side).T.cpu().numpy()
        axes = figure.add_subplot(1, len(densities) + 1, i + 1, title=title)
        axes.imshow(values, origin="lower", extent=extent, vmin=0, vmax=top, cmap="magma")
    axes = figure.add_subplot(1, len(densities) + 1, len(densities) + 1, title="samples")
    x, y = samples.double().cpu().T.numpy()
    axes.scatter(x, y, s=2, alpha=0.5, linewidths=0)
    axes.set(xlim=bounds[0], ylim=bounds[1], aspect="equal")
    return figure


def latent_figure(
    posterior: Tensor, prior: Tensor, labels: Tensor, values: Sequence[str] = ()
) -> "Figure":
    """Latents of data, by label, and of the prior, in the plane of the data's principal axes.

    Both parts have the same axes and scale.

    Arguments:
        posterior: Latents of data, `(N, D)`.
        prior: Draws of the prior, `(M, D)`.
        labels: int64 `(N,)`; points labeled −1 are gray.
        values: Names of the labels' values; without them all points have one color.
    """
    posterior, prior = posterior.double().cpu(), prior.double().cpu()
    center = posterior.mean(0)
    _, _, axes_of = torch.linalg.svd(posterior - center, full_matrices=False)
    plane = [(z - center) @ axes_of[:2].T for z in (posterior, prior)]
    plane = [torch.nn.functional.pad(z, (0, 2 - z.shape[1])) for z in plane]  # of one dimension
    reach = 1.05 * float(torch.cat(plane).abs().max())
    figure = _figure(2)
    for i, (title, z) in enumerate(zip(("data", "prior"), plane, strict=True)):
        axes = figure.add_subplot(1, 2, i + 1, title=title, aspect="equal")
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
        if i == 0 and values:
            x, y = z[labels < 0].T.numpy()
            axes.scatter(x, y, s=4, alpha=0.6, linewidths=0, color="gray")
            for value, name in enumerate(values):
                x, y = z[labels == value].T.numpy()
                axes.scatter(x, y, s=4, alpha=0.6, linewidths=0, label=name)
            if len(values) <= 12:
                axes.legend(fontsize="x-small", markerscale=2, loc="upper right")
        else:
            x, y = z.T.numpy()
            axes.scatter(x, y, s=4, alpha=0.6, linewidths=0, color="gray")
    return figure


def save_samples(samples: Tensor, path: Path) -> None:
    """Write samples as what they are: a grid of images, a scatter of points, or a tensor in `.pt`.

    Raises:
        ValueError: If the suffix and the samples do not go together.
    """
    if path.suffix == ".pt":
        torch.save(samples, path)
    elif path.suffix == ".png" and samples.dim() == 4 and samples.shape[1] in (1, 3):
        save_image(image_grid(samples), path)
    elif path.suffix == ".png" and samples.is_floating_point() and samples.shape[1:] == (2,):
        scatter_figure(samples).savefig(path)
    elif path.suffix == ".txt" and not samples.is_floating_point():
        lines = (" ".join(map(str, row)) for row in samples.tolist())
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        raise ValueError(
            f"samples of shape {tuple(samples.shape)} cannot be written to {path.name}: images and "
            "points go to .png, tokens to .txt, anything to .pt."
        )
