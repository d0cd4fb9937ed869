"""Tracks that are kept beside the clips: equal to those made anew, by content, each frame looked at once."""

from __future__ import annotations

import numpy as np
import pytest

from data import tracks as tracks_module
from data.detections import cached_detections
from data.sample import SampleError
from data.tracks import cached_tracks
from pose_tools.image_io import read_image, write_image
from pose_tools.tool_protocol import BackendMissing
from pose_tools.track import track_hands, track_tokens


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A small detector of random weights that sees both hands everywhere."""
    import torch

    from pose_tools import small_detector as small

    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    sizes = {"image_size": 96, "embedding_size": 8, "hidden_sizes": (8, 16, 32), "depths": (1, 1, 1)}
    small.SmallDetector(small.SmallDetectorConfig(("cup",), ("red",), calibration=((1.0, 20.0),) * 4, **sizes)).eval().save(folder)
    return folder


@pytest.fixture
def frames(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (7, 24, 32, 3), dtype=np.uint8)
    paths = [tmp_path / "frames" / f"{i}.png" for i in range(7)]
    for path, picture in zip(paths, pictures, strict=True):
        write_image(path, picture)
    return paths


@pytest.fixture
def looked(monkeypatch):
    """The number of frames in each batch that the detector was given."""
    from pose_tools.small_detector import SmallDetector

    batches, detect = [], SmallDetector.detect_batch

    def counted(self, images, least=0.01):
        batches.append(len(images))
        return detect(self, images, least)

    monkeypatch.setattr(SmallDetector, "detect_batch", counted)
    return batches


def test_kept_tracks_are_those_of_the_tool_and_each_frame_is_looked_at_once(tmp_path, frames, detector, looked):
    from pose_tools.small_detector import load_small_detector

    clips = [("a", frames[:5]), ("b", frames[2:7]), ("again", frames[:5]), ("still", [frames[0]] * 3)]
    first = cached_tracks(tmp_path, clips, detector=detector)
    assert looked == [7] and list(first) == ["a", "b", "again", "still"]
    model = load_small_detector(detector)
    for key, paths in clips:
        found = track_hands(list(map(read_image, paths)), 4.0, detector=lambda images: model.detect_batch(images, 0.5))
        np.testing.assert_allclose(first[key], track_tokens(found, len(paths)), atol=1e-4)
        assert first[key].shape == (2 * len(paths), 11) and first[key].dtype == np.float32
    looked.clear()
    second = cached_tracks(tmp_path, clips, detector=detector)
    assert looked == [] and all(np.array_equal(first[key], second[key], equal_nan=True) for key in first)
    raw = cached_tracks(tmp_path, clips, detector=detector, smooth=False)
    single = cached_detections(tmp_path, frames, detector=detector)
    np.testing.assert_allclose(raw["a"], np.vstack([single[f"frames/{i}.png"] for i in range(5)]), atol=1e-4)


def test_a_clip_is_known_by_its_content(tmp_path, frames, detector, looked):
    first = cached_tracks(tmp_path, [("a", frames[:3])], detector=detector)
    moved = [path.rename(path.with_name(f"moved{i}.png")) for i, path in enumerate(frames[:3])]
    assert np.array_equal(cached_tracks(tmp_path, [("b", moved)], detector=detector)["b"], first["a"], equal_nan=True) and len(looked) == 1
    write_image(moved[1], 255 - read_image(moved[1]))
    other = cached_tracks(tmp_path, [("b", moved)], detector=detector)["b"]
    assert len(looked) == 2 and not np.array_equal(other, first["a"], equal_nan=True)
    for settings in ({"fps": 8.0}, {"threshold": 0.3}):
        cached_tracks(tmp_path, [("b", moved)], detector=detector, **settings)
    assert len(looked) == 4 and len(list(tmp_path.glob("tracks-*.npz"))) == 3


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, frames, detector, looked, monkeypatch):
    clips = [(str(i), frames[i : i + 2]) for i in range(6)]
    whole = cached_tracks(tmp_path / "frames", clips, detector=detector)
    looked.clear()
    monkeypatch.setattr(tracks_module, "AT_A_TIME", 2)
    monkeypatch.setattr(tracks_module, "SAVE_SECONDS", -1)
    join, calls = tracks_module.track.join, []

    def stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return join(*args, **kwargs)

    monkeypatch.setattr(tracks_module.track, "join", stopped)
    with pytest.raises(KeyboardInterrupt):
        cached_tracks(tmp_path, clips, detector=detector)
    assert looked == [3, 2]  # a frame that the next clips hold too is not looked at again
    looked.clear()
    resumed = cached_tracks(tmp_path, clips, detector=detector)
    assert sum(looked) == 4 and len(calls) == 4 + 3
    assert all(np.allclose(resumed[key], whole[key], atol=1e-4, equal_nan=True) for key in whole)


def test_what_is_missing_is_named(tmp_path, frames, detector):
    with pytest.raises(SampleError, match=r"clip 'a': its frame .*gone\.png cannot be read"):
        cached_tracks(tmp_path, [("a", [frames[0], tmp_path / "gone.png"])], detector=detector)
    with pytest.raises(BackendMissing, match="train_detector"):
        cached_tracks(tmp_path, [("a", frames)], detector=tmp_path / "none")
    assert cached_tracks(tmp_path, [], detector=detector) == {}
