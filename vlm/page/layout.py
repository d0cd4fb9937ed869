"""The Gradio page. Everything a visitor does belongs to their session; the model is all that is shared, and one question at a time
goes to it."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np

from pose_tools.image_io import write_image
from pose_tools.render_path import CLIP_FPS
from pose_tools.user_error import UserError
from pose_tools.video import write_video
from vlm.answers import Answer
from vlm.examples import Example
from vlm.medium import Limits, Medium, frames_of_whole, open_medium
from vlm.medium_question import MOST_FUTURES
from vlm.page import view
from vlm.page.conversation import Reply, Session, Settings, reply
from vlm.show import drawn, drawn_clip

logger = logging.getLogger(__name__)

LIMITS = Limits(pixels=24_000_000, seconds=60, megabytes=64)
"""What visitors may upload."""
VISITORS, WAITING, FORGET = 8, 24, 3600
"""Sessions kept at a time, questions that may wait, seconds until a session and its files are forgotten."""
LONGEST = 1600
"""Longer side of the pictures that are shown, pixels."""
SUFFIXES = [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi"]
WELCOME = "### What do you want to know?\nAsk where a hand is, what it holds, or — of a clip — where it will go."
OURS = "Something went wrong in the program, not in your question: its terminal says what; please ask again."
TITLE = """<div class="title"><h1>Ask about hands</h1>
<p>Open a picture or a short clip and ask where hands are, what they hold and where they will go. Nothing leaves this computer.</p></div>"""

# The question box while an answer is written, and when it waits for a question.
ANSWERING = gr.update(submit_btn=False, stop_btn=True)
READY = gr.update(submit_btn=True, stop_btn=False)

Outputs = tuple[Any, ...]


@dataclass(frozen=True)
class Model:
    """What answers: `model` and `processor`, and `about`, a line on it for people."""

    model: Any
    processor: Any
    about: str


class Files:
    """Pictures and clips that the page shows, in a folder that it may serve; each under a name of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)

    def picture(self, image: np.ndarray) -> str:
        path, shrink = self._new(".jpg"), min(1.0, LONGEST / max(image.shape[:2]))
        size = (max(1, round(image.shape[1] * shrink)), max(1, round(image.shape[0] * shrink)))
        write_image(path, cv2.resize(image, size, interpolation=cv2.INTER_AREA) if shrink < 1 else image)
        return str(path)

    def clip(self, frames: Sequence[np.ndarray]) -> str:
        path = self._new(".mp4")
        write_video(path, frames, CLIP_FPS)
        return str(path)

    def _new(self, suffix: str) -> Path:
        return self.folder / f"{uuid.uuid4().hex}{suffix}"


