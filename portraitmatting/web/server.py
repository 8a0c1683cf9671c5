"""The server: Gradio's page for people and one address for programs, behind one guard."""

import inspect
import os
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import FastAPI, File, Form, HTTPException, UploadFile
from fastapi.responses import HTMLResponse, Response

from portraitmatting.checkpoint.load import load_model
from portraitmatting.errors import PortraitmattingError
from portraitmatting.images.encode import encode_image
from portraitmatting.predictor import Predictor
from portraitmatting.web.guard import LOCAL_HOSTS, Guard
from portraitmatting.web.job import CHOICES, Choices, Upload, matte_photo

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
        checkpoint: as for `load_model`.
        device: as for `load_model`.
        precision: as for `Predictor`.
        short_side: as for `Predictor`.
        max_megabytes: largest upload.
        max_megapixels: largest image.
        keep_minutes: how long uploads and results are kept.
        browser: whether to open the page.
        root_path: the path below which a reverse proxy offers the page, as "/matte".
        allowed_host: further host names to answer to, as a reverse proxy passes them on.

    Raises PortraitmattingError if it cannot begin.
    """
    limits = {"megabytes": max_megabytes, "megapixels": max_megapixels, "minutes": keep_minutes}
    for unit, value in limits.items():
        if not 0 < value < 1e6:
            raise PortraitmattingError(f"{value:g} {unit}: use more than 0")
    if root_path and "://" not in root_path:
        root_path = "/" + root_path.strip("/")
    name = f"[{host}]" if ":" in host else host
    is_local = name in LOCAL_HOSTS
    if not is_local:
        print(
            f"warning: at {host}, whoever reaches this machine can use the page: there is no "
            "password, and nothing is encrypted",
            file=sys.stderr,
        )
    listener = _listen(host, port)
    # The page needs no internet, and with a proxy in the environment Gradio would not start.
    for variable in [key for key in os.environ if key.lower().endswith("_proxy")]:
        del os.environ[variable]
    predictor = Predictor(load_model(checkpoint, device), short_side, precision)
    with listener, tempfile.TemporaryDirectory(prefix="portraitmatting-") as temporary:
        folder = Path(temporary).resolve()
        # Gradio takes these from the environment only.
        os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
        import gradio
        import uvicorn

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
    """A listening socket: connections wait until the page is served."""
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


def build_api(predictor: Predictor, megapixels: float) -> FastAPI:
    """`POST /api/matte`, its OpenAPI description at /api/openapi.json, and a page about it at
    /api. Images may have up to `megapixels`."""
    # FastAPI's own pages would load programs from other servers.
    api = FastAPI(title="Portraitmatting", openapi_url="/api/openapi.json", docs_url=None)
    api.redoc_url = None

    @api.post(
        "/api/matte", response_class=Response, responses={200: {"content": {"image/png": {}}}}
    )
    def matte(
        image: Annotated[UploadFile, File(description="The photo.")],
        output: Annotated[
            Literal["alpha", "rgba", "composite"],
            Form(description="The matte, the cut-out, or the person on the background."),
        ] = "rgba",
        background: Annotated[
            Literal["colour", "blur", "checkerboard", "image"],
            Form(description="Of a composite."),
        ] = "colour",
        colour: Annotated[
            str, Form(description="Of the background colour: #rrggbb or a name.")
        ] = "white",
        background_image: Annotated[
            UploadFile | None, File(description="The background, if it is an image.")
        ] = None,
        preset: Annotated[
            str, Form(description=f"Time against quality: {', '.join(CHOICES['preset'])}.")
        ] = "quality",
        foreground: Annotated[
            Literal["ml", "fast", "cf", "none"],
            Form(description="How the person's colours are estimated."),
        ] = "ml",
        crop: Annotated[bool, Form(description="Cut to the person and a margin.")] = False,
    ) -> Response:
        """An image to its matte, cut-out or composite: a PNG of the image's size and depth."""
        try:
            photo = _upload(image)
            backdrop = _upload(background_image) if background_image else None
            choices = Choices(background, colour, backdrop, preset, foreground, crop)
            result = matte_photo(
                predictor, photo, choices, megapixels, lambda part, step: None, [output]
            )
            pixels = getattr(result, output)
            data = encode_image(pixels, ".png", result.icc_profile, result.metadata)
        except PortraitmattingError as error:
            raise HTTPException(422, str(error)) from error
        except MemoryError as error:
            raise HTTPException(413, "not enough memory for this photo: scale it down") from error
        name = f"{photo.stem}-{output}.png"
        headers = {"X-Nobody-There": str(result.is_empty).lower()}
        headers["Content-Disposition"] = "inline; filename*=UTF-8''" + quote(name)
        return Response(data, media_type="image/png", headers=headers)

    @api.get("/api", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        schema = api.openapi()["components"]["schemas"]["Body_matte_api_matte_post"]
        rows = "".join(
            f"<tr><td>{escape(name)}<td>{escape(_values(about))}"
            f"<td>{escape(str(about.get('default', '')))}<td>{escape(about['description'])}"
            for name, about in schema["properties"].items()
        )
        return (
            "<!doctype html><title>Portraitmatting: API</title><h1>POST /api/matte</h1>"
            f"<p>{escape(inspect.getdoc(matte) or '')} Errors are JSON with a line in "
            "<code>detail</code>. The description for programs: "
            "<a href='api/openapi.json'>api/openapi.json</a>.<pre>"
            "curl -F image=@photo.jpg -F output=rgba -o cut-out.png ADDRESS/api/matte</pre>"
            "<table cellpadding=6><tr><th>field<th>values<th>default<th>meaning" + rows + "</table>"
        )

    return api


def _upload(file: UploadFile) -> Upload:
    return Upload(file.file.read(), file.filename or "photo")


def _values(about: dict[str, Any]) -> str:
    return ", ".join(map(str, about["enum"])) if "enum" in about else about.get("type", "file")
