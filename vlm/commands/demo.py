"""`demo`: a page on this machine on which people ask about pictures and clips."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm.commands.console import ASSETS, DEFAULT_MODEL, CommandError
from vlm.commands.loading import add_load_in, load_model

CSS = Path(__file__).resolve().parents[1] / "page" / "page.css"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="demo", description=__doc__)
    result.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="a model folder (default: the shipped small model)")
    add_load_in(result)
    result.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 …")
    result.add_argument("--examples", type=Path, default=ASSETS / "pictures", help="a folder with questions.json and its pictures")
    result.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    result.add_argument("--open", action="store_true", help="open the page in a browser")
    return result


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if options.port is not None and not 1 <= options.port <= 65535:
        raise CommandError(f"--port is {options.port}, expected 1 to 65535")
    with tempfile.TemporaryDirectory(prefix="handvlm-page-") as folder:
        blocks, settings = prepare(options, Path(folder))
        try:
            _, address, _ = blocks.launch(
                **settings, server_port=options.port, inbrowser=options.open, prevent_thread_lock=True, quiet=True
            )
        except OSError as error:
            if options.port is None:
                raise
            raise CommandError(f"--port {options.port}: in use by another program; leave it out for the first free one") from error
        print(f"Ask on {address} (this machine only); Ctrl-C ends it.", flush=True)
        blocks.block_thread()
    return 0


def prepare(options: argparse.Namespace, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The page and how it is launched: for this machine only, nothing sent anywhere. Uploads and drawings lie in `folder`.

    Raises CommandError where the extra [demo] is not installed.
    """
    # Both are read when gradio is imported or first used.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(folder))
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise CommandError("the page needs Gradio: pip install 'handvlm[demo]', or run `make demo`") from error
    from vlm.examples import read_examples
    from vlm.page.layout import LIMITS, VISITORS, WAITING, Files, Model, Page, build, theme

    model, processor = load_model(options.model, device=options.device, load_in=options.load_in)
    examples = read_examples(options.examples) if (options.examples / "questions.json").is_file() else []
    page = Page(Model(model, processor, about(options)), examples, Files(folder / "shown"))
    blocks = build(page)
    blocks.queue(max_size=WAITING, default_concurrency_limit=4)
    settings = {
        "server_name": "127.0.0.1",
        "share": False,
        "ssr_mode": False,
        "allowed_paths": [str(folder / "shown"), str(options.examples.resolve())],
        "max_file_size": f"{LIMITS.megabytes:.0f}mb",
        "state_session_capacity": VISITORS,
        "enable_monitoring": False,
        "show_error": False,
        "css_paths": [CSS],
        "theme": theme(),
        "footer_links": [],
    }
    return blocks, settings


def about(options: argparse.Namespace) -> str:
    """A line about the model for the page."""
    bits = f", language model in {options.load_in}" if options.load_in else ""
    return f"Model: `{options.model.name}`{bits}, on {options.device}. Another one: start the page with `--model FOLDER`."
