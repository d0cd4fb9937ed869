"""LITA's tasks as text: moments of a clip as tokens `<t0>` … `<t99>`, dense captions, events, reasoning about time, video questions.

Seconds count from the clip's start; `<t99>` is its end. What is written can be parsed again to half a token's length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

TIME_TOKENS = 100
SHORT_ANSWER = {
    "nextqa": "Answer the question using a short phrase.",
    "msvdqa": "Answer the question using a single word or phrase.",
    "msrvttqa": "Answer the question using a single word or phrase.",
}
"""What the published prompts of a video question set end with."""

_TOKEN = re.compile(r"<t(\d{1,3})>")
_SECONDS = re.compile(r"<(\d+(?:\.\d*)?|\.\d+)>")
_CAPTION = re.compile(r"<t(\d{1,3})>\s*<t(\d{1,3})>([^<]*(?:<(?!t\d{1,3}>)[^<]*)*)")

Event = tuple[float, float]


def format_time(seconds: float, duration: float, tokens: int = TIME_TOKENS) -> str:
    """The token of a moment: round((tokens − 1) · (seconds / duration)), moments outside the clip at its ends."""
    _check(duration)
    if not math.isfinite(seconds):
        raise ValueError(f"a moment at {seconds} s is not a number")
    index = round((tokens - 1) * (seconds / duration))  # in this order: a moment half-way between two tokens depends on it
    return f"<t{min(max(index, 0), tokens - 1)}>"


def parse_time(token: str, duration: float, tokens: int = TIME_TOKENS) -> float:
    """Seconds, to two decimals, of a token `<t…>`; an index beyond the last token is the clip's end. ValueError for another text."""
    match = _TOKEN.fullmatch(token.strip())
    if match is None:
        raise ValueError(f"{token!r} is no time token <t0> … <t{tokens - 1}>")
    return _seconds(match[1], duration, tokens)


def parse_times(text: str, duration: float, tokens: int = TIME_TOKENS) -> list[float]:
    """All moments in a text, in its order, in seconds to two decimals."""
    return [_seconds(index, duration, tokens) for index in _TOKEN.findall(text)]


def format_event(start: float, end: float, duration: float, tokens: int = TIME_TOKENS) -> str:
    """Event localisation's answer: `<ts> <te>`."""
    return f"{format_time(start, duration, tokens)} {format_time(end, duration, tokens)}"


def parse_event(text: str, duration: float, tokens: int = TIME_TOKENS) -> Event:
    """Seconds of the first two moments of an answer, the earlier first; the whole clip where there are fewer (as published)."""
    _check(duration)
    times = parse_times(text, duration, tokens)[:2]
    return (min(times), max(times)) if len(times) == 2 else (0.0, float(duration))


def format_dense_captions(events: Iterable[Sequence[float]], captions: Iterable[str], duration: float, tokens: int = TIME_TOKENS) -> str:
    """Dense captioning's answer: `<ts> <te> caption`, joined by blanks. ValueError when there are not as many captions as events."""
    events, captions = list(events), list(captions)
    if len(events) != len(captions):
        raise ValueError(f"{len(captions)} captions for {len(events)} events, expected one for each")
    pairs = zip(events, captions, strict=True)
    return " ".join(f"{format_event(start, end, duration, tokens)} {caption.strip()}" for (start, end), caption in pairs)


def parse_dense_captions(text: str, duration: float, tokens: int = TIME_TOKENS) -> list[tuple[float, float, str]]:
    """(start, end, caption) of every two moments that follow each other, in seconds; text before the first is left out."""
    _check(duration)
    found = _CAPTION.findall(text)
    return [(_seconds(start, duration, tokens), _seconds(end, duration, tokens), caption.strip()) for start, end, caption in found]


def format_reasoning(text: str, duration: float, tokens: int = TIME_TOKENS) -> str:
    """Moments in seconds inside a text, `<12.3>`, as time tokens; everything else stays."""
    return _SECONDS.sub(lambda match: format_time(float(match[1]), duration, tokens), text)


def format_video_question(question: str, name: str) -> str:
    """A question of the video question set `name` as it is asked: with a capital, and in the sets of SHORT_ANSWER with a question mark and
    how to answer, in one line."""
    question = question.strip()
    question = question[:1].upper() + question[1:] if len(question) > 1 else question
    if name not in SHORT_ANSWER:
        return question
    return f"{question}{'' if question.endswith('?') else '?'} {SHORT_ANSWER[name]}"


def seconds_in(text: str) -> list[float]:
    """The moments `<12.3>` of a text, in its order."""
    return [float(seconds) for seconds in _SECONDS.findall(text)]


def parse_reasoning(text: str, duration: float, tokens: int = TIME_TOKENS) -> str:
    """Time tokens inside a text as moments in seconds, `<12.3>`; the reverse of `format_reasoning`."""
    return _TOKEN.sub(lambda match: f"<{_seconds(match[1], duration, tokens)}>", text)


def temporal_iou(a: Event, b: Event) -> float:
    """Intersection over union of two spans in seconds; 0 where both together have no length."""
    inner = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - inner
    return inner / union if union > 0 else 0.0


def _seconds(index: str, duration: float, tokens: int) -> float:
    _check(duration)
    return round(min(max(int(index) * duration / (tokens - 1), 0.0), duration), 2)


def _check(duration: float) -> None:
    if not (math.isfinite(duration) and duration > 0):
        raise ValueError(f"a clip's duration is {duration} s, expected a positive number")
