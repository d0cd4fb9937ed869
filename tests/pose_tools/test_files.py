"""Files appear whole or not at all, and a folder has one writer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pose_tools.files import FolderBusyError, atomic_path, exclusive, write_text


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "new folder" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists() and temporary.parent == target.parent  # one file system: the move is atomic
    assert target.read_text() == "whole" and [p.name for p in target.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    write_text(tmp_path / "file.txt", "old")
    with pytest.raises(type(error)), atomic_path(tmp_path / "file.txt") as temporary:
        temporary.write_text("ha")
        raise error
    assert (tmp_path / "file.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_text_is_utf_8_everywhere(tmp_path):
    write_text(tmp_path / "file.txt", "± 1 °\n")
    assert (tmp_path / "file.txt").read_bytes() == "± 1 °\n".encode()


def test_a_folder_has_one_writer_until_that_ends(tmp_path):
    code = "import sys; from pathlib import Path; from pose_tools.files import exclusive\nwith exclusive(Path(sys.argv[1])): print('in')"
    other = [sys.executable, "-c", code, str(tmp_path)]
    with exclusive(tmp_path):
        with (
            pytest.raises(FolderBusyError, match=f"another process is writing {tmp_path}: wait for it, or choose another"),
            exclusive(tmp_path),
        ):
            pass
        refused = subprocess.run(other, capture_output=True, text=True)
        assert refused.returncode and "FolderBusyError" in refused.stderr
    assert subprocess.run(other, capture_output=True, text=True, check=True).stdout == "in\n"
