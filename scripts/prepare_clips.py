#!/usr/bin/env python
"""Makes training clips of your own videos: VIDEOS → observed frames, and where both hands go in the next second (data/clip_labels.py).

    python scripts/prepare_clips.py videos --out data/my_clips                              a clip a second, without words
    python scripts/prepare_clips.py videos --out data/my_clips --actions actions.csv        video,start,narration per line
    python scripts/prepare_clips.py a.mp4 b.mp4 --out data/my_clips --every 0.5 --workers 8

Hands are found by the detector that is here (HANDVLM_HANDS=mediapipe or small chooses). A run that was stopped goes on where it was, and
videos and actions may be added behind those that are there. OUT/videos.json has the counts of every video, OUT/sheet.jpg some of the
clips. Then: `{kind: clip_trajectory, path: OUT}` in a training config, or scripts/evaluate.py trajectory --data OUT
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm  # noqa: E402

from data.clip_labels import LabelSettings, make_labels  # noqa: E402
from data.clip_sheet import write_sheet  # noqa: E402
from data.clip_windows import plan, read_moments, video_names  # noqa: E402
from data.epic_kitchens import EpicError  # noqa: E402
from data.hand_extraction import find_sources  # noqa: E402
from data.hand_shards import ShardError  # noqa: E402
from data.synthetic.journal import FolderError  # noqa: E402
from pose_tools.detect import resolve_backend  # noqa: E402
from pose_tools.files import FolderBusyError, write_text  # noqa: E402
from pose_tools.interruption import status_of  # noqa: E402
from pose_tools.tool_protocol import BackendMissing  # noqa: E402
from vlm.commands.console import in_words  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 1 where no clip can be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+", help="videos, or folders of videos")
    parser.add_argument("--out", type=Path, required=True, help="folder of the clips")
    parser.add_argument("--actions", type=Path, help="csv file with the columns video, start and, where known, stop, narration, verb, noun")
    parser.add_argument("--every", type=float, default=1.0, help="without --actions: seconds from one clip to the next (default 1)")
    parser.add_argument("--size", type=int, default=256, help="pixels of a frame's shorter side (default 256, EPIC-KITCHENS')")
    parser.add_argument("--participant", default="P01", help="whose hands these are, where --actions does not say (default P01)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--sheet", type=int, default=12, help="clips drawn into OUT/sheet.jpg; 0 draws none")
    options = parser.parse_args(arguments)
    for name, least in (("size", 32), ("workers", 1), ("sheet", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name} is {getattr(options, name)}, expected at least {least}")
    if not options.every > 0:
        parser.error(f"--every is {options.every}, expected a positive number of seconds")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return _prepare(options)
    except (EpicError, ShardError, FolderError, FolderBusyError, BackendMissing, OSError) as error:
        print(f"prepare_clips: {in_words(error)}", file=sys.stderr)
        return 1


def _prepare(options: argparse.Namespace) -> int:
    sources = video_names(find_sources(options.videos))
    moments = None if options.actions is None else read_moments(options.actions)
    by_video, unread = plan(sources, moments, every=options.every, participant=options.participant)
    for name, problem in unread.items():
        print(f"{name}: skipped: {problem}", file=sys.stderr)
    windows = [window for some in by_video.values() for window in some]
    if not windows:
        too_short = ", ".join(by_video) or "none could be read"
        raise EpicError(f"no clip in these videos ({too_short}): a clip and its future take 3.25 s, and --actions must lie in a video")
    settings = LabelSettings(size=options.size, hands=resolve_backend())
    with tqdm(total=len(windows), unit="clip", desc=str(options.out)) as bar:
        for done in make_labels(options.out, windows, settings, options.workers):
            bar.update(done - bar.n)
    counted = json.loads((options.out / "videos.json").read_text(encoding="utf-8"))
    counted |= {name: {"windows": 0, "used": 0, "problem": problem} for name, problem in unread.items()}
    counted |= {name: {"windows": 0, "used": 0} for name in by_video if name not in counted}
    write_text(options.out / "videos.json", json.dumps(counted, indent=1))
    for name, facts in counted.items():
        print(_line(name, facts))
    used = sum(facts["used"] for facts in counted.values())
    read = len(sources) - len(unread)
    print(f"{options.out}: {used} of {len(windows)} clips of {read} videos can be used; {len(unread)} could not be read")
    if options.sheet and used:
        print(f"pictures: {write_sheet(options.out, options.sheet)}")
    return 0 if used else 1


def _line(name: str, facts: dict) -> str:
    if "problem" in facts:
        return f"{name}: could not be read"
    if not facts["windows"]:
        return f"{name}: no action in it, or shorter than a clip and its future (3.25 s)"
    left_out = "".join(f", {count} {why}" for why, count in facts["left_out"].items())
    hands = f": left hand in {facts['left']}, right in {facts['right']}" if facts["used"] else ""
    return f"{name}: {facts['used']} of {facts['windows']} clips{hands}{left_out}"


if __name__ == "__main__":
    sys.exit(status_of(main))
