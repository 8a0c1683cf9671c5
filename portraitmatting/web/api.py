"""One address for programs: an image in, a PNG out."""

import inspect
from html import escape
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import FastAPI, File, Form, HTTPException, UploadFile
from fastapi.responses import HTMLResponse, Response

from portraitmatting.errors import PortraitmattingError
from portraitmatting.images.encode import encode_image
from portraitmatting.predictor import Predictor
from portraitmatting.web.job import CHOICES, Choices, Upload, matte_photo


def build_api(predictor: Predictor, megapixels: float) -> FastAPI:
    """`POST /api/matte`, its OpenAPI description at /api/openapi.json, and a page for people at
    /api. Images may have up to `megapixels`."""
    # FastAPI's own pages for people would load programs from elsewhere.
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
            Form(description="What a composite has behind the person."),
        ] = "colour",
        colour: Annotated[
            str, Form(description="Of that background: #rrggbb or a name.")
        ] = "white",
        background_image: Annotated[
            UploadFile | None, File(description="The background, if that is an image.")
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
