"""A regressor from its folder."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pose_tools.body_models import Mano, load_mano
from pose_tools.mano.networks import HandRegressor, RegressorConfig, RegressorError
from pose_tools.model_folder import Files, files_of, read_config, read_weights

DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "demos" / "assets" / "mano_small"


def load_regressor(path: str | Path | None = None, mano: Mano | None = None) -> HandRegressor:
    """The regressor of a folder with `model.safetensors` and `config.json`, in eval mode on the CPU; None is the one that is shipped.

    Args:
        mano: the right hand that it poses; None is the stand-in, on which the shipped one was trained.

    Raises BackendMissing for a missing file, RegressorError for one that does not fit; both name it. Loaded once per file and hand
    (stand-in only), and shared: do not train it.
    """
    folder = Path(path).resolve() if path is not None else DEFAULT_FOLDER
    files, version = files_of(folder, "hand regressor", "train_mano.py")
    if mano is not None:
        return _read(files, mano)
    return _shared(files, version)


@lru_cache(maxsize=2)
def _shared(files: Files, version: tuple[tuple[int, int], ...]) -> HandRegressor:
    """`version` only tells files that were written again from those that were loaded."""
    return _read(files, load_mano())


def _read(files: Files, mano: Mano) -> HandRegressor:
    config = read_config(files[0], RegressorConfig, "hand regressor", RegressorError)
    return read_weights(files[1], HandRegressor(config, mano, pretrained=False), RegressorError)
