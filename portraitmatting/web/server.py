"""The page's server: Gradio's page and the address for programs behind one guard."""

import os
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from portraitmatting.checkpoint.load import load_model
from portraitmatting.errors import PortraitmattingError
from portraitmatting.predictor import Predictor
from portraitmatting.web.guard import LOCAL_HOSTS, Guard

_PORTS = range(7860, 7960)
_EXAMPLES = Path(__file__).parents[2] / "examples"  # in a clone of the repository


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
    root_path: str = "",
    allowed_host: Sequence[str] = (),
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        host: the address to listen at.
        port: without one, the first free one from 7860 on.
        checkpoint, device, precision, short_side: as for `load_model` and `Predictor`.
        max_megabytes: largest upload.
        max_megapixels: largest image.
        keep_minutes: how long uploads and results are kept.
        browser: whether to open the page.
        root_path: the path below which a reverse proxy offers the page, as "/matte".
        allowed_host: further names under which the page may be asked for, as a reverse proxy passes
            them on.

    Raises PortraitmattingError if it cannot begin.
    """
    limits = {"megabytes": max_megabytes, "megapixels": max_megapixels, "minutes": keep_minutes}
    for unit, value in limits.items():
        if not 0 < value < 1e6:
            raise PortraitmattingError(f"{value:g} {unit}: use more than 0")
    if root_path and "://" not in root_path:
        root_path = "/" + root_path.strip("/")  # however it is written
    name = f"[{host}]" if ":" in host else host
    is_local = name in LOCAL_HOSTS
    if not is_local:
        print(
            f"warning: at {host}, whoever reaches this machine can use the page: there is no "
            "password, and nothing is encrypted",
            file=sys.stderr,
        )
    listener = _listen(host, port)
    # The page asks nothing of the internet; a proxy in the environment would only keep Gradio's
    # libraries from starting.
    for variable in [key for key in os.environ if key.lower().endswith("_proxy")]:
        del os.environ[variable]
    predictor = Predictor(load_model(checkpoint, device), short_side, precision)
    with listener, tempfile.TemporaryDirectory(prefix="portraitmatting-") as temporary:
        folder = Path(temporary).resolve()
        # Only the environment says where Gradio keeps files.
        os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
        import gradio
        import uvicorn

        from portraitmatting.web.api import build_api
        from portraitmatting.web.page import CSS, THEME, build_page

        max_bytes = round(max_megabytes * 1e6)
        page = build_page(predictor, max_megapixels, folder, _EXAMPLES, round(60 * keep_minutes))
        app = gradio.mount_gradio_app(
            build_api(predictor, max_megapixels),
            page,
            path="/",
            root_path=root_path or None,
            max_file_size=max_bytes,
            theme=THEME,
            css=CSS,
            footer_links=[],
            # What the environment could switch on otherwise:
            ssr_mode=False,
            mcp_server=False,
            run_history=False,
            enable_monitoring=False,
        )
        hosts = (
            LOCAL_HOSTS.union(map(str.lower, allowed_host)) if is_local or allowed_host else None
        )
        guarded = Guard(app, folder, max_bytes, hosts)
        config = uvicorn.Config(guarded, log_level="error", timeout_graceful_shutdown=1)
        address = f"http://{name}:{listener.getsockname()[1]}/"
        print(f"{predictor}\nthe page is at {address} until Ctrl-C", flush=True)
        if browser:
            webbrowser.open(address)
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int | None) -> socket.socket:
    """A socket that takes connections, which wait until the page is there."""
    reason: OSError | None = None
    for number in _PORTS if port is None else [port]:
        try:
            return socket.create_server(
                (host, number), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            )
        except (OSError, UnicodeError) as error:
            reason = error if isinstance(error, OSError) else OSError(str(error))
    raise PortraitmattingError(
        f"cannot listen at {host}, port {port or 'from 7860 on'} ({reason}): use another one"
    )
