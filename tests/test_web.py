"""The page: its server as a program sees it, as two users at once do, and in a real browser."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from portraitmatting import (
    ModelConfig,
    PortraitMatting,
    PortraitmattingError,
    Predictor,
    estimate_foreground,
    load_model,
    read_image,
    write_image,
)
from portraitmatting.checkpoint.format import CheckpointInfo, save_checkpoint
from portraitmatting.compositing import composite, rgba
from portraitmatting.images.colour import profile_of_codes
from portraitmatting.images.pixels import to_dtype
from portraitmatting.web.guard import Guard
from portraitmatting.web.job import KINDS, Choices, Upload, matte_photo
from web_browser import ASTRONAUT, CHROMIUM, ROOT, give, open_page, wait_for_results

pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")
gradio_client = pytest.importorskip("gradio_client")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    info = CheckpointInfo("random", "none", working_short_side=64)
    save_checkpoint(path, PortraitMatting(ModelConfig.tiny()), info)
    return path


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    """Where the server keeps its files."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(checkpoint, temporary):
    """The address of the command's own server, in a process of its own."""
    with serving(
        checkpoint, temporary, "--max-megabytes", "1", "--max-megapixels", "0.5"
    ) as address:
        yield address


@contextmanager
def serving(checkpoint, temporary, *options):
    command = [sys.executable, "-m", "portraitmatting", "web", "--no-browser", "--device", "cpu"]
    command += ["--precision", "fp32", "--checkpoint", str(checkpoint), *options]
    environment = {**os.environ, "TMPDIR": str(temporary), "TEMP": str(temporary)}
    # Loopback needs no proxy, so one that is in the environment must not matter.
    environment |= {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        lines = [process.stdout.readline(), process.stdout.readline()]
        try:
            assert "the page is at http://127.0.0.1:" in lines[1]
            yield lines[1].split()[4]
        finally:
            process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(temporary.iterdir()), "uploads and results are gone with the server"


def client_of(address, **options):
    patience = {"timeout": 120}  # seconds; on a busy machine the default of 5 is not enough
    return gradio_client.Client(address, verbose=False, httpx_kwargs=patience, **options)


@pytest.fixture(scope="module")
def call(server):
    """The documented endpoint."""
    client = client_of(server)

    def call(photo, **choices) -> list[Path]:
        outputs = client.predict(gradio_client.handle_file(photo), **choices, api_name="/matte")
        return [Path(path) for path in outputs]

    return call


def expected(checkpoint, photo, folder, background="#ffffff", short_side=64, foreground="fast"):
    """The bytes of the three results, as the library makes them of the photo."""
    source = read_image(photo)
    image = source.pixels
    alpha = Predictor(load_model(checkpoint), short_side).predict(image).alpha
    colours = estimate_foreground(image, alpha, foreground)
    results = {
        "alpha": to_dtype(alpha, image.dtype),
        "rgba": rgba(colours, alpha),
        "composite": composite(colours, alpha, background, image=image),
    }
    for kind, pixels in results.items():
        write_image(folder / f"{kind}.png", pixels, source.icc_profile, source.metadata)
    return [(folder / f"{kind}.png").read_bytes() for kind in results]


def test_a_call_returns_what_the_library_makes(call, checkpoint, tmp_path):
    outputs = call(ASTRONAUT, foreground="fast", background="blur", preset="fast")
    assert [path.name for path in outputs] == [
        "astronaut-alpha.png",
        "astronaut-rgba.png",
        "astronaut-composite.png",
    ]
    # "fast" is 0.6 of the checkpoint's short side of 64, as a multiple of 32.
    made = expected(checkpoint, ASTRONAUT, tmp_path, "blur", short_side=32)
    assert [path.read_bytes() for path in outputs] == made


def test_depth_profile_and_orientation_survive(call, checkpoint, tmp_path, photo, rng):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = tmp_path / "deep.png"
    write_image(deep, rng.integers(0, 65536, (70, 96, 3), dtype=np.uint16), profile)
    outputs = call(deep, foreground="none", colour="rgba(12.4, 200, 255, 1)")
    assert [p.read_bytes() for p in outputs] == expected(
        checkpoint, deep, tmp_path, "#0cc8ff", foreground="none"
    )
    assert cv2.imread(str(outputs[1]), cv2.IMREAD_UNCHANGED).dtype == np.uint16
    assert Image.open(outputs[2]).info["icc_profile"] == profile

    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo).save(turned, exif=exif)
    behind = {"background": "image", "background_image": gradio_client.handle_file(ASTRONAUT)}
    outputs = call(turned, foreground="fast", **behind)
    made = expected(checkpoint, turned, tmp_path, read_image(ASTRONAUT).pixels)
    assert [p.read_bytes() for p in outputs] == made
    assert read_image(outputs[0]).pixels.shape == (120, 90, 3)


