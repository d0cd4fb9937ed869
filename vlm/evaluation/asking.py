"""A model as a function from conversations to replies, and what a text says as a reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pose_tools.views import View
from vlm.answers import BoxAnswer, NoneAnswer, TextAnswer, parse
from vlm.evaluation.scoring import Reply
from vlm.shared_prefix import check_can_share, generate_shared, share
from vlm.templates import stop_options


class Asker:
    """Greedy answers of a model, a batch at a time; `tools` are offered to it as schemas.

    With `share_prefixes` what prompts of a batch open with, their picture above all, is computed once (see `vlm.shared_prefix`). The
    answers are the same but for rounding; ValueError for a model that cannot.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        max_new_tokens: int = 64,
        share_prefixes: bool = False,
    ) -> None:
        if share_prefixes:
            check_can_share(model)
        self.model, self.processor, self.tools, self.share_prefixes = model.eval(), processor, tools, share_prefixes
        self.generation: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
        self.generation |= stop_options(processor.template, processor.tokenizer)

    def texts(self, conversations: Sequence[list[dict[str, Any]]]) -> tuple[list[str], list[list[View]]]:
        """The new text of every conversation, and the views of its pictures."""
        texts, views, _ = self.generate(conversations)
        return texts, views

    def generate(self, conversations: Sequence[list[dict[str, Any]]], **more: Any) -> tuple[list[str], list[list[View]], Any]:
        """As `texts`, with the model's whole output; `more` goes to its `generate`."""
        if self.share_prefixes:
            prompts = share(self.processor, conversations, self.tools)
            with torch.inference_mode():
                output = generate_shared(self.model, prompts, **self.generation, **more)
            return self.processor.decode_answers(output, prompts.batch), prompts.views, output
        batch = self.processor(list(conversations), tools=self.tools)
        moved = batch.to(self.model.device)
        with torch.inference_mode():
            output = self.model.generate(**moved, **self.generation, **more)
        return self.processor.decode_answers(output, moved), batch["views"], output

    def __call__(self, conversations: Sequence[list[dict[str, Any]]]) -> list[Reply]:
        """One reply per conversation, geometry in the pixels of its first picture."""
        texts, views = self.texts(conversations)
        return [reply_of(text, view[0], self.processor.dialect) for text, view in zip(texts, views, strict=True)]


def reply_of(text: str, view: View, dialect: str) -> Reply:
    """What a model's text says, boxes in the original pixels of `view`'s picture. Text that cannot be read in full, or that
    asks for a tool where none was run, is an invalid reply."""
    answers = parse(text, view, dialect)
    boxes = [answer.box for answer in answers if isinstance(answer, BoxAnswer)]
    words = [answer.text for answer in answers if isinstance(answer, TextAnswer)]
    return Reply(
        none=any(isinstance(answer, NoneAnswer) for answer in answers),
        boxes=[list(box.bbox_xyxy) for box in boxes],
        labels=[box.label for box in boxes],
        text=" ".join(words) or None,
        valid=all(isinstance(answer, (BoxAnswer, NoneAnswer, TextAnswer)) for answer in answers),
        output=text,
    )
