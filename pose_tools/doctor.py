"""What is installed, what is missing, what each missing thing would enable, and what works without it.

Imports nothing heavy but torch, and that only to ask about GPUs: it has to run where half of the rest is broken.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ASSETS = Path(__file__).resolve().parents[1] / "demos" / "assets"
State = Literal["ok", "missing", "broken"]
SIGNS = {"ok": "✓", "missing": "·", "broken": "✗"}


@dataclass(frozen=True)
class Check:
    """One line of the report. `detail`: what was found; `remedy`: what to do, and what works without it."""

    name: str
    state: State
    detail: str
    remedy: str = ""


EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "train": (("peft", "deepspeed", "tensorboard"), "LoRA, ZeRO, training curves"),
    "quant": (("bitsandbytes",), "--load-in 8bit|4bit"),
    "demo": (("gradio", "matplotlib", "plotly"), "the browser demo, plots"),
    "hands": (("ai-edge-litert",), "MediaPipe's hand models on photographs"),
    "render": (("numba",), "a mesh renderer 30 times as fast"),
    "mining": (("faiss-cpu", "webdataset", "pyarrow"), "similar hands in millions of pictures"),
    "vision": (("torchvision",), "torchvision's transforms, with a CUDA build of torch only"),
    "flash": (("kernels",), "flash attention on a GPU"),
    "dev": (("diffusers", "pytest", "pytest-xdist", "pytest-timeout", "hypothesis", "ruff", "mypy"), "make test"),
}
"""Extra → its distributions and what they enable, as in pyproject.toml."""

CORE = (
    "torch",
    "transformers",
    "accelerate",
    "numpy",
    "scipy",
    "pillow",
    "opencv-python-headless",
    "av",
    "safetensors",
    "sentencepiece",
    "protobuf",
)
SMALL_WEIGHTS = {
    "vlm_small": ("the small vision-language model", "scripts/finetune.py with scripts/configs"),
    "hand_detector": ("the small hand detector", "scripts/train_detector.py"),
    "mano_small": ("the small hand pose regressor", "scripts/train_mano.py"),
    "egohmr_small": ("EgoHMR's two stages, bodies in a scanned room", "scripts/train_egohmr.py"),
    "simhand_small": ("the small hand encoder and its index of hands", "scripts/pretrain_simhand.py, scripts/build_hand_index.py"),
}


def version(distribution: str) -> str | None:
    """Installed version, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_line() -> str:
    """Which torch build this is, without importing it: "torch 2.13.0+cpu (CPU build), Python 3.11.7"."""
    spec = importlib.util.find_spec("torch")
    python = f"Python {platform.python_version()}"
    if spec is None or spec.origin is None:
        return f"torch is missing, {python}"
    facts = runpy.run_path(str(Path(spec.origin).parent / "version.py"))  # torch's own file of its build's facts
    build = f"CUDA {facts['cuda']} build" if facts.get("cuda") else f"ROCm {facts['hip']} build" if facts.get("hip") else "CPU build"
    return f"torch {version('torch')} ({build}), {python}"


def check_torch() -> list[Check]:
    """The build of torch and the GPUs it sees."""
    try:
        import torch
    except Exception as error:  # a broken install raises anything
        return [Check("torch", "broken", f"import torch: {type(error).__name__}: {error}", "make venv")]
    checks = [Check("torch", "ok", torch_line())]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            detail = (
                f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, compute capability {facts.major}.{facts.minor}, driver {_driver()}"
            )
            checks.append(Check(f"GPU {index}", "ok", detail))
    elif torch.version.cuda:
        remedy = "without: everything runs on the CPU. PyTorch's install selector has builds for older drivers"
        checks.append(
            Check("GPU", "broken", f"a CUDA {torch.version.cuda} build of torch, but no GPU answers (driver {_driver()})", remedy)
        )
    else:
        remedy = "without: everything runs on the CPU, training the small model takes about an hour. With a GPU: make run TORCH=cuda"
        checks.append(Check("GPU", "missing", "none that this torch build can use", remedy))
    return checks


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "none"
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0].strip()
    except (subprocess.SubprocessError, OSError):
        return "does not answer"