def test_two_users_at_once_get_their_own(server, checkpoint, tmp_path, rng):
    photos = {}
    for name, shape in {"anna": (80, 64, 3), "Åsa & co": (64, 100, 3)}.items():
        photos[name] = tmp_path / f"{name}.png"
        write_image(photos[name], rng.integers(0, 256, shape, dtype=np.uint8))
    outputs = {}

    def user(name):
        client = client_of(server, download_files=tmp_path / name)
        for _ in range(3):
            photo = gradio_client.handle_file(photos[name])
            outputs.setdefault(name, []).append(
                client.predict(photo, foreground="fast", api_name="/matte")
            )

    users = [threading.Thread(target=user, args=(name,)) for name in photos]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    for name, photo in photos.items():
        made = expected(checkpoint, photo, tmp_path)
        for paths in outputs[name]:
            assert [Path(path).read_bytes() for path in paths] == made
    assert Path(outputs["Åsa & co"][0][0]).name == "Åsa-co-alpha.png"


def test_what_cannot_be_used_is_refused_in_a_line_and_the_server_lives_on(call, tmp_path, photo):
    text = tmp_path / "bad.jpg"
    text.write_text("this is text")
    large = tmp_path / "large.png"
    Image.new("L", (1000, 1000)).save(large)
    good = tmp_path / "good.png"
    write_image(good, photo)
    mistakes = [
        (text, {}, "bad.jpg: text, not an image"),
        (large, {}, "large.png: 1.0 megapixels, and this page takes up to 0.5"),
        (good, {"background": "image"}, "give a background image too"),
        (good, {"colour": "blur"}, "'blur' is no colour"),
    ]
    for path, choices, message in mistakes:
        with pytest.raises(gradio_client.exceptions.AppError, match=message) as caught:
            call(path, **choices)
        assert "portraitmatting-" not in str(caught.value)  # no word of the server's folders
    assert len(call(good, foreground="none")) == 3


def test_uploads_above_the_cap_and_other_addresses_are_refused(server, tmp_path):
    api, web = server + "gradio_api/", httpx.Client(timeout=120)

    def upload(data):
        return web.post(api + "upload", files={"files": ("a.png", data)})

    def join(photo):
        body = {"data": [photo, "colour", "#fff", None, "quality", "none"]}
        return web.post(api + "call/matte", json=body)

    assert upload(bytes(1_000_000)).status_code == 200
    assert upload(bytes(1_000_001)).status_code == 413
    assert upload(bytes(1_100_000)).status_code == 413  # refused before it is read
    meta = {"meta": {"_type": "gradio.FileData"}}
    secret = tmp_path / "secret.png"
    secret.write_bytes(ASTRONAUT.read_bytes())
    for path in ("http://example.org/a.png", str(secret), str(ROOT / "examples/astronaut.jpg")):
        answer = join({"path": path, **meta})
        assert answer.status_code == 400
        assert "must be uploaded" in answer.json()["detail"]
    for path in ("file=http://example.org/", f"file={secret}", "proxy=http://example.org/"):
        assert web.get(api + path).status_code in (400, 404)
    assert web.post(api + "run/matte", json={"data": []}).status_code == 404  # past the queue
    assert web.get(server, headers={"host": "evil.example:7860"}).status_code == 421
    assert "default-src 'self'" in web.get(server).headers["content-security-policy"]


