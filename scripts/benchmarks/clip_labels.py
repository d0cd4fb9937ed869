"""How far the label maker's future points lie from the truth, on videos of the synthetic world whose camera turns.

    bench.py clip-labels --videos 24          the small detector, H.264 files, one clip each

Errors are in pixels of the last observed frame (256 high). "No homographies" are the same points where each frame saw them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.clip_labels import LabelSettings, label_window
from data.clip_windows import sliding
from data.synthetic.clip_videos import RATE, Filming, make_video
from pose_tools.camera_motion import move
from pose_tools.video import write_video

SIDE = 256


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="bench.py clip-labels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args(arguments)
    rows: dict[str, list[float]] = {"future points": [], "the same, no homographies": [], "camera alone": []}
    points = unknown = invented = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in tqdm(range(options.videos), unit="video", disable=None):
            filming = make_video(options.seed, "test", number, (SIDE, SIDE))
            path = Path(folder) / f"v{number}.mp4"
            write_video(path, filming.frames, RATE)
            record, _ = label_window(sliding(path, path.stem, "P01", 1.0)[0], LabelSettings(SIDE))
            path.unlink()
            for hand in range(2):
                known, truth = np.array(record["known"][hand]), filming.future[hand]
                if np.isnan(truth).any():
                    invented += int(known.sum())
                    continue
                points, unknown = points + len(known), unknown + int((~known).sum())
                found = np.array([[np.nan] * 2 if p is None else p for p in record["points"][hand]])[known]
                seen = np.array([move(p, np.linalg.inv(h)) for p, h in zip(found, _homographies(record)[known], strict=True)])
                rows["future points"] += np.linalg.norm(found - truth[known], axis=-1).tolist()
                rows["the same, no homographies"] += np.linalg.norm(seen.reshape(-1, 2) - truth[known], axis=-1).tolist()
            rows["camera alone"] += _camera_errors(record, filming)
    print(f"{options.videos} videos, {points} points of hands that are there: {unknown} unknown; {invented} points of hands that are not")
    print("| error, pixels of 256 | median | 90 % | 99 % |\n|---|---|---|---|")
    for name, errors in rows.items():
        print(f"| {name} | " + " | ".join(f"{np.percentile(errors, share):.2f}" for share in (50, 90, 99)) + " |")


def _homographies(record: dict) -> np.ndarray:
    return np.array([np.full((3, 3), np.nan) if h is None else h for h in record["homographies"]])


def _camera_errors(record: dict, filming: Filming) -> list[float]:
    """Of a grid's points in every later frame that has a homography."""
    grid = np.stack(np.meshgrid(*[np.linspace(0.15, 0.85, 3) * SIDE] * 2), -1).reshape(-1, 2)
    truth = filming.homographies[filming.last :]
    pairs = [(h, t) for h, t in zip(_homographies(record)[1:], truth[1:], strict=True) if np.isfinite(h).all()]
    return [float(np.linalg.norm(move(grid, h) - move(grid, t), axis=-1).mean()) for h, t in pairs]
