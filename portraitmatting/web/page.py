"""The page: what stands where, and what happens when."""

import secrets
import shutil
from pathlib import Path
from typing import Any

import gradio as gr

from portraitmatting import PortraitmattingError, Predictor
from portraitmatting.web.job import CHOICES, Choices, Upload, matte_photo

_LABELS = {
    "ml": "Multi-level",
    "cf": "Closed form",
    "none": "As they are",
}
_EXAMPLE_SUFFIXES = (".jpg", ".png")
_WAITING = 32
"""Photos that may wait in the queue; further ones are told to come again."""
_TALL = 620

THEME = gr.themes.Default(
    primary_hue="teal",
    font=["system-ui", "sans-serif"],  # those of Gradio's own come from elsewhere
    font_mono=["ui-monospace", "monospace"],
)
CSS = """
.cut-out img { background: repeating-conic-gradient(#ccc 0 25%, #fff 0 50%) 0 0 / 20px 20px }
.one-row .wrap { gap: 6px }
.one-row label { padding: 6px }
"""


def build_page(
    predictor: Predictor, megapixels: float, folder: Path, examples: Path, keep_seconds: int
) -> gr.Blocks:
    """The page, ready to be launched with `THEME` and `CSS`.

    Photos may have up to `megapixels`. Results are written below `folder`, which must be Gradio's
    own, and deleted when they are older than `keep_seconds`; so are uploads. `examples` is a folder
    of images to offer, if it is there.
    """

    def make(photo: Any, chosen: tuple[Any, ...], progress: gr.Progress, previews: bool) -> Any:
        """The paths of the previews, if asked for, and of the results."""
        background, colour, image, preset, foreground = chosen
        # Whoever knows a file's address may fetch it: nobody should guess one.
        own = folder / secrets.token_hex(16)
        try:
            if photo is None:
                raise PortraitmattingError("there is no photo: send one")
            upload = _upload(photo)
            choices = Choices(background, colour, image and _upload(image), preset, foreground)
            result = matte_photo(predictor, upload, choices, megapixels, progress)
            own.mkdir()
            shown = result.write_previews(own) if previews else []
            return shown + result.write(own, upload.stem)
        except BaseException as error:
            shutil.rmtree(own, ignore_errors=True)
            if isinstance(error, MemoryError):
                error = PortraitmattingError("not enough memory for this photo: scale it down")
            if isinstance(error, PortraitmattingError):
                raise gr.Error(str(error), print_exception=False) from error
            raise

    def matte(
        photo: Any,
        background: Any = "colour",
        colour: Any = "#ffffff",
        background_image: Any = None,
        preset: Any = "quality",
        foreground: Any = "ml",
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how Gradio asks for it
    ) -> Any:
        chosen = (background, colour, background_image, preset, foreground)
        return make(photo, chosen, progress, previews=False)

    def show(*values: Any, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        photo, *chosen = values
        if photo is None:
            return *[None] * 3, *[gr.update(value=None, interactive=False)] * 3
        if chosen[0] == "image" and chosen[2] is None:
            return (gr.skip(),) * 6  # it will be given next
        before, after, *others = make(photo, tuple(chosen), progress, previews=True)
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
        with gr.Row():
            with gr.Column(scale=3, min_width=390):
                photo = _image_box("Photo", height=260)
                if found := sorted(p for p in examples.glob("*") if p.suffix in _EXAMPLE_SUFFIXES):
                    gr.Examples([[str(p)] for p in found], photo, label="Examples")
                background = gr.Radio(
                    _named("background"), value="colour", label="Background", elem_classes="one-row"
                )
                colour = gr.ColorPicker("#ffffff", label="Colour")
                image = _image_box("Background image", height=160, visible=False)
                with gr.Row():
                    preset = _menu("Preset", "preset", "quality")
                    foreground = _menu("Edge colours", "foreground", "ml")
            with gr.Column(scale=6, min_width=480):
                slider = gr.ImageSlider(
                    label="Before and after",
                    type="filepath",
                    interactive=False,
                    height=_TALL,
                    max_height=_TALL,
                    buttons=["fullscreen"],
                )
                composite = gr.DownloadButton("Download composite", interactive=False)
            with gr.Column(scale=3, min_width=260):
                matte_view = _view("Matte")
                alpha = gr.DownloadButton("Download matte", interactive=False)
                cut_out_view = _view("Cut-out", "cut-out")
                rgba = gr.DownloadButton("Download cut-out", interactive=False)
        views, files = [slider, matte_view, cut_out_view], [alpha, rgba, composite]
        inputs: list[Any] = [photo, background, colour, image, preset, foreground]
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
    # Nothing is to touch what was sent: no mode to convert to, and snapshots without loss.
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
        height=_TALL // 2 - 36,  # two of them with a button between are as high as the slider
        elem_classes=css_class,
        buttons=["fullscreen"],
    )


def _menu(label: str, name: str, value: str) -> gr.Dropdown:
    return gr.Dropdown(_named(name), value=value, label=label, filterable=False)


def _named(name: str) -> list[tuple[str, str]]:
    return [(_LABELS.get(choice, choice.capitalize()), choice) for choice in CHOICES[name]]


def _upload(sent: dict[str, Any]) -> Upload:
    path = Path(sent["path"])
    return Upload(path, sent.get("orig_name") or path.name)
