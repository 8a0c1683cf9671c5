"""The page: its layout, and what its buttons do."""

import secrets
import shutil
from pathlib import Path
from typing import Any

import gradio as gr

from portraitmatting.errors import PortraitmattingError
from portraitmatting.predictor import Predictor
from portraitmatting.web.job import CHOICES, Choices, Upload, matte_photo

_LABELS = {
    "ml": "Multi-level",
    "cf": "Closed form",
    "none": "As they are",
}
_EXAMPLE_SUFFIXES = (".jpg", ".png")
_WAITING = 32
"""Photos that may wait in the queue; further ones are refused."""
THEME = gr.themes.Default(
    primary_hue="teal",
    font=["system-ui", "sans-serif"],  # Gradio's own would be fetched from the internet
    font_mono=["ui-monospace", "monospace"],
)
CSS = """
.cut-out img { background: repeating-conic-gradient(#ccc 0 25%, #fff 0 50%) 0 0 / 20px 20px }
.one-row .wrap { gap: 6px }
.one-row label { padding: 6px }
.layout { display: grid !important; gap: 16px; align-items: start;
  grid-template: "photo slider views" auto "settings slider views" 1fr / 3fr 6fr 3fr }
.layout > .photo { grid-area: photo } .layout > .slider { grid-area: slider }
.layout > .views { grid-area: views } .layout > .settings { grid-area: settings }
.layout .image-container img, .layout .slider-wrap { max-height: 75vh }
@media (max-width: 1000px) { .layout { grid-template: "photo slider" auto "settings slider" auto
  "views views" auto / 1fr 2fr } }
@media (max-width: 640px) { .layout { grid-template: "photo" auto "slider" auto "settings" auto
  "views" auto / minmax(0, 1fr) } }
"""


