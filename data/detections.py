"""Hand detections of a folder's pictures, made once by the small detector and kept beside them.

The file is named after the detector's weights, so another detector never reads it. Run `python -m data.detections FOLDER` to fill it
ahead of a training run; it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pose_tools.detect import THRESHOLDS, TOKEN_WIDTH, detection_tokens, sort_detections
from pose_tools.files import atomic_path
from pose_tools.image_io import read_image

logger = logging.getLogger(__name__)

BATCH = 32
SAVE_SECONDS = 120


def cached_detections(
    folder: str | Path, pictures: Sequence[Path], *, detector: str | Path | None = None, threshold: float = THRESHOLDS["small"]
) -> Mapping[str, np.ndarray]:
    """Detection tokens of `pictures`, as `pose_tools.detect.detection_tokens` makes them: {path relative to `folder`: (2, 11) float32}.

    `folder` is the data set's folder (or a file in it). `detector`: the small detector's folder, None is the shipped one.
    `threshold`: least score of a hand, the default of `detect_hands`. Raises BackendMissing when the detector is not there.
    """
    from pose_tools.small_detector import load_small_detector

    folder = Path(folder).absolute()
    model = load_small_detector(detector)
    file = cache_file(folder, "detections", detector, threshold)
    names = [os.path.relpath(picture, folder) for picture in pictures]
    known = _read(file)
    missing = [name for name in dict.fromkeys(names) if name not in known]
    if not missing:
        return {name: known[name] for name in names}
    logger.info("detecting hands in %d pictures of %s", len(missing), folder)
    saved = time.monotonic()
    for first in tqdm(range(0, len(missing), BATCH), unit="batch", desc="hands", mininterval=2):
        batch = missing[first : first + BATCH]
        found = model.detect_batch([read_image(folder / name) for name in batch], least=threshold)
        known.update({name: detection_tokens(sort_detections(hands)) for name, hands in zip(batch, found, strict=True)})
        if time.monotonic() - saved > SAVE_SECONDS:
            _write(file, known)
            saved = time.monotonic()
    _write(file, known)
    return {name: known[name] for name in names}


def known_detections(
    folder: str | Path, *, detector: str | Path | None = None, threshold: float = THRESHOLDS["small"]
) -> dict[str, np.ndarray]:
    """What was kept of a data set's folder so far; see `cached_detections`. Raises BackendMissing when the detector is not there."""
    from pose_tools.small_detector import load_small_detector

    load_small_detector(detector)
    return _read(cache_file(Path(folder).absolute(), "detections", detector, threshold))


def cache_file(folder: Path, name: str, detector: str | Path | None, settings: object) -> Path:
    """Where `name` is kept of a data set's `folder` (or of the folder of a file): named after the detector's weights and the `settings`."""
    from pose_tools.small_detector import DEFAULT_FOLDER

    weights = Path(detector if detector is not None else DEFAULT_FOLDER) / "model.safetensors"
    identity = hashlib.sha256(weights.read_bytes() + repr(settings).encode()).hexdigest()[:12]
    return (folder if folder.is_dir() else folder.parent) / f"{name}-{identity}.npz"


def _read(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        return {}
    with np.load(file, allow_pickle=False) as arrays:
        return dict(zip(arrays["pictures"].tolist(), arrays["tokens"], strict=True))


def _write(file: Path, known: Mapping[str, np.ndarray]) -> None:
    tokens = np.stack(list(known.values())) if known else np.zeros((0, 2, TOKEN_WIDTH), np.float32)
    with atomic_path(file) as temporary:
        with open(temporary, "wb") as stream:
            np.savez_compressed(stream, pictures=np.array(list(known)), tokens=tokens)


def main() -> None:
    from data.groups import open_groups

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a folder of synthetic scenes")
    parser.add_argument("--detector", help="folder of a small detector (default: the shipped one)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    found = cached_detections(options.folder, open_groups("synthetic_referral", options.folder).pictures(), detector=options.detector)
    logger.info("%d pictures have their detections", len(found))


if __name__ == "__main__":
    main()
