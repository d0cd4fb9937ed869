"""LITA's tasks scored: when something happens (event localisation, temporal reasoning) and dense captions.

strict   The span between the first two moments of an answer; an answer with fewer is wrong. Means over questions, intervals over videos.
compat   As LITA's published evaluation does it: moments are read as seconds, also those that are written so (`<12.3>`), and put into the
         clip, the true ones, too; fewer than two stand for the whole clip, a time token in the last place of an answer that was cut off
         is not read, and a mean over a video's questions is taken before the mean over videos.

Dense captions have no published score in LITA: where they are is scored as ActivityNet Captions does (a caption is found, or right, if one
of the others overlaps it by 0.3, 0.5, 0.7, 0.9; per video, then over videos and overlaps), what they say by CIDEr-D against all captions
that they overlap so much, 0 where there is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.lita import Event, parse_dense_captions, parse_reasoning, parse_times, seconds_in, temporal_iou
from data.lita_sets import LitaSet
from data.sample import Sample
from pose_tools.files import write_text
from vlm.evaluation import tables
from vlm.evaluation.captions import Cider

OVERLAPS = (0.3, 0.5, 0.7, 0.9)
_LAST_TOKEN = re.compile(r"<t\d{1,3}>\s*$")


@dataclass(frozen=True)
class TemporalQuestion:
    """One question about a video of `duration` seconds: its true `events`, and their `captions` where these are asked for."""

    sample: Sample
    video: str
    duration: float
    events: tuple[Event, ...]
    captions: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.sample.id


@dataclass(frozen=True)
class TemporalReply:
    """What a model wrote; `finished`: it ended its answer itself, before the longest length."""

    output: str
    finished: bool = True


Replies = Mapping[str, TemporalReply]


def read_temporal_questions(records: LitaSet, seed: int = 0) -> tuple[list[TemporalQuestion], int]:
    """All questions of a set, and how many answers of it name no span, so that nothing can be scored."""
    samples = [sample for index in range(len(records)) for sample in records.questions(index, seed)]
    asked = [
        TemporalQuestion(
            sample, sample.source.video_id or "", float(sample.targets["duration"]),
            tuple((float(a), float(b)) for a, b in sample.targets["events"]), tuple(sample.targets.get("captions", ())),
        )
        for sample in samples if sample.targets["events"]
    ]  # fmt: skip
    return asked, len(samples) - len(asked)


def span_of(reply: TemporalReply, duration: float, *, compat: bool = False) -> Event | None:
    """The span that an answer names, in seconds; None where it names none (never with `compat`)."""
    if compat:
        text = reply.output if reply.finished else _LAST_TOKEN.sub("", reply.output)
        times = seconds_in(parse_reasoning(text, duration))[:2]
        return _within_clip(times, duration) if len(times) == 2 else (0.0, duration)
    times = parse_times(reply.output, duration)[:2]
    return (min(times), max(times)) if len(times) == 2 else None


def _within_clip(moments: Sequence[float], duration: float) -> Event:
    """From the earlier to the later of two moments, in seconds, of what is left of them in the clip."""
    start, end = sorted(min(max(moment, 0.0), duration) for moment in moments)
    return start, end


def span_scores(questions: Sequence[TemporalQuestion], replies: Replies, *, compat: bool = False) -> np.ndarray:
    """(n,) IoU of each question's span with the truth, 0 without an answer."""
    spans = (span_of(replies[question.id], question.duration, compat=compat) for question in questions)
    truths = (_within_clip(q.events[0], q.duration) if compat else q.events[0] for q in questions)
    return np.array([0.0 if span is None else temporal_iou(span, truth) for span, truth in zip(spans, truths, strict=True)])


def published(questions: Sequence[TemporalQuestion], replies: Replies) -> dict[str, float]:
    """mIoU and P@0.5 by the published definition."""
    ious, by_video = span_scores(questions, replies, compat=True), {}
    for question, iou in zip(questions, ious, strict=True):
        by_video.setdefault(question.video, []).append(iou)
    means = [(np.mean(found), np.mean([iou >= 0.5 for iou in found])) for found in by_video.values()]
    return {"miou": float(np.mean([m for m, _ in means])), "p@0.5": float(np.mean([p for _, p in means]))}


@dataclass(frozen=True)
class CaptionScores:
    """Per video (V,), means over OVERLAPS: true captions found, captions that are right, and what they say (CIDEr-D)."""

    videos: tuple[str, ...]
    recall: np.ndarray
    precision: np.ndarray
    cider: np.ndarray


