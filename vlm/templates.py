"""Conversations → Pieces, by the template a model was trained with. `encode` makes token ids and labels of them.

chat                 the tokenizer's own chat template, any (see `vlm.chat_template`)
vlm4hoi              VLM4HOI in training; `vlm4hoi_inference` as its evaluation and demo ask, with two BOS
vicuna_v1            HandsOnVLM and the LLaVA family; llava_v0 is what HandsOnVLM's own evaluation asked with, llava_v1 what LITA's did
llava_v0, llava_v1

Answers are supervised with the token that ends their turn; nothing else is, tool results never. Text is only ever text: a
"<image>" or "</s>" in a question is not a picture or an end (see `vlm.pieces`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from data.sample import assistant, user, validate_messages
from pose_tools.tool import schemas
from pose_tools.views import View
from vlm import answers
from vlm.chat_template import INTERFACE, chat_pieces
from vlm.checkpoints import handsonvlm_strings as vicuna
from vlm.checkpoints import vlm4hoi_strings as vlm4hoi
from vlm.jinja_template import RESULT, TemplateProblem, tools_prompt
from vlm.pieces import Piece, encode

__all__ = ["READ_ANSWER", "STOP_STRINGS", "TEMPLATES", "Piece", "TemplateProblem", "encode", "render", "stop_options"]

Part = dict[str, Any]
Rounds = list[tuple[list[Part], list[Part] | None]]
Write = Callable[[list[Part]], str]

STOP_STRINGS: dict[str, tuple[str, ...]] = {"llava_v0": (vicuna.LLAVA_V0_END,)}
"""Texts that end an answer, for templates without an end token."""

READ_ANSWER: dict[str, Callable[[str], str]] = {"vlm4hoi_inference": vlm4hoi.published_answer, "llava_v0": vicuna.llava_v0_answer}
"""What is taken of a decoded text for the answer, where it is not all of it."""


def stop_options(template: str, tokenizer: Any) -> dict[str, Any]:
    """Arguments of `generate` that end an answer where `template` ends it by words; none for templates with an end token."""
    stops = STOP_STRINGS.get(template)
    return {"stop_strings": list(stops), "tokenizer": tokenizer} if stops else {}


def render(
    messages: Sequence[dict[str, Any]],
    template: str,
    *,
    tokenizer: Any = None,
    tools: Sequence[str | dict[str, Any]] | None = None,
    views: Sequence[View] | None = None,
    dialect: str = "norm1000",
    add_generation_prompt: bool = False,
) -> list[Piece]:
    """The pieces of a conversation (see `data.sample`) as `template` writes it.

    `tokenizer` is needed by "chat", and names the BOS and EOS of the others. `tools`: names from `pose_tools.tool.TOOLS`, or JSON schemas.
    `views`: of the pictures, in order; boxes in answers are in the first. `add_generation_prompt` opens the answer of "chat"; the prompts
    of the others end there anyway. Raises ValueError (SampleError, TemplateProblem) for what cannot be written.
    """
    if template not in TEMPLATES:
        raise ValueError(f"unknown template {template!r}, expected one of {', '.join(TEMPLATES)}")
    validate_messages(messages)
    offered = [schemas([tool])[0] if isinstance(tool, str) else tool for tool in tools or ()]
    write = partial(answers.write, view=views[0] if views else None, dialect=dialect)
    if template == "chat":
        return chat_pieces(messages, tokenizer, write, offered, add_generation_prompt)
    out = _Pieces(tokenizer)
    TEMPLATES[template](out, *_rounds(messages, offered), write)
    return out.pieces


def template_words(template: str) -> str:
    """What `template` itself writes around a picture, a question and an answer: words that a tokenizer trained for it should know."""
    if template == "chat":  # its marks are tokens
        return ""
    asked = [user({"type": "image", "image": "?"}, "?"), assistant("?")]
    return " ".join(piece.value for piece in render(asked, template) if piece.kind == "text")


def _rounds(messages: Sequence[dict[str, Any]], tools: list[dict[str, Any]]) -> tuple[str, Rounds]:
    """The system words, and (question, answer) in turn; tool results are questions, the last answer may be missing (None)."""
    system = [tools_prompt(tools)] if tools else []
    rounds: Rounds = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system":
            system.insert(0, "".join(part["text"] for part in content))
        elif role == "assistant":
            if not rounds or rounds[-1][1] is not None:
                raise TemplateProblem("an answer without a question before it: in this template user and assistant take turns")
            rounds[-1] = (rounds[-1][0], content)
        else:
            if role == "tool":
                texts = "".join(part["text"] for part in content if part["type"] == "text")
                content = [{"type": "text", "text": RESULT.format(texts)}, *(part for part in content if part["type"] != "text")]
            if rounds and rounds[-1][1] is None:
                content = [*rounds.pop()[0], *content]
            rounds.append((content, None))
    return "\n\n".join(system), rounds


class _Pieces:
    """Collects pieces: text grows while nothing comes between and supervision stays; behind a marker or a picture a new string begins."""

    def __init__(self, tokenizer: Any) -> None:
        self.pieces: list[Piece] = []
        self._bos = "<s>" if tokenizer is None else tokenizer.bos_token
        self._eos = "</s>" if tokenizer is None else tokenizer.eos_token

    def text(self, value: str, supervised: bool = False, own: bool = False) -> None:
        """`own` begins a new string even behind text."""
        last = self.pieces[-1] if self.pieces else None
        joined = False
        if last is not None and last.kind == "text" and not own:
            joined = True
            if last.supervised == supervised:
                joined, value = self.pieces.pop().joined, last.value + value
        self.pieces.append(Piece("text", value, supervised, joined))

    def special(self, value: str | None, supervised: bool = False, strips: bool = False) -> None:
        if value:
            self.pieces.append(Piece("special", value, supervised, strips=strips))

    def bos(self) -> None:
        self.special(self._bos)

    def eos(self) -> None:
        self.special(self._eos, supervised=True)

    def question(self, parts: list[Part], before: str = "", after: str = "") -> None:
        """A question's parts, with the words that its template puts before and after a picture; poses stand alone.

        Without such words before it, a picture stands where it was written: the blanks before it are kept.
        """
        for part, following in zip(parts, [*parts[1:], None]):
            if part["type"] == "text":
                last = self.pieces[-1] if self.pieces else None
                words = part["text"].strip()
                if following is not None and following["type"] in ("image", "video") and not before:
                    words = part["text"].lstrip()
                apart = last is not None and last.kind == "text" and not last.value[-1:].isspace()
                self.text(f" {words}" if apart else words)
            else:
                if part["type"] != "pose" and before:
                    self.text(before)
                self.pieces.append(Piece("media", part))
                self.text(after if part["type"] != "pose" or not before else " ")

    def answer(self, text: str, supervised: bool = True, own: bool = False) -> None:
        """An answer's text, with the markers it holds on purpose; white space beside the added ones of HandsOnVLM is dropped."""
        end = 0
        for match in INTERFACE.finditer(text):
            if match.start() > end:
                self.text(text[end : match.start()], supervised, own)
            self.special(match[0], supervised, strips="tool_call" not in match[0])
            end, own = match.end(), False
        if end < len(text):
            self.text(text[end:], supervised, own)


