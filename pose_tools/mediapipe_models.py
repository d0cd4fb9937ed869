"""MediaPipe's palm and hand landmark networks (Apache-2.0): where they are kept, how they get there, how they run.

They are two files inside the wheel `mediapipe==0.10.21`. Only these are used: the package itself is never installed and never
imported, its wheel is a zip file to us, the same one on every platform. `ai-edge-litert` (extra `hands`) runs them.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pose_tools.files import atomic_path
from pose_tools.tool_protocol import BackendMissing

logger = logging.getLogger(__name__)

REQUIREMENT = "mediapipe==0.10.21"
WHEEL_SHA256 = "05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3"
WHEEL_TAGS = ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311")
REMEDY = "python scripts/doctor.py --fetch-hand-models"


@dataclass(frozen=True)
class ModelFile:
    """A network inside the wheel: its member and sha256, and the shapes of its input and outputs, without the batch."""

    member: str
    sha256: str
    input_shape: tuple[int, ...]
    output_shapes: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        return Path(self.member).name


PALM = ModelFile(
    "mediapipe/modules/palm_detection/palm_detection_full.tflite",
    "1b14e9422c6ad006cde6581a46c8b90dd573c07ab7f3934b5589e7cea3f89a54",
    (192, 192, 3),
    ((2016, 18), (2016, 1)),
)
LANDMARK = ModelFile(
    "mediapipe/modules/hand_landmark/hand_landmark_full.tflite",
    "11c272b891e1a99ab034208e23937a8008388cf11ed2a9d776ed3d01d0ba00e3",
    (224, 224, 3),
    ((63,), (1,), (1,), (63,)),
)
FILES = (PALM, LANDMARK)


def cache_folder() -> Path:
    """Where this project keeps what it fetches for the user: $HANDVLM_CACHE, else the platform's cache folder."""
    if os.environ.get("HANDVLM_CACHE"):
        return Path(os.environ["HANDVLM_CACHE"]).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "handvlm"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "handvlm" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "handvlm"


def model_path(file: ModelFile) -> Path:
    """Where that network lies in the cache, whether it is there or not."""
    return cache_folder() / REQUIREMENT.replace("==", "-") / file.name


def why_missing() -> str | None:
    """What keeps the networks from running, with its remedy, or None if nothing does."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        return "MediaPipe's hand models need the package ai-edge-litert: pip install ai-edge-litert"
    missing = [file.name for file in FILES if not model_path(file).is_file()]
    if missing:
        return f"MediaPipe's hand models ({', '.join(missing)}) are not in {model_path(PALM).parent}: {REMEDY}"
    return None


def fetch_models(wheel: str | os.PathLike[str] | None = None) -> Path:
    """Unpacks the two networks into the cache, from the wheel that pip fetches, or from `wheel`, a copy of it; returns their folder.

    Does nothing if they are there already. Raises BackendMissing when the wheel cannot be had or is not the pinned one.
    """
    folder = model_path(PALM).parent
    if all(model_path(file).is_file() and _sha256(model_path(file)) == file.sha256 for file in FILES):
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(wheel) if wheel is not None else _download(Path(scratch))
        if not path.is_file() or _sha256(path) != WHEEL_SHA256:
            raise BackendMissing(f"{path} is not the wheel of {REQUIREMENT} with sha256 {WHEEL_SHA256}; nothing was unpacked")
        with zipfile.ZipFile(path) as archive:
            for file in FILES:
                with atomic_path(model_path(file)) as temporary, archive.open(file.member) as source, open(temporary, "wb") as target:
                    shutil.copyfileobj(source, target)
    _network.cache_clear()
    logger.info("unpacked %s into %s", ", ".join(file.name for file in FILES), folder)
    return folder


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", REQUIREMENT, "--no-deps", "--only-binary", ":all:", *WHEEL_TAGS]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    logger.info("fetching the wheel of %s (36 MB)", REQUIREMENT)
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = ["no wheel", *done.stderr.strip().splitlines()]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise BackendMissing(
            f"pip could not fetch {REQUIREMENT} ({reason[:200]}). With a network, run {REMEDY}; without one, "
            "copy the wheel from another machine and call pose_tools.mediapipe_models.fetch_models(wheel)"
        )
    return wheels[0]


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def network(file: ModelFile) -> Callable[[np.ndarray], list[np.ndarray]]:
    """The network as a function: RGB uint8 (h, w, 3) → its outputs, float32, without the batch. Loaded once; safe between threads.

    Raises BackendMissing with the remedy when the runtime or the file is missing, or the file is not the pinned one.
    """
    return _network(file, model_path(file))


@functools.lru_cache(maxsize=4)
def _network(file: ModelFile, path: Path) -> Callable[[np.ndarray], list[np.ndarray]]:
    reason = why_missing()
    if reason is not None:
        raise BackendMissing(reason)
    if _sha256(path) != file.sha256:
        raise BackendMissing(f"{path} is not the file of {REQUIREMENT}: delete it, then {REMEDY}")
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    source, outputs = interpreter.get_input_details()[0], interpreter.get_output_details()
    shapes = tuple(source["shape"][1:]), tuple(tuple(output["shape"][1:]) for output in outputs)
    if shapes != (file.input_shape, file.output_shapes):
        raise BackendMissing(f"{path}: input and outputs are {shapes}, expected {file.input_shape} and {file.output_shapes}")
    lock = threading.Lock()

    def run(image: np.ndarray) -> list[np.ndarray]:
        with lock:
            interpreter.set_tensor(source["index"], image[None].astype(np.float32) / 255)
            interpreter.invoke()
            return [interpreter.get_tensor(output["index"])[0] for output in outputs]

    return run