def check_packages() -> list[Check]:
    """The core, one line; then each extra: what it has, what it lacks, what it enables."""
    lacking = [name for name in CORE if version(name) is None]
    have = ", ".join(f"{name} {version(name)}" for name in CORE if version(name))
    checks = [Check("core", "broken" if lacking else "ok", have, f"missing: {', '.join(lacking)}; run make venv" if lacking else "")]
    for extra, (names, enables) in EXTRAS.items():
        missing = [name for name in names if version(name) is None]
        state: State = "missing" if missing else "ok"
        harmful = extra == "vision" and "CPU build" in torch_line()
        remedy = f"pip install -e '.[{extra}]'" if missing and not harmful else ""
        checks.append(Check(f"[{extra}]", state, enables + (f"; lacks {', '.join(missing)}" if missing else ""), remedy))
    if version("torchvision") and "CPU build" in torch_line():
        remedy = "pip uninstall torchvision; nothing here needs it"
        checks.append(
            Check(
                "torchvision", "broken", "its wheel needs a CUDA build of torch, and breaks transformers' image processors without", remedy
            )
        )
    return checks


def check_weights() -> list[Check]:
    """The small weights that belong to this repository."""
    checks = []
    for name, (what, how) in SMALL_WEIGHTS.items():
        folder = ASSETS / name
        size = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) if folder.is_dir() else 0
        detail = f"{what}, {size / 1e6:.1f} MB" if size else f"{what} is not in {folder}"
        checks.append(Check(name, "ok" if size else "missing", detail, "" if size else f"git checkout it, or train it: {how}"))
    return checks


def check_body_models(mano: Path | None, smpl: Path | None) -> list[Check]:
    """The licensed files, where their paths were given: are they there, and can they be read?"""
    checks = []
    for name, path in (("MANO", mano), ("SMPL", smpl)):
        without = "without: a stand-in of the same shape, made by this project, takes its place"
        if path is None:
            where = f"https://{name.lower()}.is.tue.mpg.de"
            checks.append(
                Check(name, "missing", f"licensed, never shipped; no path given (--{name.lower()} FILE)", f"get it at {where}; {without}")
            )
            continue
        from pose_tools.body_models import load

        try:
            load.load_mano(path) if name == "MANO" else load.load_smpl(path, load.named_gender(path) or "neutral")
            checks.append(Check(name, "ok", str(path)))
        except Exception as error:  # whatever is wrong with the file is what the user wants to read
            checks.append(Check(name, "broken", f"{path}: {error}", without))
    return checks


def check_hand_models(fetch: bool) -> list[Check]:
    """MediaPipe's hand models: in the cache, or fetched now if asked for."""
    from pose_tools import mediapipe_models
    from pose_tools.tool_protocol import BackendMissing

    if fetch:
        try:
            mediapipe_models.fetch_models()
        except (BackendMissing, OSError) as error:
            return [Check("MediaPipe", "broken", str(error), "try again where the package index can be reached")]
    lacking = mediapipe_models.why_missing()
    if lacking is None:
        return [Check("MediaPipe", "ok", f"in {mediapipe_models.cache_folder()}")]
    return [Check("MediaPipe", "missing", lacking, "without: the small detector, which knows the synthetic world only")]


def main(arguments: Sequence[str]) -> int:
    """Prints the report; exit status 1 if something is broken (missing is not broken)."""
    parser = argparse.ArgumentParser(
        prog="doctor", description="What is installed, what is missing, and what each missing thing would enable."
    )
    parser.add_argument("--torch", action="store_true", help="only one line: which torch build this is")
    parser.add_argument("--mano", type=Path, help="your MANO file (MANO_RIGHT.pkl or .npz)")
    parser.add_argument("--smpl", type=Path, help="your SMPL file")
    parser.add_argument("--fetch-hand-models", action="store_true", help="fetch MediaPipe's hand models (Apache-2.0) into your cache")
    options = parser.parse_args(arguments)
    if options.torch:
        print(torch_line())
        return 0
    sections = {
        "torch and GPU": check_torch(),
        "packages": check_packages(),
        "small weights": check_weights(),
        "hand models for photographs": check_hand_models(options.fetch_hand_models),
        "licensed body models": check_body_models(options.mano, options.smpl),
    }
    for title, checks in sections.items():
        print(title)
        for check in checks:
            print(f"  {SIGNS[check.state]} {check.name}: {check.detail}")
            if check.remedy:
                print(f"      {check.remedy}")
    broken = [check.name for checks in sections.values() for check in checks if check.state == "broken"]
    print(f"\nbroken: {', '.join(broken)}" if broken else "\nnothing is broken; what is marked · is optional")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