class Page:
    """The page's events; each takes and gives the visitor's Session, and changes nothing else."""

    def __init__(self, model: Model, examples: Sequence[Example], files: Files) -> None:
        self.model, self.examples, self.files = model, list(examples), files

    def open_file(self, path: str | None, session: Session) -> Outputs:
        """A file of the visitor's becomes the medium; what is wrong with it stands on the page, and the old medium stays."""
        if not path:
            return _keeping(session, "")
        try:
            return self._opened(open_medium(path, LIMITS, whole=frames_of_whole(self.model.model.config)))
        except Exception as error:
            words = _one_sentence(error).replace(str(path), Path(path).name)  # where an upload lies says nothing to a visitor
            return _keeping(session, f"⚠️ {words}")

    def open_example(self, number: float, session: Session) -> Outputs:
        """An example becomes the medium, and its question stands in the box."""
        try:
            example = self.examples[int(number)]
            return (*self._opened(example.open()), example.ask)
        except Exception as error:
            words = "there is no such example" if isinstance(error, IndexError) else _one_sentence(error)
            return (*_keeping(session, f"⚠️ {words}"), gr.skip())

    def clear(self, session: Session) -> Outputs:
        """Forgets what was said; the medium stays open."""
        return _keeping(session, "") if session.medium is None else self._opened(session.medium)

    def ask(self, question: str, tools: bool, futures: float, history: bool, session: Session, chat: list) -> Iterator[Outputs]:
        """The answer as it grows, then with tools, drawings and details. Outputs: session, chat, stage, clip, details, question box."""
        question = (question or "").strip()
        asked = (*(chat or ()), *([view.said(question)] if question else ()))
        try:
            settings = Settings(bool(tools), int(np.clip(futures or 1, 1, MOST_FUTURES)), bool(history))
            yield (gr.skip(), [*asked, view.writing("")], *[gr.skip()] * 3, ANSWERING)
            last: Reply | None = None
            for last in reply(self.model.model, self.model.processor, session, question, settings):
                if last.turn is None:
                    yield (gr.skip(), [*asked, view.writing(last.text)], *[gr.skip()] * 4)
            assert last is not None and last.turn is not None and last.medium is not None
            said = view.answered(last.turn, last.medium, alone=last.alone, save=self.files.picture)
            shown = self._drawn(last.medium, last.turn.answers)
            yield (last.session, [*asked, *said], *shown, view.details(last.turn, last.medium), READY)
        except Exception as error:
            yield (gr.skip(), [*asked, view.problem(_one_sentence(error))], *[gr.skip()] * 3, READY)

    def ask_from_box(self, question: str, *settings: Any) -> Iterator[Outputs]:
        """As `ask`, and empties the question box; a click on a suggested question leaves what stands there."""
        outputs = self.ask(question, *settings)
        first = next(outputs)
        yield (*first[:-1], "")  # before the buttons change: beside other properties, Gradio 6.31 drops a value that it has set before
        yield first
        yield from outputs

    def _drawn(self, medium: Medium, answers: Sequence[Answer]) -> tuple[str, Any]:
        """The picture and, of a clip, the clip with the answers drawn on them."""
        return self.files.picture(drawn(medium, answers)), self.files.clip(drawn_clip(medium, answers)) if medium.is_clip else gr.skip()

    def _opened(self, medium: Medium) -> Outputs:
        """Outputs for a new medium: session, stage, clip, chat, details, file field, note, suggested questions."""
        picture, clip = self._drawn(medium, [])
        width, height = medium.size
        what = f"last of {len(medium.frames)} frames that are looked at" if medium.is_clip else "picture"
        note = " · ".join([medium.name, f"{what}, {width} × {height} pixels", *medium.notes])
        player = gr.update(value=clip, visible=True) if medium.is_clip else gr.update(value=None, visible=False)
        return (Session(medium), picture, player, [], None, None, note, *view.suggestions(medium))


def _keeping(session: Session, note: str) -> Outputs:
    """Outputs of `_opened` when nothing new is opened; `note` says why."""
    return (session, *[gr.skip()] * 4, None, note, *[gr.skip()] * len(view.PICTURE_QUESTIONS))


def _one_sentence(error: Exception) -> str:
    """What a visitor reads of an error: its own words where they are meant for people, else that it is ours."""
    if isinstance(error, UserError):
        return str(error).split("\n")[0]
    logger.exception("the page could not answer")
    return OURS


def build(page: Page) -> gr.Blocks:
    """The page as Gradio blocks; `vlm.commands.demo` serves it."""
    with gr.Blocks(title="handvlm", analytics_enabled=False, delete_cache=(FORGET, FORGET), fill_width=True) as blocks:
        session = gr.State(Session(), time_to_live=FORGET)
        gr.HTML(TITLE)
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=320):
                stage, clip, note, file, gallery = _medium_side(page)
            with gr.Column(scale=5, min_width=320):
                chat, chips, question = _chat_side()
                with gr.Accordion("Settings", open=False):
                    tools = gr.Checkbox(True, label="Tools", info="The hand detector looks along and may be called.")
                    history = gr.Checkbox(True, label="Remember", info="Earlier questions and answers go along.")
                    futures = gr.Slider(1, MOST_FUTURES, 5, step=1, label="Futures", info="So many possible paths of a clip are drawn.")
                    gr.Markdown(page.model.about)
                with gr.Accordion("Details", open=False):
                    details = gr.JSON(show_label=False, elem_id="details", max_height=360)
        picked = gr.Number(0, visible=False, precision=0)
        opened = [session, stage, clip, chat, details, file, note, *chips]
        parts = Parts(session, stage, clip, chat, details, question, file, gallery, picked, tools, futures, history, chips)
        _wire(page, blocks, opened, parts)
    return blocks


