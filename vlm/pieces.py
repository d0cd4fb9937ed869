"""Pieces of a rendered conversation, and how they become token ids and labels.

A text piece is plain text: no marker of the vocabulary is ever recognised in it, whoever wrote it. Markers that mean something
are special pieces, pictures and poses are media pieces; only a renderer makes those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

from vlm.packing import IGNORED

PICTURE_ID = -200
"""Stands for a picture in the ids of the LLaVA family."""


@dataclass(frozen=True)
class Piece:
    """One run of a rendered conversation.

    `value`: the text, the marker's text, or the content part of the picture or pose. `supervised`: the model learns to write it.
    `joined`: a text that continues what stands before it; otherwise it is tokenised as a string of its own (sentencepiece then
    gives it a word start). `strips`: a marker beside which blanks are dropped, as the older Llama tokenizers did.
    """

    kind: Literal["text", "media", "special"]
    value: Any
    supervised: bool = False
    joined: bool = False
    strips: bool = False


Lead = tuple[str, list[int]]


@dataclass(frozen=True)
class Markers:
    """The markers of a vocabulary: `pattern` finds them in a text, the sets name those that swallow blanks on a side.

    Markers are the special tokens and the added ones in angle brackets; other added tokens (numbers, words) are text.
    `after_marker`, `after_text`: what is put before a text behind a marker or behind a text, with its ids (see `_encode_after`).
    """

    size: int
    pattern: re.Pattern[str]
    special: re.Pattern[str]
    strip_left: frozenset[str]
    strip_right: frozenset[str]
    after_marker: Lead | None
    after_text: Lead


_MARKERS: WeakKeyDictionary[Any, Markers] = WeakKeyDictionary()


def markers(tokenizer: Any) -> Markers:
    """The markers of a tokenizer; kept per tokenizer, and made anew when tokens were added to it."""
    found = _MARKERS.get(tokenizer)
    if found is None or found.size != len(tokenizer):
        added = [token for token in tokenizer.added_tokens_decoder.values() if token.special or re.fullmatch(r"<\S+>", token.content)]
        left = frozenset(token.content for token in added if token.lstrip)
        right = frozenset(token.content for token in added if token.rstrip)
        names = [token.content for token in added]
        special = {token.content for token in added if token.special}
        anchor = next((name for name in names if name in special and name not in left | right), None)
        marker_lead, text_lead = _leads(anchor, tokenizer)
        found = _MARKERS[tokenizer] = Markers(len(tokenizer), any_of(names), any_of(special), left, right, marker_lead, text_lead)
    return found


def _leads(anchor: str | None, tokenizer: Any) -> tuple[Lead | None, Lead]:
    """Behind a marker some tokenizers start a word, others do not; behind a line break none does."""
    line: Lead = ("\n", tokenizer.encode("\n", add_special_tokens=False))
    if anchor is None:
        return None, line
    marker: Lead = (anchor, tokenizer.encode(anchor, add_special_tokens=False))
    return marker, marker if _ids_after(marker, "a", tokenizer) == _ids_after(line, "a", tokenizer) else line


def any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the words, the longest first; nothing if there are none."""
    return re.compile("|".join(map(re.escape, sorted(words, key=lambda word: (-len(word), word)))) or r"(?!)")


def encode(
    pieces: Iterable[Piece], tokenizer: Any, media_ids: Callable[[Piece], list[int]] | None = None
) -> tuple[list[int], list[int]]:
    """(input_ids, labels), lists of equal length; labels are -100 where nothing is learnt.

    `media_ids(piece)` gives the slot ids of a media piece; without it a picture or clip is the one id -200 that the LLaVA family writes
    before a picture's tokens are put in (`PICTURE_ID`), which has no row in any model. A special piece that the vocabulary lacks is
    written as text. Raises ValueError if there is a pose and no `media_ids`.
    """
    input_ids: list[int] = []
    labels: list[int] = []
    before: str | None = None
    table = markers(tokenizer)
    for piece in _strip_blanks(_known(pieces, tokenizer), table):
        if piece.kind == "media":
            ids = list((media_ids or _picture_id)(piece))
        elif piece.kind == "special":
            ids = [tokenizer.convert_tokens_to_ids(piece.value)]
        else:
            ids = _encode_text(piece.value, tokenizer, table, before if piece.joined else None)
        input_ids += ids
        labels += ids if piece.supervised and piece.kind != "media" else [IGNORED] * len(ids)
        before = piece.kind
    return input_ids, labels


