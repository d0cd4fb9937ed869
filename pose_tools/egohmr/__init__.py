"""EgoHMR: bodies of other people in a scanned room, from one egocentric picture (Zhang et al., ICCV 2023)."""

from __future__ import annotations

from pose_tools.egohmr.checkpoint import load_stage1, load_stage2, published_state_dict

__all__ = ["load_stage1", "load_stage2", "published_state_dict"]
