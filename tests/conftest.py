"""The same conditions for every test: no network, no GPU, one thread, no telemetry. Set before anything heavy is imported."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    GRADIO_ANALYTICS_ENABLED="False",
    TOKENIZERS_PARALLELISM="false",
    CUDA_VISIBLE_DEVICES="",
    DS_ACCELERATOR="cpu",
    MPLBACKEND="Agg",
    PYOPENGL_PLATFORM="egl",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    from hypothesis import settings

    # A loaded machine is not a failure, and the same examples every time make a failure repeatable.
    settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
    settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start processes of their own go to one worker, one after the other (`--dist loadgroup`)."""
    for item in items:
        if item.get_closest_marker("two_process"):
            item.add_marker(pytest.mark.xdist_group("two_process"))


@pytest.fixture
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def free_port() -> int:
    """A port nobody listens on, for a process group of the test's own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
