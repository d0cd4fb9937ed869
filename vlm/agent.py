"""The turn loop: the model writes, a tool call in it is carried out, the result goes back, until there is an answer.

A call that cannot be carried out (no such tool, a wrong argument, no JSON) is answered by the reason, which the model reads
like any result. Everything that happened is in the turn's trace.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

from data.sample import assistant, text
from pose_tools import tool as tool_table
from pose_tools.tool_arguments import quote
from pose_tools.tool_protocol import ToolError, ToolResult
from pose_tools.types import Media
from pose_tools.views import View
from vlm.answers import (
    CALL_CLOSE,
    CALL_OPEN,
    TRAJECTORY_TOKEN,
    Answer,
    BoxAnswer,
    NoneAnswer,
    Paths,
    TextAnswer,
    ToolCallAnswer,
    TrajectoryAnswer,
    Unparsed,
    parse,
)
from vlm.templates import stop_options

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Step:
    """One thing that happened: the model wrote `text`, or a tool was called and `text` went back to the model.

    `call` what was asked for; `result` what the tool found, None when it was refused; `seconds` how long it took.
    """

    kind: Literal["model", "tool"]
    text: str
    seconds: float
    call: ToolCallAnswer | None = None
    result: ToolResult | None = None


@dataclass(frozen=True)
class Turn:
    """The model's answer: typed `answers` in original pixels, the `text` they were read from, the `trace` of steps, and `messages`,
    the conversation with all of it, to be continued by a user turn."""

    answers: list[Answer]
    text: str
    trace: list[Step] = field(default_factory=list)
    messages: Messages = field(default_factory=list)


class Stream:
    """The pieces of text as the model writes them, tool calls left out; `turn` is there when they are all read."""

    def __init__(self, run: Generator[str, None, Turn]) -> None:
        self._run = run
        self.turn: Turn | None = None

    def __iter__(self) -> Iterator[str]:
        self.turn = yield from self._run


class Agent:
    """A model with tools.

    Args:
        model: a HandVLM (anything with its `generate` and `device`).
        processor: its HandVLMProcessor.
        tools: names from `pose_tools.tool.TOOLS` that are offered; none by default.
        max_calls: so many calls in one turn at most.
        overlay: let tools draw what they found, for people (in the trace).
        result_tokens: put the tokens of a result into the tool's turn, for models trained that way (`encoders` of `data.tool_dialogues`).
        generation: arguments of `model.generate`; greedy, 128 new tokens unless given.

    Raises ToolError for a tool that is not there.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        tools: Sequence[str] = (),
        *,
        max_calls: int = 4,
        overlay: bool = False,
        result_tokens: bool = False,
        **generation: Any,
    ) -> None:
        self.model, self.processor, self.tools = model, processor, tuple(tools)
        self.max_calls, self.overlay, self.result_tokens = max_calls, overlay, result_tokens
        self.schemas = tool_table.schemas(self.tools)
        self.generation = {"max_new_tokens": 128, "do_sample": False} | stop_options(processor.template, processor.tokenizer) | generation

    @overload
    def ask(self, messages: Messages, media: Media | None = None, stream: Literal[False] = False) -> Turn: ...
    @overload
    def ask(self, messages: Messages, media: Media | None = None, *, stream: Literal[True]) -> Stream: ...
    def ask(self, messages: Messages, media: Media | None = None, stream: bool = False) -> Turn | Stream:
        """Answers the last user turn of a conversation (see `data.sample`).

        `media` is what tools look at; None takes the conversation's pictures. With `stream`, a Stream of the text.
        Raises SampleError and TemplateProblem (both ValueError) for a conversation that cannot be asked.
        """
        result = Stream(self._run(messages, media, stream))
        if stream:
            return result
        for _ in result:
            pass
        assert result.turn is not None
        return result.turn

    def _run(self, messages: Messages, media: Media | None, stream: bool) -> Generator[str, None, Turn]:
        messages, trace, calls_left = list(messages), [], self.max_calls
        while True:
            start = time.perf_counter()
            written, views, paths = yield from self._write(messages, stream)
            trace.append(Step("model", written, time.perf_counter() - start))
            answers: list[Answer] = parse(written, views[0] if views else None, self.processor.dialect, paths)
            asked = _calls(answers) if self.tools else []
            if not asked or calls_left < len(asked):
                if asked:
                    answers = [Unparsed(written, f"asked for more than {self.max_calls} tool calls in one turn")]
                said = assistant(*_as_parts(answers, written)) if TRAJECTORY_TOKEN in written else assistant(written)
                return Turn(answers, written, trace, [*messages, said])
            if media is None:
                media = self._pictures(messages)
            messages.append(assistant(*_as_parts(answers, written)))
            for call in asked:
                step = self._call(call, media, views)
                trace.append(step)
                messages.append({"role": "tool", "content": [text(step.text), *self._tokens(step.result)]})
            calls_left -= len(asked)

    def _call(self, call: ToolCallAnswer | Unparsed, media: Media, views: Sequence[View]) -> Step:
        """Carries out one call; whatever is wrong with it becomes the text that goes back."""
        start = time.perf_counter()
        made = call if isinstance(call, ToolCallAnswer) else None
        try:
            result = self._result(call, media, views)
        except ToolError as error:
            return Step("tool", f"error: {error}", time.perf_counter() - start, made)
        return Step("tool", result.text, time.perf_counter() - start, made, result)

    def _result(self, call: ToolCallAnswer | Unparsed, media: Media, views: Sequence[View]) -> ToolResult:
        if isinstance(call, Unparsed):
            raise ToolError(call.reason)
        if call.name not in self.tools:  # the table may hold more than was offered
            raise ToolError(f"there is no tool {quote(call.name)}; the tools are: {', '.join(self.tools)}")
        seen = views if len(views) == (len(media.images) or bool(media.frames)) else None  # a clip has one view
        return tool_table.call(call.name, media, call.arguments, views=seen, overlay=self.overlay)

    def _tokens(self, result: ToolResult | None) -> list[dict[str, Any]]:
        if result is None or not self.result_tokens:
            return []
        known = [name for name in result.tokens if name in self.processor.pose_encoders]
        return [{"type": "pose", "encoder": name, "tokens": result.tokens[name]} for name in known]

    def _pictures(self, messages: Messages) -> Media:
        from vlm.pixels import as_rgb

        parts = [part for message in messages for part in message["content"]]
        clips = [part["video"] for part in parts if part["type"] == "video"]
        times = next((part.get("times") for part in parts if part["type"] == "video"), None)
        rate = (len(times) - 1) / (times[-1] - times[0]) if times is not None and len(times) > 1 and times[-1] > times[0] else None
        return Media(
            images=tuple(as_rgb(part["image"]) for part in parts if part["type"] == "image"),
            frames=tuple(map(as_rgb, clips[-1])) if clips else (),
            fps=rate,
        )

    def _write(self, messages: Messages, stream: bool) -> Generator[str, None, tuple[str, list[View], Paths | None]]:
        """Lets the model write once; gives its text, the views of the pictures, and the paths if the model has a head for them."""
        batch = self.processor(messages, tools=self.schemas or None)
        views = batch["views"][0]
        batch = batch.to(self.model.device)
        output = (yield from self._streamed(batch)) if stream else self.model.generate(**batch, **self.generation)
        written = self.processor.decode_answers(output, batch)[0]
        return written, views, Paths.of(output, steps=self.processor.trajectory_steps)

    def _streamed(self, batch: Any) -> Generator[str, None, Any]:
        """Generates in a thread of its own and yields the text as it comes, up to a tool call; stops when nobody reads on."""
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        done: dict[str, Any] = {}
        left = threading.Event()

        def stop(input_ids: Any, scores: Any, **_: Any) -> Any:
            return input_ids.new_full((len(input_ids),), left.is_set()).bool()

        def generate() -> None:
            try:
                done["output"] = self.model.generate(**batch, **self.generation, streamer=streamer, stopping_criteria=[stop])
            except BaseException as error:  # it belongs to the thread that reads
                done["error"] = error
                streamer.end()

        worker = threading.Thread(target=generate, daemon=True)
        worker.start()
        try:
            yield from before_call(streamer)
        finally:
            left.set()
            worker.join()
        if "error" in done:
            raise done["error"]
        return done["output"]


