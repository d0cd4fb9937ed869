"""What a jinja chat template can do, found by trying it, and conversations put into a form that it takes."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from pose_tools.user_error import UserError

Turn = dict[str, Any]

TOOLS_PROMPT = """\
You can use tools. Their JSON schemas:
<tools>
{}
</tools>
To use one, answer with <tool_call>{{"name": its name, "arguments": an object with its arguments}}</tool_call>"""
RESULT = "<tool_response>\n{}\n</tool_response>"
# What a template raises on turns that it does not take; its own raise_exception makes a TemplateError.
REFUSALS = (TemplateError, TypeError, ValueError, KeyError, AttributeError)


class TemplateProblem(UserError):
    """The tokenizer's chat template cannot write this conversation; the message says why and what to do."""


def tools_prompt(schemas: list[dict[str, Any]]) -> str:
    """The words that offer tools to a model whose template has none for it (Hermes form)."""
    return TOOLS_PROMPT.format("\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas))


def with_system(turns: list[Turn], words: str) -> list[Turn]:
    """The turns with `words` at the end of the system turn, which is made if there is none."""
    if turns and turns[0]["role"] == "system":
        return [turns[0] | {"content": f"{turns[0]['content']}\n\n{words}"}, *turns[1:]]
    return [{"role": "system", "content": words}, *turns]


def results_as_questions(turns: list[Turn]) -> list[Turn]:
    """Tool turns as user turns; user turns in a row become one, for templates that want roles to alternate."""
    merged: list[Turn] = []
    for turn in turns:
        if turn["role"] == "tool":
            turn = turn | {"role": "user", "content": RESULT.format(turn["content"])}
        if merged and merged[-1]["role"] == turn["role"] == "user":
            turn = turn | {"content": f"{merged.pop()['content']}\n{turn['content']}"}
        merged.append(turn)
    return merged


def system_in_question(turns: list[Turn]) -> list[Turn]:
    """The system turn's words put before those of the first user turn."""
    if len(turns) > 1 and turns[0]["role"] == "system" and turns[1]["role"] == "user":
        return [turns[1] | {"content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}, *turns[2:]]
    return turns


@lru_cache(maxsize=32)
def _template(source: str, special_tokens: str) -> JinjaTemplate:
    return JinjaTemplate(source, json.loads(special_tokens))


class JinjaTemplate:
    """A chat template with its tokenizer's special tokens, and what trying it has shown.

    `as_parts`: content goes in as a list of parts. `system`, `tool`: it writes turns of these roles. `tools`: it offers tools in the form
    that answers are read in (`<tool_call>`). `marks_answers`: it says itself, by `{% generation %}`, what the model writes.
    """

    @classmethod
    def of(cls, tokenizer: Any, tools: Any = None) -> JinjaTemplate:
        """The tokenizer's template (the one for tools, if it has several). Raises TemplateProblem if there is none."""
        if tokenizer is None or not getattr(tokenizer, "chat_template", None):
            raise TemplateProblem("the tokenizer has no chat template: set its chat_template, or choose a template such as 'vicuna_v1'")
        return _template(tokenizer.get_chat_template(None, tools), json.dumps(tokenizer.special_tokens_map, default=str))

    def __init__(self, source: str, special_tokens: dict[str, Any]) -> None:
        self.source, self.special_tokens = source, special_tokens
        self.marks_answers = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        question, answer = {"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}
        self.as_parts = False
        self.as_parts = not self._writes([question])
        self.system = self._writes([{"role": "system", "content": "SYSTEM"}, question])
        self.tool = self._writes([question, answer, {"role": "tool", "content": "RESULT"}])
        self.tools = "tools" in source and ("<tools>" in source or "<tool_call>" in source)

    def _writes(self, turns: list[Turn]) -> bool:
        rendered = self.try_render(turns)
        return rendered is not None and all(turn["content"] in rendered for turn in turns)

    def adapt(self, turns: list[Turn], tools: list[dict[str, Any]] | None) -> tuple[list[Turn], list[dict[str, Any]] | None]:
        """Turns and tools as this template takes them; what it has no form for goes into the turns it has."""
        if tools and not self.tools:
            turns, tools = with_system(turns, tools_prompt(tools)), None
        if not self.tool:
            turns = results_as_questions(turns)
        return (turns if self.system else system_in_question(turns)), tools or None

    def render(self, turns: list[Turn], tools: Any = None, add_generation_prompt: bool = False) -> tuple[str, list[tuple[int, int]] | None]:
        """The text, and the spans of what the model writes where the template marks them. Raises TemplateProblem."""
        try:
            return self._render(turns, tools, add_generation_prompt, self.marks_answers)
        except REFUSALS as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise TemplateProblem(f"the tokenizer's chat template refuses this conversation ({roles}): {error}") from error

    def try_render(self, turns: list[Turn], tools: Any = None, add_generation_prompt: bool = False) -> str | None:
        """The text, or None where the template refuses."""
        try:
            return self._render(turns, tools, add_generation_prompt, False)[0]
        except REFUSALS:
            return None

    def _render(self, turns: list[Turn], tools: Any, add_generation_prompt: bool, track: bool) -> tuple[str, list[tuple[int, int]] | None]:
        from transformers.utils.chat_template_utils import render_jinja_template

        content = (lambda text: [{"type": "text", "text": text}]) if self.as_parts else (lambda text: text)
        (text,), spans = render_jinja_template(
            conversations=[[{"role": turn["role"], "content": content(turn["content"])} for turn in turns]],
            tools=tools,
            chat_template=self.source,
            add_generation_prompt=add_generation_prompt,
            return_assistant_tokens_mask=track,
            **self.special_tokens,
        )
        return text, spans[0] if track else None
