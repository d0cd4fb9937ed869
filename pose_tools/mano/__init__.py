"""Images of hands → MANO parameters: regressors, their losses and training, and inverse kinematics.

    regressor = load_regressor()                          # the small one that is shipped
    prediction = regressor(crops)                         # (B, 3, S, S), 0..255 → HandPrediction
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pose_tools.mano.loading import load_regressor

__all__ = ["load_regressor"]


def __getattr__(name: str) -> Any:
    """Loads on first use: the networks bring transformers."""
    if name == "load_regressor":
        from pose_tools.mano.loading import load_regressor

        return load_regressor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
