"""A sheet of prepared clips: the last observed frame, and the labelled paths on it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from data.clip_labels import read_windows
from pose_tools.contact_sheet import contact_sheet
from pose_tools.image_io import read_image, write_image
from pose_tools.render import Canvas
from pose_tools.render_path import FramePaths, draw_paths
from pose_tools.sampling import evenly

LONGEST = 512


def write_sheet(out: str | Path, count: int = 12) -> Path:
    """Draws `count` of the clips of a prepared folder, evenly spread, into `sheet.jpg`. ValueError when there is none."""
    out = Path(out)
    used = [record for record in read_windows(out) if not record["left_out"]]
    chosen = [used[number] for number in evenly(len(used), count)]
    pictures, captions = [], []
    for record in chosen:
        frame = read_image(out / record["frames"][-1])
        points = np.array([[[np.nan] * 2 if point is None else point for point in hand] for hand in record["points"]], float)
        factor = LONGEST / max(frame.shape[:2])
        paths = FramePaths(points[:, 1:], np.array(record["known"], bool)[:, 1:], points[:, 0]).scaled(factor)
        size = (round(frame.shape[1] * factor), round(frame.shape[0] * factor))
        pictures.append(draw_paths(Canvas(cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC)), paths, labels=False).array())
        seconds = (int(record["frames"][-1][-14:-4]) - 1) / 60
        captions.append(f"{record['video_id']} at {seconds:.2f} s" + (f"\n{record['narration']}" if record["narration"] else ""))
    if not pictures:
        raise ValueError(f"{out}: no clip can be used, so there is nothing to draw")
    path = out / "sheet.jpg"
    write_image(path, contact_sheet(pictures, captions, title=f"{len(chosen)} of {len(used)} clips: the next second of both hands"))
    return path
