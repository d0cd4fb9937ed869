"""Conversations: what is one passes, what is none is one error that names the sample, the message and the remedy."""

from __future__ import annotations

import pytest

from data.sample import Sample, SampleError, Source, assistant, user, validate_messages

SOURCE = Source("test")
PICTURE = {"type": "image", "image": "a.jpg"}


def test_every_part_that_the_format_has():
    box = {"type": "box", "bbox_xyxy": [1, 2, 1, 4], "label": "cup"}
    call = {"type": "tool_call", "name": "detect_hands", "arguments": {}}
    pose = {"type": "pose", "encoder": "detection", "tokens": None}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        user(PICTURE, pose, "where?"),
        assistant(call),
        {"role": "tool", "content": [{"type": "text", "text": "{}"}, pose]},
        assistant("there:", box, {"type": "none"}, {"type": "time", "seconds": 3, "duration": 9.5}),
    ]
    assert Sample("s", messages, SOURCE).messages is messages
    assert user("a")["content"] == [{"type": "text", "text": "a"}]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "no messages"),
        (["where?"], r"message 0: a message is .* got str"),
        ([{"role": "human", "content": []}], "role is 'human', expected one of system, user"),
        ([{"role": "user", "content": "where?"}], "content is str, expected a list of parts"),
        ([user("a"), user(None)], r"message 1 \(user\): part of type None"),
        ([user({"type": "box", "bbox_xyxy": [0, 0, 1, 1]})], r"message 0 \(user\): part of type 'box', expected one of text, image"),
        ([assistant(PICTURE)], r"\(assistant\): part of type 'image'"),
        ([user({"type": "text", "text": 3})], "needs a string under 'text', got int"),
        ([user({"type": "image", "path": "a.jpg"})], "under 'image', got the keys type, path"),
        ([user({"type": "pose", "tokens": None})], "under 'encoder', got None"),
        ([assistant({"type": "tool_call", "name": "detect_hands", "arguments": "{}"})], "needs 'name' .str. and 'arguments' .dict."),
        *(
            ([assistant({"type": "time", **time})], "needs 'seconds' and a positive 'duration'")
            for time in ({}, {"seconds": 1.0}, {"seconds": 1.0, "duration": 0}, {"seconds": float("nan"), "duration": 2.0})
        ),
        *(
            ([assistant({"type": "box", "bbox_xyxy": box})], "expected four finite numbers with x1 <= x2")
            for box in (None, [1, 2, 3], [3, 0, 1, 1], [0, 0, 1, float("nan")], ["a", 0, 1, 1], [[0, 0], [1, 1]])
        ),
    ],
)
def test_what_is_no_conversation_is_named(messages, expected):
    with pytest.raises(SampleError, match=expected):
        validate_messages(messages)
    with pytest.raises(SampleError, match="sample 'video-7'"):
        Sample("video-7", messages, SOURCE)
