"""A regressor from its folder."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from pose_tools.body_models import Mano, load_mano
from pose_tools.mano.networks import HandRegressor, RegressorConfig, RegressorError
from pose_tools.tool_protocol import BackendMissing

DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "demos" / "assets" / "mano_small"


def load_regressor(path: str | Path | None = None, mano: Mano | None = None) -> HandRegressor:
    """The regressor of a folder with `model.safetensors` and `config.json`, in eval mode on the CPU; None is the one that is shipped.

    Args:
        mano: the right hand that it poses; None is the stand-in, on which the shipped one was trained.

    Raises BackendMissing for a missing file, RegressorError for one that does not fit; both name it. Loaded once per file and hand
    (stand-in only), and shared: do not train it.
    """
    folder = Path(path).resolve() if path is not None else DEFAULT_FOLDER
    files = (folder / "config.json", folder / "model.safetensors")
    for file in files:
        if not file.is_file():
            raise BackendMissing(f"the hand regressor's {file} is missing: train one with scripts/train_mano.py, or give its folder")
    if mano is not None:
        return _read(files, mano)
    return _shared(files, tuple((facts.st_size, facts.st_mtime_ns) for facts in (file.stat() for file in files)))


@lru_cache(maxsize=2)
def _shared(files: tuple[Path, Path], version: tuple[tuple[int, int], ...]) -> HandRegressor:
    """`version` only tells files that were written again from those that were loaded."""
    return _read(files, load_mano())


def _read(files: tuple[Path, Path], mano: Mano) -> HandRegressor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = RegressorConfig(**json.loads(files[0].read_text()))
    except (TypeError, ValueError) as error:
        raise RegressorError(f"{files[0]}: not the config of a hand regressor ({error})") from error
    try:
        tensors = load_file(files[1])
    except SafetensorError as error:
        raise RegressorError(f"{files[1]}: not a whole file ({error}); get or train it again") from error
    model = HandRegressor(config, mano, pretrained=False)
    wanted = model.state_dict()
    wrong = [k for k in wanted.keys() | tensors.keys() if k not in wanted or k not in tensors or wanted[k].shape != tensors[k].shape]
    if wrong:
        raise RegressorError(f"{files[1]}: {len(wrong)} tensors missing, extra or of another shape, such as {sorted(wrong)[0]!r}")
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)