def test_an_upload_that_breaks_off_leaves_nothing(server, temporary):
    host, port = "127.0.0.1", int(server.rstrip("/").rpartition(":")[2])
    mark = os.urandom(16)
    form = b'--b\r\nContent-Disposition: form-data; name="files"; filename="p.png"\r\n\r\n' + mark
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 900000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    )
    before = set(temporary.rglob("*"))
    with socket.create_connection((host, port), 20) as connection:
        connection.sendall(head.encode() + form + bytes(400_000))
        time.sleep(0.5)
    deadline = time.monotonic() + 20
    while (left := set(temporary.rglob("*")) - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_an_address_for_programs(server, checkpoint, tmp_path):
    web = httpx.Client(timeout=120, trust_env=False)

    def post(data=None, **fields):
        files = {"image": ("a.jpg", ASTRONAUT.read_bytes() if data is None else data)}
        return web.post(server + "api/matte", files=files, data=fields)

    made = dict(zip(KINDS, expected(checkpoint, ASTRONAUT, tmp_path, "#008080"), strict=True))
    for kind in KINDS:
        answer = post(output=kind, colour="teal", foreground="fast")
        assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
        assert answer.content == made[kind]
    assert "a-alpha.png" in post(output="alpha").headers["content-disposition"]
    assert post(b"text").json()["detail"].startswith("a.jpg: text, not an image")
    assert post(b"text").status_code == 422
    assert post(colour="/etc/passwd").status_code == 422
    assert post(preset="best").status_code == 422
    assert post(bytes(2_100_000)).status_code == 413
    schema = web.get(server + "api/openapi.json").json()
    assert "/api/matte" in schema["paths"]
    fields = schema["components"]["schemas"]["Body_matte_api_matte_post"]["properties"]
    page = web.get(server + "api").text
    assert all(f"<td>{name}<td>" in page for name in fields)


def test_nobody_there_and_crops(tiny_predictor, photo, tmp_path):
    write_image(tmp_path / "a.png", photo)
    upload = Upload((tmp_path / "a.png").read_bytes(), "a.png")
    result = matte_photo(tiny_predictor, upload, Choices(foreground="none"), 50, lambda *_: None)
    matte = tiny_predictor.predict(photo)
    assert result.is_empty == matte.is_empty
    crop = Choices(foreground="none", crop=True)
    cropped = matte_photo(tiny_predictor, upload, crop, 50, lambda *_: None)
    assert np.array_equal(cropped.rgba, matte.crop(0.05).result("rgba", method="none"))


def test_a_background_image_keeps_the_colours_of_its_profile(tiny_predictor, photo, tmp_path):
    write_image(tmp_path / "a.png", photo)
    pixels = np.zeros_like(photo) + np.uint8([200, 90, 30])
    write_image(tmp_path / "b.png", pixels, profile_of_codes(12, 13))  # Display P3
    photo_upload, behind = (
        Upload((tmp_path / name).read_bytes(), name) for name in ("a.png", "b.png")
    )
    choices = Choices("image", background_image=behind, foreground="none")
    result = matte_photo(tiny_predictor, photo_upload, choices, 50, lambda *_: None)
    matte = tiny_predictor.predict(photo)
    expected = matte.result("composite", str(tmp_path / "b.png"), "none")
    assert not np.array_equal(expected, matte.result("composite", pixels, "none"))
    assert np.array_equal(result.composite, expected)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_in_a_browser(server, checkpoint, tmp_path):
    pytest.importorskip("playwright")
    bad = tmp_path / "bad.jpg"
    bad.write_text("this is text")
    with open_page(server) as page:
        page.get_by_label("Edge colours").click()
        page.get_by_role("option", name="Fast").click()
        give(page, bad)
        page.get_by_text("bad.jpg: text, not an image").wait_for()
        give(page, ASTRONAUT)
        wait_for_results(page)

        handle = page.get_by_test_id("slider")
        box = handle.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x - 90, y, steps=3)
        page.mouse.up()
        assert handle.bounding_box()["x"] == pytest.approx(box["x"] - 90, abs=5)
        after = page.get_by_test_id("imageslider-image").nth(1).get_attribute("style")
        assert float(re.search(r"([\d.]+)%\)", after)[1]) < 45  # where it begins, at first 50 %

        made = expected(checkpoint, ASTRONAUT, tmp_path)
        names = {"matte": "alpha", "cut-out": "rgba", "composite": "composite"}
        for (what, kind), data in zip(names.items(), made, strict=True):
            with page.expect_download() as download:
                page.get_by_text(f"Download {what}").click()
            assert download.value.suggested_filename == f"astronaut-{kind}.png"
            assert Path(download.value.path()).read_bytes() == data
        # A photo that cannot be used takes the results of the one before away, and is named once.
        give(page, bad)
        message = page.get_by_text("bad.jpg: text, not an image")
        message.wait_for()
        assert message.count() == 1
        # The message comes just before the results go.
        page.wait_for_function("!document.querySelector('img[src*=preview-]')")
        button = page.get_by_role("button", name="Download matte")
        button.and_(page.locator("[disabled], [aria-disabled=true], .disabled")).wait_for()
        elsewhere = [
            url for url in page.requested if not url.startswith((server, "data:", "blob:"))
        ]
        assert page.requested and not elsewhere


