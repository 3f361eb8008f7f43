"""A soft punishment of long completions: Yu et al. 2025 (arXiv 2503.14476), section 3.4."""

from __future__ import annotations

from torch import Tensor


def overlong_penalty(lengths: Tensor, *, limit: int, cache: int) -> Tensor:
    """0 up to limit - cache tokens, then down in a line to -1 at `limit` and beyond (Yu et al. 2025, eq. 13).

    Args:
        lengths: (B,) tokens a completion.
        limit: L_max. cache: L_cache, over which the penalty grows (tokens).

    Returns:
        (B,) float32.
    """
    return ((limit - cache - lengths.float()) / cache).clamp(-1.0, 0.0)
