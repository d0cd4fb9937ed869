"""The synthetic world as a DexYCB folder: recordings of two frames, one with a hand and a plain one without.

The splits of the world are those of the setup s1: train fills subjects that it trains on, val the seventh subject, test the eighth and
ninth. Every recording has the shape of its own hand.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from data.dexycb import SERIALS, SIZE
from data.synthetic import factors, hands, journal, scenes
from data.synthetic.labelled_hands import LabelledHand, encoded, hand_picture
from pose_tools.files import write_text

FIRST = 60_000
SUBJECTS: dict[factors.Split, tuple[int, ...]] = {"train": (1, 2, 3, 4, 5, 6, 10), "val": (7,), "test": (8, 9)}
FOCAL = 615.0


def write_dexycb(
    folder: str | Path, split: factors.Split, seed: int, count: int, workers: int = 1, *, size: tuple[int, int] = SIZE
) -> Iterator[int]:
    """Brings a split to `count` recordings; yields how many there are."""
    folder, split = Path(folder), factors.check_split(split)
    settings = {"kind": "dexycb", "split": split, "seed": seed, "size": list(size), **scenes.world_version()}
    for serial in SERIALS:
        colour = {"fx": FOCAL, "fy": FOCAL, "ppx": SIZE[0] / 2, "ppy": SIZE[1] / 2}
        write_text(folder / "calibration" / "intrinsics" / f"{serial}_{SIZE[0]}x{SIZE[1]}.yml", yaml.safe_dump({"color": colour}))
    write = partial(_write_recording, folder, split, seed, size)
    yield from journal.fill(folder, f"recordings-{split}.jsonl", f"manifest-{split}.json", settings, write, count, workers)


def hand_of(split: factors.Split, seed: int, index: int, size: tuple[int, int]) -> tuple[np.ndarray, LabelledHand]:
    """Picture 640 x 480 and hand of recording `index`: the truth, by the one camera matrix that all of them have."""
    pictured = hand_picture(seed, split, FIRST + index, size, tips="manopth")
    # All recordings of a serial share its intrinsics: the picture is warped as if that camera had taken it.
    camera = np.array([[FOCAL, 0, SIZE[0] / 2], [0, FOCAL, SIZE[1] / 2], [0, 0, 1.0]])
    import cv2

    # Ours count from a pixel's corner, OpenCV's from its centre.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    warp = np.linalg.inv(half) @ camera @ np.linalg.inv(pictured.intrinsics) @ half
    return cv2.warpPerspective(pictured.picture, warp, SIZE, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE), pictured.hands[0]


def _write_recording(folder: Path, split: factors.Split, seed: int, size: tuple[int, int], index: int) -> str:
    picture, hand = hand_of(split, seed, index, size)
    empty = np.ascontiguousarray(np.broadcast_to(np.median(picture, axis=(0, 1)).astype(np.uint8), picture.shape))
    subject, serial = SUBJECTS[split][index % len(SUBJECTS[split])], SERIALS[index % len(SERIALS)]
    calibration = f"{split}-{index:06d}_{hand.side}"
    name = f"2020{700 + subject:04d}-subject-{subject:02d}/2020{700 + subject:04d}_{100_000 + index}"
    mano = hands.mano(hand.side)
    components = mano.hands_components.double().numpy()
    coefficients = np.linalg.solve(components.T, hand.hand_pose - mano.hands_mean.double().numpy())
    labels = {"pose_m": np.concatenate([hand.global_orient, coefficients, hand.transl])[None], "joint_3d": hand.joints[None]}
    nothing = {"pose_m": np.zeros((1, 51)), "joint_3d": np.full((1, 21, 3), -1.0)}
    meta = {
        "serials": [serial], "num_frames": 2, "mano_sides": [hand.side], "mano_calib": [calibration], "ycb_ids": [1], "ycb_grasp_ind": 0,
    }  # fmt: skip
    files = {
        f"{name}/meta.yml": yaml.safe_dump(meta).encode(),
        f"calibration/mano_{calibration}/mano.yml": yaml.safe_dump({"betas": hand.betas.tolist()}).encode(),
    }
    for frame, (image, content) in enumerate([(picture, labels), (empty, nothing)]):
        stream = io.BytesIO()
        np.savez(stream, **{key: value.astype(np.float32) for key, value in content.items()})  # type: ignore[arg-type]
        files[f"{name}/{serial}/color_{frame:06d}.jpg"] = encoded(image, ".jpg")
        files[f"{name}/{serial}/labels_{frame:06d}.npz"] = stream.getvalue()
    return journal.save(folder, {"id": f"{split}-{index:06d}", "recording": f"{name}/{serial}"}, files)