def test_guard_reads_what_gradio_would_read(tmp_path):
    passed = []

    async def app(scope, receive, send):
        passed.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    guard = Guard(app, tmp_path, max_bytes=1000, hosts=None)

    def status(path, *parts, method="POST", **headers):
        scope = {"type": "http", "method": method, "path": path}
        scope["headers"] = [(key.encode(), value.encode()) for key, value in headers.items()]
        events = [{"body": part, "more_body": True} for part in parts] + [{"body": b""}]
        events = [{"type": "http.request", **event} for event in events]
        sent = []

        async def receive():
            return events.pop(0)

        async def send(event):
            sent.append(event)

        asyncio.run(guard(scope, receive, send))
        return sent[0]["status"]

    join = "/gradio_api/queue/join"
    inside = json.dumps({"data": [{"path": str(tmp_path / "a" / "b.png")}]}).encode()
    assert status(join, inside[:9], inside[9:]) == 200
    assert passed == [inside]
    # Of repeated keys the last one counts, for some readers the first.
    for pair in ('"path": "http://a", "path": null', '"path": null, "path": "/etc/passwd"'):
        assert status(join, b'{"data": [{%s}]}' % pair.encode()) == 400
    outside = {"path": str(tmp_path / ".." / "a.png")}
    for message in (json.dumps(outside).encode(), b'{"path": ["a"]}', b"{", b"[" * 100_000):
        assert status(join, message) == 400
    assert status(join, b'"', b"a" * 2_000_000, b'"') == 413
    upload = "/gradio_api/upload"
    assert status(upload, **{"content-length": "1000"}) == 200
    assert status(upload, **{"content-length": "1000000"}) == 413
    assert status(upload) == 411
    for path in ("/gradio_api/process_recording", "/gradio_api/proxy=x", "/login"):
        assert status(path) == 404


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("anna.jpg", "anna"),
        ("../../etc/pass wd.tar.gz", "pass-wd-tar"),
        ("C:\\a\\Zoë (1).JPG", "Zoë-1"),
        (".png", "png"),
        ("<img src=x>.png", "img-src-x"),
        ("\n/..", "photo"),
        ("写真" * 99 + ".png", "写真" * 30),
    ],
)
def test_names_of_results_are_safe(name, stem):
    assert Upload(b"", name).stem == stem