def _picture_id(piece: Piece) -> list[int]:
    if piece.value["type"] not in ("image", "video"):
        raise ValueError(f"a part of type {piece.value['type']!r} has no ids: give encode the function media_ids(piece)")
    return [PICTURE_ID]


def _known(pieces: Iterable[Piece], tokenizer: Any) -> Iterator[Piece]:
    """The pieces, with specials that the vocabulary lacks as text inside the text around them."""
    follows_unknown = False
    for piece in pieces:
        if piece.kind == "special" and not is_token(piece.value, tokenizer):
            yield replace(piece, kind="text", joined=True, strips=False)
            follows_unknown = True
        else:
            yield replace(piece, joined=True) if follows_unknown and piece.kind == "text" else piece
            follows_unknown = False


def is_token(text: str, tokenizer: Any) -> bool:
    """Whether `text` is one token of the vocabulary."""
    found = tokenizer.convert_tokens_to_ids(text)
    return found is not None and (found != tokenizer.unk_token_id or text == tokenizer.unk_token)


def _strip_blanks(pieces: Iterable[Piece], table: Markers) -> list[Piece]:
    """Drops blanks beside the markers that swallow them, and texts that are empty."""
    kept: list[Piece] = []
    for piece in pieces:
        if piece.kind == "text":
            last = kept[-1] if kept else None
            if last is not None and last.kind == "special" and (last.strips or last.value in table.strip_right):
                piece = replace(piece, value=piece.value.lstrip())
            if not piece.value:
                continue
        elif piece.kind == "special" and (piece.strips or piece.value in table.strip_left):
            while kept and kept[-1].kind == "text":
                last = kept.pop()
                if last.value.rstrip():
                    kept.append(replace(last, value=last.value.rstrip()))
                    break
        kept.append(piece)
    return kept


def _encode_text(text: str, tokenizer: Any, table: Markers, before: str | None) -> list[int]:
    """Ids of a plain text; markers in it are cut in two, so that the tokenizer does not see them.

    `before`: what the text continues: "text", another kind of piece, or None for a string of its own.
    """
    ids: list[int] = []
    start = 0
    while start < len(text):
        found = table.pattern.search(text, start)
        # A marker of one character cannot be cut; it is a letter of the vocabulary like any other.
        end = found.start() + 1 if found else len(text)
        ids += _encode_after(text[start:end], tokenizer, table, before)
        start, before = end, "text"
    return ids


def _encode_after(text: str, tokenizer: Any, table: Markers, before: str | None) -> list[int]:
    """Ids of a text without markers, as the tokenizer would give them behind another text, behind a marker or picture, or alone.

    Tokenizers take whole strings only, and some put a blank before the first word. So something that does not grow together with
    the text is put before it, and its ids are dropped again.
    """
    lead = None if before is None else table.after_text if before == "text" else table.after_marker
    ids = _ids_after(lead, text, tokenizer) if lead is not None else None
    return tokenizer.encode(text, add_special_tokens=False) if ids is None else ids


def _ids_after(lead: Lead, text: str, tokenizer: Any) -> list[int] | None:
    """The ids of `text` behind `lead`, or None where the two grew together."""
    words, lead_ids = lead
    ids = tokenizer.encode(words + text, add_special_tokens=False)
    return ids[len(lead_ids) :] if ids[: len(lead_ids)] == lead_ids else None
