#!/usr/bin/env python
"""Cuts the hands out of videos: VIDEOS → tar shards of square crops with key points, and their index (data/hand_shards.py).

    python scripts/extract_hands.py ego4d/full_scale --out shards                     every 30th frame, MediaPipe's hands
    python scripts/extract_hands.py a.mp4 b.mp4 --out shards --fps 2 --workers 8
    python scripts/extract_hands.py FRAMES --out shards --annotations Hand100M.json   published key points of <video>/frame_000030.jpg

Left hands are mirrored. A run that was stopped goes on with the videos that are missing, whatever their number. OUT/videos.json has the
counts of every video. Then: scripts/mine_hands.py shards --out pairs.npz
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm  # noqa: E402

from data.hand_annotations import AnnotationError  # noqa: E402
from data.hand_extraction import Settings, Summary, extract_hands, find_sources, write_summaries  # noqa: E402
from data.hand_shards import ShardError  # noqa: E402
from pose_tools.files import FolderBusyError  # noqa: E402
from pose_tools.interruption import status_of  # noqa: E402
from pose_tools.tool_protocol import BackendMissing  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 1 where nothing could be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+", help="videos, folders of videos, folders of frames")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--stride", type=int, default=30, help="look at every so many frames of a video")
    parser.add_argument("--fps", type=float, help="look at so many frames a second instead")
    parser.add_argument("--hands", choices=("mediapipe", "small"), default="mediapipe", help="small knows the synthetic world only")
    parser.add_argument("--annotations", type=Path, help="take the hands of this published annotation file")
    parser.add_argument("--least", type=float, default=0.5, help="confidence below which a hand is left out")
    parser.add_argument("--size", type=int, default=224, help="pixels of a crop")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="videos at a time")
    options = parser.parse_args(arguments)
    for name, least in (("stride", 1), ("size", 16), ("workers", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} is {getattr(options, name)}, expected at least {least}")
    if options.fps is not None and not options.fps > 0:
        parser.error(f"--fps is {options.fps}, expected a positive number")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    settings = Settings(
        stride=options.stride, rate=options.fps, hands="annotations" if options.annotations else options.hands,
        annotations=str(options.annotations) if options.annotations else None, least=options.least, size=options.size,
    )  # fmt: skip
    try:
        return _extract(options, settings)
    except (ShardError, AnnotationError, BackendMissing, FolderBusyError, OSError) as error:
        print(f"extract_hands: {error}", file=sys.stderr)
        return 1


def _extract(options: argparse.Namespace, settings: Settings) -> int:
    sources = find_sources(options.videos)
    summaries: list[Summary] = []
    with tqdm(total=len(sources), unit="video", desc=str(options.out)) as bar:
        for summary in extract_hands(sources, options.out, settings, options.workers):
            summaries.append(summary)
            bar.update()
            bar.set_postfix(hands=sum(one.hands for one in summaries))
            if not summary.kept or summary.problem:
                tqdm.write(_line(summary))
    write_summaries(options.out / "videos.json", summaries)
    unread = [summary for summary in summaries if summary.frames == 0]
    hands, frames = sum(one.hands for one in summaries), sum(one.frames for one in summaries)
    print(f"{options.out}: {hands} hands of {frames} frames in {len(summaries) - len(unread)} videos; {len(unread)} could not be read")
    if hands == 0 and options.annotations and len(unread) < len(summaries):
        print(f"extract_hands: {options.annotations} names no hand in these frames: its file names must be <video>/frame_<number>.jpg "
              f"with videos as {summaries[0].video_id!r}", file=sys.stderr)  # fmt: skip
        return 1
    return 1 if len(unread) == len(summaries) else 0


def _line(summary: Summary) -> str:
    left_out = [f"{count} {why}" for count, why in ((summary.unsure, "unsure"), (summary.outside, "outside the picture")) if count]
    text = f"{summary.video_id}: {summary.hands} hands in {summary.frames} frames" + (f" ({', '.join(left_out)})" if left_out else "")
    if summary.problem:
        text = f"{text}; {summary.problem}" if summary.frames else f"{summary.video_id}: skipped: {summary.problem}"
    return text


if __name__ == "__main__":
    sys.exit(status_of(main))