def _medium_side(page: Page) -> tuple[Any, ...]:
    """What is asked about, and what may be."""
    buttons: list[Any] = ["download", "fullscreen"]
    stage = gr.Image(label="Picture", show_label=False, interactive=False, buttons=buttons, elem_id="stage")
    clip = gr.Video(
        label="Clip", show_label=False, interactive=False, autoplay=True, loop=True, visible=False, buttons=["download"], elem_id="clip"
    )
    note = gr.Markdown("", elem_id="note")
    with gr.Row(equal_height=True):
        with gr.Column(scale=2, min_width=220):
            file = gr.File(label="Your picture or clip", file_types=SUFFIXES, type="filepath", height=150, elem_id="file")
        with gr.Column(scale=3, min_width=280):
            gallery = gr.Gallery(
                [(str(example.thumbnail), example.name.replace("_", " ")) for example in page.examples],
                label="Examples",
                show_label=False,
                columns=4,
                height=150,
                allow_preview=False,
                object_fit="cover",
                buttons=[],
                interactive=False,
                elem_id="examples",
                visible=bool(page.examples),
            )
    return stage, clip, note, file, gallery


def _chat_side() -> tuple[Any, ...]:
    """Where is asked and answered."""
    chat = gr.Chatbot(
        label="Conversation",
        show_label=False,
        height=470,
        layout="bubble",
        latex_delimiters=[],
        buttons=[],
        placeholder=WELCOME,
        elem_id="chat",
        feedback_options=None,
        allow_file_downloads=False,
    )
    with gr.Row(elem_id="suggestions"):
        chips = [gr.Button(words, size="sm", min_width=0, scale=0) for words in view.PICTURE_QUESTIONS]
    question = gr.Textbox(
        placeholder="Ask about the picture or clip …",
        show_label=False,
        submit_btn=True,
        autofocus=True,
        max_lines=4,
        max_length=1000,
        elem_id="question",
        container=False,
    )
    return chat, chips, question


@dataclass(frozen=True)
class Parts:
    """The components that events are about."""

    session: gr.State
    stage: gr.Image
    clip: gr.Video
    chat: gr.Chatbot
    details: gr.JSON
    question: gr.Textbox
    file: gr.File
    gallery: gr.Gallery
    picked: gr.Number
    tools: gr.Checkbox
    futures: gr.Slider
    history: gr.Checkbox
    chips: list[gr.Button]


def _wire(page: Page, blocks: gr.Blocks, opened: list[Any], p: Parts) -> None:
    quiet: dict[str, Any] = {"show_progress": "hidden"}
    inside: dict[str, Any] = quiet | {"api_visibility": "private"}
    opening: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": p.stage, "concurrency_limit": 2}
    p.file.upload(page.open_file, [p.file, p.session], opened, api_name="open", **opening)
    # The number of the picked example goes through a field of its own, so that programs can pick one too.
    example = (page.open_example, [p.picked, p.session], [*opened, p.question])
    p.gallery.select(_picked, None, p.picked, **inside).then(*example, api_name="example", **opening)
    if page.examples:
        blocks.load(*example, **inside)
    p.chat.clear(page.clear, p.session, opened, api_name="clear", **quiet)
    inputs = [p.tools, p.futures, p.history, p.session, p.chat]
    outputs = [p.session, p.chat, p.stage, p.clip, p.details, p.question]
    one_at_a_time: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
    answering: list[Any] = [p.question.submit(page.ask_from_box, [p.question, *inputs], outputs, api_name="ask", **one_at_a_time, **quiet)]
    answering += [chip.click(page.ask, [chip, *inputs], outputs, **one_at_a_time, **inside) for chip in p.chips]
    p.question.stop(lambda: READY, None, p.question, cancels=answering, queue=False, **inside)


def _picked(event: gr.SelectData) -> int:
    return int(event.index)


def theme() -> gr.Theme:
    """Fonts of the visitor's own system, so that the page asks no other host for any."""
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "monospace"]
    return gr.themes.Soft(primary_hue="orange", secondary_hue="blue", neutral_hue="slate", radius_size="lg", font=sans, font_mono=mono)


