"""The kernel intervals of the sum of scores that chapter 05 has chosen, as Tables 1 and 2 use them."""

from __future__ import annotations

import math

CHOSEN = ((0.03, 1.5, 5.0), (0.1, 1.0, 5.0), (0.316, 0.0, 1.5))  # λ, σ_lo/λ, σ_hi/λ: by the rule of chapter 05


def chosen_interval(bandwidth: float) -> tuple[float, float]:
    """The kernel interval at this λ: in units of λ linear in ln λ between the three that chapter 05 has chosen."""
    (left, *low), (right, *high) = CHOSEN[:2] if bandwidth < CHOSEN[1][0] else CHOSEN[1:]
    share = min(max(math.log(bandwidth / left) / math.log(right / left), 0.0), 1.0)
    lo, hi = (bandwidth * (a * (1 - share) + b * share) for a, b in zip(low, high, strict=True))
    return lo, hi
