"""A tokenizer's own chat template (jinja) as the renderer, whatever it is, with supervision found from what it writes.

What must be found again in the rendered text is put into it as a sign: pictures and poses, markers that somebody merely
quoted, and the ends of every turn. Signs are made of characters from Unicode's private use area, which no template knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from vlm.jinja_template import JinjaTemplate, TemplateProblem, Turn
from vlm.pieces import Markers, Piece, markers

Span = tuple[int, int]
Found = list[tuple[int, Any]]

# Markers that the text of an answer holds on purpose, see vlm.answers.
INTERFACE = re.compile(r"</?tool_call>|<hand_traj>|<t[0-9]{1,2}>")


def chat_pieces(
    messages: Sequence[dict[str, Any]],
    tokenizer: Any,
    write: Callable[[list[dict[str, Any]]], str],
    tools: list[dict[str, Any]] | None = None,
    add_generation_prompt: bool = False,
) -> list[Piece]:
    """Pieces of a conversation as the tokenizer's chat template writes it.

    `write` gives the text of an assistant turn's parts; `tools` are JSON schemas. Raises TemplateProblem.
    """
    template, table, signs = JinjaTemplate.of(tokenizer, tools), markers(tokenizer), Signs(messages)
    turns = [
        {"role": message["role"], "content": _content(message, number, table, signs, write), "number": number}
        for number, message in enumerate(messages)
    ]
    turns, schemas = template.adapt(turns, tools)
    rendered, generated = template.render(turns, schemas, add_generation_prompt)
    text, found = signs.split(rendered)
    _check_complete(messages, found)
    if generated is not None:  # the template itself says what the model writes
        spans = [(len(signs.split(rendered[:start])[0]), len(signs.split(rendered[:end])[0])) for start, end in generated]
    else:
        answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
        whole = {thing: place for place, thing in found if isinstance(thing, Edge)}, text
        spans = [_answer_span(turns, number, schemas, template, signs, whole, table.special) for number in answers]
    return _cut(text, found, spans, table.pattern)


@dataclass(frozen=True)
class Quoted:
    """A marker that somebody wrote as text."""

    text: str


@dataclass(frozen=True)
class Edge:
    """Where the content of message `number` begins or ends."""

    number: int
    role: str
    end: bool


class Signs:
    """Signs for what must be found again in rendered text: `mark` gives the sign of a thing, `split` reads them back."""

    def __init__(self, messages: Sequence[dict[str, Any]]) -> None:
        written = json.dumps(messages, ensure_ascii=False, default=lambda _: "")
        nonce = 0
        while f"\ue000{nonce}\ue001" in written:
            nonce += 1
        self._sign = f"\ue000{nonce}\ue001{{}}\ue002"
        self._pattern = re.compile(f"\ue000{nonce}\ue001([0-9]+)\ue002")
        self._things: list[Any] = []

    def mark(self, thing: Any) -> str:
        self._things.append(thing)
        return self._sign.format(len(self._things) - 1)

    def split(self, text: str) -> tuple[str, Found]:
        """The text without signs, and (place in it, thing) for each sign, in order."""
        parts, found, end, length = [], [], 0, 0
        for match in self._pattern.finditer(text):
            parts.append(text[end : match.start()])
            length += len(parts[-1])
            found.append((length, self._things[int(match[1])]))
            end = match.end()
        return "".join([*parts, text[end:]]), found


def _content(message: dict[str, Any], number: int, table: Markers, signs: Signs, write: Callable[[list[dict[str, Any]]], str]) -> str:
    """A message's content as one string with signs; blanks around it are dropped, as most templates do."""
    role = message["role"]
    if role == "assistant":
        text = table.special.sub(lambda m: m[0] if INTERFACE.fullmatch(m[0]) else signs.mark(Quoted(m[0])), write(message["content"]))
    else:
        text, before = "", "text"
        for part in message["content"]:
            text += "\n" if before != "text" else ""  # a picture ends its line, as in LLaVA
            text += table.pattern.sub(lambda m: signs.mark(Quoted(m[0])), part["text"]) if part["type"] == "text" else signs.mark(part)
            before = part["type"]
    return signs.mark(Edge(number, role, end=False)) + text.strip() + signs.mark(Edge(number, role, end=True))