def before_call(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces of a text up to its first tool call; what may be the beginning of one waits until that is known."""
    waiting, in_call = "", False
    for piece in pieces:
        if in_call:
            continue
        waiting += piece
        shown, mark, _ = waiting.partition(CALL_OPEN)
        in_call = bool(mark)
        if not in_call:
            held = next((n for n in range(min(len(CALL_OPEN), len(shown)), 0, -1) if CALL_OPEN.startswith(shown[-n:])), 0)
            shown = shown[: len(shown) - held]
        waiting = waiting[len(shown) :]
        if shown:
            yield shown
    if waiting and not in_call:
        yield waiting


def _calls(answers: Sequence[Answer]) -> list[ToolCallAnswer | Unparsed]:
    """The calls among answers, and what was meant to be one."""
    return [
        answer
        for answer in answers
        if isinstance(answer, ToolCallAnswer) or (isinstance(answer, Unparsed) and (CALL_OPEN in answer.text or CALL_CLOSE in answer.text))
    ]


def _as_parts(answers: Sequence[Answer], written: str) -> list[dict[str, Any]]:
    """The assistant's turn as typed parts, so that what a path's tokens stand for goes along; as it was written where some of it has no
    part, but for path tokens: without their points the turns that follow could not be asked."""
    parts: list[dict[str, Any]] = []
    for answer in answers:
        if isinstance(answer, ToolCallAnswer):
            parts.append({"type": "tool_call", "name": answer.name, "arguments": answer.arguments})
        elif isinstance(answer, TextAnswer):
            parts.append(text(answer.text))
        elif isinstance(answer, TrajectoryAnswer):
            parts.append({"type": "trajectory", "points": answer.points})
        elif isinstance(answer, BoxAnswer):
            parts.append({"type": "box", "bbox_xyxy": list(answer.box.bbox_xyxy), "label": answer.box.label})
        elif isinstance(answer, NoneAnswer):
            parts.append({"type": "none"})
        else:
            return [text(written.replace(TRAJECTORY_TOKEN, "").strip())]
    return parts
