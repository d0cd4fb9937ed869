"""EPIC-KITCHENS conversations as HandsOnVLM was trained and evaluated with them.

narration   training: one of four forms, of one or two turns, about the narrated action
reasoning   training, and the task RBHP: a question of the user's question file, answered with the path
action      the task VHP: the action question, answered with the path alone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data import handsonvlm_strings as strings
from data.epic_kitchens import Action, EpicError
from data.json_file import read_json
from data.sample import assistant, user

Wording = Literal["narration", "reasoning", "action"]
WORDINGS: tuple[Wording, ...] = ("narration", "reasoning", "action")
Part = dict[str, Any]
Turns = list[dict[str, Any]]


def narration_turns(action: Action, video: Part, path: Part, rng: np.random.Generator, form: int | None = None) -> Turns:
    """A training conversation about `action`, whose narration may be a paraphrase.

    `form`, by default drawn evenly: 0 the action is asked and answered with the path; 1 the path is asked for without words about the
    action; 2 the action is predicted first, then its path; 3 the path first, then the action. `path`: a trajectory part. Of an action
    without a narration only 1 can be asked.
    """
    form = int(rng.integers(4)) if form is None else form
    form = form if action.narration.strip() else 1
    general, predicted = _pick(strings.GENERAL_QUESTIONS, rng), _pick(strings.PREDICTION_QUESTIONS, rng)
    said = _pick(strings.PREDICTION_ANSWERS, rng).format(action=action.narration, noun=action.noun)
    following = with_path(_pick(strings.PATH_ANSWERS, rng), path)
    if form == 0:
        answer = with_path(_pick(strings.ACTION_ANSWERS, rng).replace("{}", action.narration, 1), path)
        return [user(video, action_question(action, rng)), assistant(*answer)]
    if form == 1:
        return [user(video, general), assistant(*following)]
    if form == 2:
        return [user(video, predicted), assistant(said), user(_pick(strings.DO_THIS_QUESTIONS, rng)), assistant(*following)]
    if form == 3:
        return [user(video, general), assistant(*following), user(predicted), assistant(said)]
    raise ValueError(f"form {form}, expected 0, 1, 2 or 3")


def question_turns(question: str, video: Part, path: Part, rng: np.random.Generator) -> Turns:
    """A question of any words, answered with the path (RBHP; VHP with `action_question`)."""
    return [user(video, question), assistant(*with_path(_pick(strings.PATH_ANSWERS, rng), path))]


def action_question(action: Action, rng: np.random.Generator) -> str:
    """One of the questions about the narrated action, or about what comes next where nothing is narrated."""
    if not action.narration.strip():
        return _pick(strings.GENERAL_QUESTIONS, rng)
    return _pick(strings.ACTION_QUESTIONS, rng).format(action.narration)


def with_path(template: str, path: Part) -> tuple[str | Part, ...]:
    """The parts of an answer: what stands before `{}`, the path, what stands behind it."""
    before, _, after = template.rpartition("{}")
    return tuple(part for part in (before, path, after) if part)


def read_paraphrases(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Narration → paraphrases, of a file of lists and of names of other narrations in it, which are followed.

    Raises EpicError for a file of another kind, or a name that leads nowhere.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise EpicError(f"{path}: no json file of paraphrases ({error})") from None
    if not isinstance(content, dict):
        raise EpicError(f"{path}: holds a {type(content).__name__}, expected an object of narration → list of paraphrases")
    return {narration: _followed(narration, content, path) for narration in content}


def _followed(narration: str, content: Mapping[str, Any], path: str | Path) -> tuple[str, ...]:
    value, seen = content[narration], {narration}
    while isinstance(value, str):
        if value in seen or value not in content:
            raise EpicError(f"{path}: {narration!r} leads to {value!r}, which is no other narration of the file; give it a list")
        seen.add(value)
        value = content[value]
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise EpicError(f"{path}: {narration!r} has {value!r}, expected a list of paraphrases")
    return tuple(value)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