def _vlm4hoi(out: _Pieces, system: str, rounds: Rounds, write: Write) -> None:
    before, after = vlm4hoi.QUESTION_BEFORE, vlm4hoi.TRAINING_QUESTION_AFTER
    for number, (question, answer) in enumerate(rounds):
        out.bos()
        out.text(before + (vlm4hoi.SYSTEM.format(system) if system and number == 0 else ""))
        out.question(question, vlm4hoi.IMAGE_BEFORE, vlm4hoi.IMAGE_AFTER)
        out.text(after)
        if answer is not None:
            out.answer(write(answer), own=True)  # the answer is tokenised apart from its question
            out.eos()


def _vlm4hoi_inference(out: _Pieces, system: str, rounds: Rounds, write: Write) -> None:
    """As the demo asks: its first text already starts with BOS and is given another; answers are read back, never learnt."""
    out.bos()
    for number, (question, answer) in enumerate(rounds):
        out.bos()
        out.text(vlm4hoi.QUESTION_BEFORE + (vlm4hoi.SYSTEM.format(system) if system and number == 0 else ""))
        out.question(question, vlm4hoi.IMAGE_BEFORE, vlm4hoi.IMAGE_AFTER)
        out.text(vlm4hoi.QUESTION_AFTER)
        if answer is not None:
            out.answer(write(answer), supervised=False)


def _vicuna_v1(out: _Pieces, system: str, rounds: Rounds, write: Write, default: str = vicuna.VICUNA_V1_SYSTEM) -> None:
    out.bos()
    out.text(_with_default(default, system) + " ")
    for question, answer in rounds:
        out.text(vicuna.VICUNA_V1_USER)
        out.question(question, after=vicuna.IMAGE_AFTER)
        out.text(vicuna.VICUNA_V1_ASSISTANT)
        if answer is not None:
            out.answer(" " + write(answer).strip())
            out.eos()


def _llava_v0(out: _Pieces, system: str, rounds: Rounds, write: Write) -> None:
    out.bos()
    out.text(_with_default(vicuna.LLAVA_SYSTEM, system) + vicuna.LLAVA_V0_END)
    for question, answer in rounds:
        out.text(vicuna.LLAVA_V0_USER)
        out.question(question, after=vicuna.IMAGE_AFTER)
        out.text(vicuna.LLAVA_V0_END + vicuna.LLAVA_V0_ASSISTANT)
        if answer is not None:
            out.answer(" " + write(answer).strip())
            out.text(vicuna.LLAVA_V0_END, supervised=True)


def _with_default(default: str, system: str) -> str:
    return f"{default} {system}" if system else default


TEMPLATES: dict[str, Any] = {
    "chat": chat_pieces,
    "vlm4hoi": _vlm4hoi,
    "vlm4hoi_inference": _vlm4hoi_inference,
    "vicuna_v1": _vicuna_v1,
    "llava_v0": _llava_v0,
    "llava_v1": partial(_vicuna_v1, default=vicuna.LLAVA_SYSTEM),
}