def build_page(
    predictor: Predictor, megapixels: float, folder: Path, examples: Path, keep_seconds: int
) -> gr.Blocks:
    """The page, ready to be launched with `THEME` and `CSS`.

    Args:
        predictor: makes the mattes.
        megapixels: the largest photo.
        folder: results are written below it; it must be Gradio's own.
        examples: a folder of images to offer, if it exists.
        keep_seconds: results and uploads that are older are deleted.
    """

    def make(
        photo: Any, chosen: tuple[Any, ...], progress: gr.Progress, previews: bool
    ) -> tuple[list[Path], bool]:
        """The paths of the previews, if asked for, and of the results; whether the photo shows no
        person."""
        background, colour, image, preset, foreground, crop = chosen
        # Whoever knows a file's address may fetch it, so that addresses must not be guessable.
        own = folder / secrets.token_hex(16)
        try:
            if photo is None:
                raise PortraitmattingError("there is no photo: send one")
            upload = _upload(photo)
            backdrop = image and _upload(image)
            choices = Choices(background, colour, backdrop, preset, foreground, bool(crop))
            result = matte_photo(predictor, upload, choices, megapixels, progress)
            own.mkdir()
            shown = result.write_previews(own) if previews else []
            return shown + result.write(own, upload.stem), result.is_empty
        except BaseException as error:
            shutil.rmtree(own, ignore_errors=True)
            if isinstance(error, MemoryError):
                raise PortraitmattingError(
                    "not enough memory for this photo: scale it down"
                ) from error
            raise

    def matte(
        photo: Any,
        background: Any = "colour",
        colour: Any = "#ffffff",
        background_image: Any = None,
        preset: Any = "quality",
        foreground: Any = "ml",
        crop: Any = False,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how Gradio asks for it
    ) -> Any:
        chosen = (background, colour, background_image, preset, foreground, crop)
        try:
            paths, _ = make(photo, chosen, progress, previews=False)
        except PortraitmattingError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return paths

    def show(*values: Any, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        photo, *chosen = values
        nothing = *[None] * 3, *[gr.update(value=None, interactive=False)] * 3
        if photo is None:
            return nothing
        if chosen[0] == "image" and chosen[2] is None:
            return (gr.skip(),) * 6  # the user gives it next
        try:
            paths, is_empty = make(photo, tuple(chosen), progress, previews=True)
        except PortraitmattingError as error:
            # Not gr.Error: it would leave the results of the photo before where they are.
            gr.Warning(str(error))
            return nothing
        if is_empty:
            gr.Info("Nobody was found in this photo.")
        before, after, *others = paths
        files = [gr.update(value=path, interactive=True) for path in others[2:]]
        return (before, after), *others[:2], *files

    with gr.Blocks(
        title="Portraitmatting",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(max(1, keep_seconds // 4), keep_seconds),
    ) as page:
        gr.Markdown(
            "# Portraitmatting\nA photo in, the person's alpha matte and cut-out out. Images "
            "stay on the machine that serves this page, for at most "
            f"{max(1, round(keep_seconds / 60))} minutes."
        )
        with gr.Row(elem_classes="layout"):
            with gr.Column(elem_classes="photo", min_width=0):
                photo = _image_box("Photo", height=260)
            with gr.Column(elem_classes="slider", min_width=0):
                slider = gr.ImageSlider(
                    label="Before and after",
                    type="filepath",
                    interactive=False,
                    buttons=["fullscreen"],
                )
                composite = gr.DownloadButton("Download composite", interactive=False)
            with gr.Column(elem_classes="views", min_width=0):
                matte_view = _view("Matte")
                alpha = gr.DownloadButton("Download matte", interactive=False)
                cut_out_view = _view("Cut-out", "cut-out")
                rgba = gr.DownloadButton("Download cut-out", interactive=False)
            with gr.Column(elem_classes="settings", min_width=0):
                background = gr.Radio(
                    _named("background"), value="colour", label="Background", elem_classes="one-row"
                )
                colour = gr.ColorPicker("#ffffff", label="Colour")
                image = _image_box("Background image", height=160, visible=False)
                with gr.Row():
                    preset = _menu("Preset", "preset", "quality")
                    foreground = _menu("Edge colours", "foreground", "ml")
                crop = gr.Checkbox(False, label="Crop to the person")
                if paths := sorted(p for p in examples.glob("*") if p.suffix in _EXAMPLE_SUFFIXES):
                    gr.Examples([[str(p)] for p in paths], photo, label="Examples")
        views, files = [slider, matte_view, cut_out_view], [alpha, rgba, composite]
        inputs: list[Any] = [photo, background, colour, image, preset, foreground, crop]
        one_at_a_time: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "network"}
        gr.on(
            [component.change for component in inputs],
            show,
            inputs,
            [*views, *files],
            preprocess=False,
            show_progress_on=views,
            trigger_mode="always_last",
            api_visibility="private",
            **one_at_a_time,
        )
        background.change(
            lambda kind: [gr.update(visible=kind == name) for name in ("colour", "image")],
            background,
            [colour, image],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
        # For programs: the results without the page's previews.
        gr.Button(visible=False).click(
            matte, inputs, files, preprocess=False, api_name="matte", **one_at_a_time
        )
    return page.queue(max_size=_WAITING, api_open=False)


def _image_box(label: str, height: int, visible: bool = True) -> gr.Image:
    # Gradio must not change what was sent: no mode to convert to, and snapshots without loss.
    return gr.Image(
        label=label,
        type="filepath",
        image_mode=None,
        format="png",
        sources=["upload", "webcam", "clipboard"],
        height=height,
        visible=visible,
        buttons=["fullscreen"],
    )


def _view(label: str, css_class: str | None = None) -> gr.Image:
    return gr.Image(
        label=label,
        type="filepath",
        interactive=False,
        elem_classes=css_class,
        buttons=["fullscreen"],
    )


def _menu(label: str, name: str, value: str) -> gr.Dropdown:
    return gr.Dropdown(_named(name), value=value, label=label, filterable=False)


def _named(name: str) -> list[tuple[str, str]]:
    return [(_LABELS.get(choice, choice.capitalize()), choice) for choice in CHOICES[name]]


def _upload(sent: dict[str, Any]) -> Upload:
    path = Path(sent["path"])
    name = sent.get("orig_name") or path.name
    try:
        return Upload(path.read_bytes(), name)
    except OSError as error:
        stem = Upload(b"", name).stem
        raise PortraitmattingError(f"{stem}: no longer on the server: send it again") from error
