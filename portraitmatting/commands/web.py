"""Command line: `portraitmatting web`."""

import argparse
import importlib.util
import os
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from portraitmatting.cli import Parser, given, run
from portraitmatting.commands.options import (
    add_checkpoint_option,
    add_device_option,
    add_precision_option,
    add_short_side_option,
    number,
)
from portraitmatting.errors import PortraitmattingError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_EXAMPLES = Path(__file__).parents[2] / "examples"  # in a clone of the repository


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, call, exit code."""
    options = parser().parse_args(arguments)
    if importlib.util.find_spec("gradio") is None:
        raise PortraitmattingError('the page needs Gradio: pip install -e ".[web]"')
    try:
        serve(**given(options, *vars(options)))
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
    return 0


def serve(
    host: str = "127.0.0.1",
    port: int | None = None,
    checkpoint: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    short_side: int | None = None,
    max_megabytes: float = 50,
    max_megapixels: float = 50,
    keep_minutes: float = 60,
    browser: bool = True,
) -> NoReturn:
    """Serve the page until Ctrl-C; without a `port`, on the first free one from 7860 on.

    Raises PortraitmattingError if it cannot begin.
    """
    limits = {"megabytes": max_megabytes, "megapixels": max_megapixels, "minutes": keep_minutes}
    for unit, value in limits.items():
        if not 0 < value < 1e6:
            raise PortraitmattingError(f"{value:g} {unit}: use more than 0")
    local = host in _LOOPBACK
    if not local:
        print(
            f"warning: at {host}, whoever reaches this machine can use the page: there is no "
            "password, and nothing is encrypted",
            file=sys.stderr,
        )
    from portraitmatting import Predictor, load_model

    predictor = Predictor(load_model(checkpoint, device), short_side, precision)
    with tempfile.TemporaryDirectory(prefix="portraitmatting-") as temporary:
        folder = Path(temporary).resolve()
        # Where Gradio keeps files is told by the environment only.
        os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
        from fastapi.middleware import Middleware

        from portraitmatting.web.guard import Guard
        from portraitmatting.web.page import CSS, THEME, build_page

        page = build_page(predictor, max_megapixels, folder, _EXAMPLES, round(60 * keep_minutes))
        max_bytes = round(max_megabytes * 1e6)
        guard = Middleware(Guard, folder=folder, max_bytes=max_bytes, local=local)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                max_file_size=max_bytes,
                app_kwargs={"middleware": [guard]},
                theme=THEME,
                css=CSS,
                footer_links=[],
                prevent_thread_lock=True,
                quiet=True,
                # What the environment could switch on otherwise:
                share=False,
                ssr_mode=False,
                num_workers=0,
                mcp_server=False,
                run_history=False,
                enable_monitoring=False,
            )
        except OSError as error:
            raise PortraitmattingError(
                f"cannot listen at {host}, port {port or 'from 7860 on'}: use another one"
            ) from error
        try:
            print(f"{predictor}\nthe page is at {address} until Ctrl-C", flush=True)
            if browser:
                webbrowser.open(address)
            threading.Event().wait()
        finally:
            page.close(verbose=False)
    raise AssertionError  # the wait ends by an exception only


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported for it."""
    parser = Parser(
        prog="portraitmatting web",
        description="A page for single photos, on this machine: matte, cut-out, new background. "
        "It needs no internet, and nothing leaves the machine.",
    )
    add = parser.add_argument_group("page").add_argument
    add(
        "--host",
        metavar="ADDRESS",
        help="listen at this address, as 0.0.0.0, where other machines reach it, without a "
        "password (default: 127.0.0.1, this machine only)",
    )
    add(
        "--port",
        type=number(int, 1, 65535),
        metavar="N",
        help="(default: the first free one from 7860 on)",
    )
    add(
        "--no-browser",
        dest="browser",
        action="store_false",
        default=None,
        help="only say where the page is",
    )
    add(
        "--max-megabytes",
        type=number(float, 0.001, 1e6),
        metavar="N",
        help="of an upload (default: 50)",
    )
    add(
        "--max-megapixels",
        type=number(float, 0.001, 1e6),
        metavar="N",
        help="of an image (default: 50)",
    )
    add(
        "--keep-minutes",
        type=number(float, 0.001, 1e6),
        metavar="N",
        help="how long uploads and results are kept (default: 60; never longer than the page is "
        "served)",
    )
    add = parser.add_argument_group("network").add_argument
    add_checkpoint_option(add)
    add_device_option(add)
    add_precision_option(add)
    add_short_side_option(add)
    return parser


if __name__ == "__main__":
    run(main)