@pytest.mark.parametrize(
    "wrong",
    [
        {"background": "/etc/passwd"},
        {"background": ["colour"]},
        {"background": "image"},
        {"colour": "/etc/passwd"},
        {"colour": "rgba(1, 2, 3"},
        {"colour": None},
        {"preset": "best"},
        {"foreground": 1},
    ],
)
def test_choices_are_checked(wrong):
    with pytest.raises(PortraitmattingError, match=next(iter(wrong.values())) and r"\w") as caught:
        Choices(**wrong)
    assert "\n" not in str(caught.value)


def test_closed_form_is_for_small_images(tmp_path, tiny_predictor):
    Image.new("RGB", (2000, 1500)).save(tmp_path / "large.jpg")
    upload = Upload((tmp_path / "large.jpg").read_bytes(), "large.jpg")
    with pytest.raises(PortraitmattingError, match="use ml or fast"):
        matte_photo(tiny_predictor, upload, Choices(foreground="cf"), 50, lambda *_: None)


def test_behind_a_proxy_on_a_path_every_address_is_the_proxy_s(checkpoint, tmp_path):
    options = ["--root-path", "matte/", "--allowed-host", "Photos.Example"]
    with serving(checkpoint, tmp_path, *options) as address:
        asked = {"Host": "photos.example:8443", "X-Forwarded-Proto": "https"}
        config = httpx.get(address + "config", headers=asked, timeout=60).json()
        assert config["root"] == "https://photos.example:8443/matte"
        assert httpx.get(address, headers=asked, timeout=60).status_code == 200
        refused = httpx.get(address, headers={"Host": "other.example"}, timeout=60)
        assert refused.status_code == 421
        assert "--allowed-host other.example" in refused.json()["detail"]


def test_calls_of_the_server_are_checked(capsys):
    from portraitmatting.web.server import serve

    with pytest.raises(PortraitmattingError, match="0 megabytes"):
        serve(max_megabytes=0)
    with pytest.raises(PortraitmattingError):
        serve(checkpoint="no/such.safetensors")
    assert not capsys.readouterr().err
    with pytest.raises(PortraitmattingError):
        serve(host="0.0.0.0", checkpoint="no/such.safetensors")
    assert "there is no password" in capsys.readouterr().err


def test_the_network_works_for_one_user_at_a_time_and_files_go(tmp_path, monkeypatch, photo):
    from gradio.route_utils import delete_files_created_by_app

    from portraitmatting.web.page import build_page

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    torch.manual_seed(0)
    predictor = Predictor(PortraitMatting(ModelConfig.tiny()), short_side=64)
    inside, most = [], []

    class Watched(type(predictor)):
        def predict(self, image):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()
            return super().predict(image)

    predictor.__class__ = Watched
    write_image(tmp_path / "a.png", photo)
    page = build_page(predictor, 1, tmp_path, tmp_path / "none", keep_seconds=3600)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, share=False)
    try:
        client = client_of(address, download_files=False)
        sent = gradio_client.handle_file(tmp_path / "a.png")
        jobs = [client.submit(sent, foreground="none", api_name="/matte") for _ in range(4)]
        files = [Path(file["path"]) for job in jobs for file in job.result()]
        assert len({file.parent for file in files}) == 4
        assert most == [1, 1, 1, 1]
        # What Gradio does every quarter of an hour, here without waiting for anything to grow old.
        assert page.delete_cache == (900, 3600)
        assert all(file.exists() for file in files)
        delete_files_created_by_app(page, age=0)
        assert not any(file.exists() for file in files)
    finally:
        page.close(verbose=False)