def caption_scores(questions: Sequence[TemporalQuestion], replies: Replies) -> CaptionScores:
    """Dense captions against the truth; a video without any caption has zeros."""
    cider = Cider([caption for question in questions for caption in question.captions])
    rows = [_video_scores(question, replies[question.id], cider) for question in questions]
    recall, precision, said = np.array(rows, float).reshape(-1, 3).T
    return CaptionScores(tuple(question.video for question in questions), recall, precision, said)


def _video_scores(question: TemporalQuestion, reply: TemporalReply, cider: Cider) -> tuple[float, float, float]:
    found = parse_dense_captions(reply.output, question.duration)
    if not found:
        return 0.0, 0.0, 0.0
    ious = np.array([[temporal_iou((min(a, b), max(a, b)), event) for event in question.events] for a, b, _ in found])
    recall = np.mean([(ious >= overlap).any(0).mean() for overlap in OVERLAPS])
    precision = np.mean([(ious >= overlap).any(1).mean() for overlap in OVERLAPS])
    said = [
        cider(caption, [question.captions[k] for k in np.flatnonzero(row >= overlap)])
        for overlap in OVERLAPS
        for row, (_, _, caption) in zip(ious, found, strict=True)
    ]
    return float(recall), float(precision), float(np.mean(said))


def whole_clip(questions: Sequence[TemporalQuestion]) -> Replies:
    """The baseline that needs no model: everything happens all the time (and nothing is said about it)."""
    return {question.id: TemporalReply("<t0> <t99>") for question in questions}


def report(questions: Sequence[TemporalQuestion], replies: Replies, out: Path, about: Sequence[str], *, compat: bool = False) -> str:
    """Writes `table.md` and `summary.json` into `out`; returns the table's text."""
    answered = {"the model": replies, "the whole clip": whole_clip(questions)}
    dense = bool(questions[0].captions)
    rows = [(_caption_row if dense else _span_row)(name, questions, said) for name, said in answered.items()]
    lines = [*about, "", tables.markdown_table(["answered by", *rows[0]["cells"]], [[r["name"], *r["cells"].values()] for r in rows])]
    summary: dict[str, Any] = {row["name"]: row["values"] for row in rows}
    if compat and not dense:
        numbers = {name: published(questions, said) for name, said in answered.items()}
        summary |= {f"{name}, as published": values for name, values in numbers.items()}
        cells = [[name, f"{values['miou']:.4f}", f"{values['p@0.5']:.4f}"] for name, values in numbers.items()]
        lines += ["As LITA's evaluation defines them:", "", tables.markdown_table(["answered by", "mIoU", "P@0.5"], cells)]
    text = "\n".join(lines)
    write_text(out / "summary.json", json.dumps(summary, indent=1))
    write_text(out / "table.md", text)
    return text


def _span_row(name: str, questions: Sequence[TemporalQuestion], replies: Replies) -> dict[str, Any]:
    ious, videos = span_scores(questions, replies), [question.video for question in questions]
    names = [span_of(replies[q.id], q.duration) is not None for q in questions]
    cells = {"n (videos)": f"{len(ious)} ({len(set(videos))})", "names a span": tables.share(names, videos, interval=False)}
    cells |= {"mIoU": tables.share(ious.tolist(), videos)}
    cells |= {f"P@{overlap}": tables.share((ious >= overlap).tolist(), videos) for overlap in OVERLAPS[:3]}
    return _row(name, cells)


def _caption_row(name: str, questions: Sequence[TemporalQuestion], replies: Replies) -> dict[str, Any]:
    scores = caption_scores(questions, replies)
    recall, precision = float(scores.recall.mean()), float(scores.precision.mean())
    f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
    counts = [len(parse_dense_captions(replies[q.id].output, q.duration)) for q in questions]
    cells = {
        "videos": len(questions), "captions a video": f"{np.mean(counts):.1f} (true {np.mean([len(q.events) for q in questions]):.1f})",
        "found": tables.share(scores.recall.tolist(), scores.videos), "right": tables.share(scores.precision.tolist(), scores.videos),
        "F1": tables.Measure(f1), "CIDEr-D": tables.share(scores.cider.tolist(), scores.videos),
    }  # fmt: skip
    return _row(name, cells)


def _row(name: str, cells: dict[str, Any]) -> dict[str, Any]:
    values = {key: vars(cell) if isinstance(cell, tables.Measure) else cell for key, cell in cells.items()}
    return {"name": name, "cells": cells, "values": values}