def _check_complete(messages: Sequence[dict[str, Any]], found: Found) -> None:
    """Every turn must have been written to its end, once, and the pictures and poses in their order."""
    ends = [thing.number for _, thing in found if isinstance(thing, Edge) and thing.end]
    lost = [number for number in range(len(messages)) if ends.count(number) != 1]
    media = [part for message in messages if message["role"] != "assistant" for part in message["content"] if part["type"] != "text"]
    if lost or [id(part) for part in media] != [id(thing) for _, thing in found if isinstance(thing, dict)]:
        place = f"message {lost[0]} (role {messages[lost[0]]['role']!r})" if lost else "each picture and pose"
        raise TemplateProblem(
            f"the tokenizer's chat template does not write {place} exactly once; correct it, or choose another template such as 'vicuna_v1'"
        )


def _answer_span(
    turns: list[Turn],
    number: int,
    schemas: Any,
    template: JinjaTemplate,
    signs: Signs,
    whole: tuple[dict[Edge, int], str],
    special: re.Pattern[str],
) -> Span:
    """Where an answer stands in the whole text: from the end of the prompt that would ask for it to the token that ends its turn."""
    places, text = whole
    begin, end = (Edge(turns[number]["number"], "assistant", end=is_end) for is_end in (False, True))
    close = places[end]
    start = places.get(begin, close)
    prompt = template.try_render(turns[:number], schemas, add_generation_prompt=True)
    # The template may put something of its own before the answer (a blank, an empty thought): the model has to write that too.
    if prompt is not None and text.startswith(bare := signs.split(prompt)[0]) and len(bare) <= close:
        start = len(bare)
    alone = template.try_render(turns[: number + 1], schemas)
    if alone is None:
        return start, close
    bare, found = signs.split(alone)
    own_close = next(place for place, thing in found if thing == end)
    return start, close + _turn_end(commonprefix([bare[own_close:], text[close:]]), special)


def _turn_end(tail: str, special: re.Pattern[str]) -> int:
    """How much of what follows an answer in its turn the model has to write: up to the first special token, or all but final blanks."""
    found = special.search(tail)
    return found.end() if found else len(tail.rstrip()) or len(tail)


def _cut(text: str, found: Found, spans: Iterable[Span], pattern: re.Pattern[str]) -> list[Piece]:
    """Pieces of the rendered text: cut at signs, at markers, and where supervision begins or ends."""
    spans = list(spans)
    pieces: list[Piece] = []
    things: dict[int, list[Any]] = {}
    for place, thing in found:
        things.setdefault(place, []).append(thing)
    places = sorted({0, *things, *(place for span in spans for place in span)})
    in_answer = False
    for start, end in zip(places, [*places[1:], len(text)]):
        for thing in things.get(start, ()):
            if isinstance(thing, Edge):
                in_answer = thing.role == "assistant" and not thing.end
            elif isinstance(thing, Quoted):
                _add_text(pieces, thing.text, in_answer)
            else:
                pieces.append(Piece("media", thing))
        _add_marked(pieces, text[start:end], any(first <= start < last for first, last in spans), pattern)
    return pieces


def _add_marked(pieces: list[Piece], text: str, supervised: bool, pattern: re.Pattern[str]) -> None:
    end = 0
    for match in pattern.finditer(text):
        _add_text(pieces, text[end : match.start()], supervised)
        pieces.append(Piece("special", match[0], supervised))
        end = match.end()
    _add_text(pieces, text[end:], supervised)


def _add_text(pieces: list[Piece], text: str, supervised: bool) -> None:
    if text and pieces and pieces[-1].kind == "text" and pieces[-1].supervised == supervised:
        text = pieces.pop().value + text
    if text:
        pieces.append(Piece("text", text, supervised, joined=True))
