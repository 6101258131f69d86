"""The vital signs of an energy in training: what tells a run in health from one that is lost.

The contrast of an energy swings around zero in both. These figures have no scale of their own, or
stand beside what gives them one: a gap of energies beside their spread, the size of negatives and
of moves beside that of data.
"""

import torch
from torch import Tensor

__all__ = ["vital_signs"]


@torch.no_grad()
def vital_signs(
    x: Tensor,
    negative: Tensor,
    energy: Tensor,
    negative_energy: Tensor,
    start: Tensor | None = None,
) -> dict[str, Tensor]:
    """Scalars of one step, which a guard judges.

    `energy_gap`, E on the data minus E on the negatives; `energy_spread`, the standard deviation of
    E on either, where there are two rows or more; `data_scale` and `negative_scale`, the root mean
    squares of the numbers; and of chains `displacement`, the root mean square of their moves.

    Arguments:
        x: Data, or latents of data, with shape `(B, *event)`.
        negative: Negatives, with shape `(K, *event)`.
        energy: E of the data, with shape `(B,)`.
        negative_energy: E of the negatives, with shape `(K,)`.
        start: Where the chains of the negatives began; None where no chain ran.
    """
    signs = {
        "energy_gap": energy.mean() - negative_energy.mean(),
        "data_scale": x.square().mean().sqrt(),
        "negative_scale": negative.square().mean().sqrt(),
    }
    variances = [e.var(correction=0) for e in (energy, negative_energy) if len(e) > 1]
    if variances:  # one row has no spread
        signs["energy_spread"] = torch.stack(variances).mean().sqrt()
    if start is not None:
        signs["displacement"] = (negative - start).square().mean().sqrt()
    return signs
