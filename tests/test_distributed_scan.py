"""Where images are, on disks and in object stores, and which of them are still to be done."""

import os
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from portraitmatting import PortraitmattingError
from portraitmatting.folder.plan import plan_results
from portraitmatting.images.files import write_image
from portraitmatting.images.listing import list_images

pa = pytest.importorskip("pyarrow")
fsspec = pytest.importorskip("fsspec")

from portraitmatting.distributed.report import check_reports  # noqa: E402
from portraitmatting.distributed.scan import check_outputs, scan  # noqa: E402
from portraitmatting.distributed.storage import Storage, find_storage  # noqa: E402

PLAN = plan_results("", ["alpha", "rgba"])
NAMES = ("b.png", "a/c.JPG", "a/d/e.webp", "z.jpeg")


@pytest.fixture(params=["disk", "store"])
def root(request, tmp_path) -> str:
    """The URL of an empty folder."""
    if request.param == "disk":
        yield str(tmp_path / "root")
        return
    yield "memory://root"
    memory = fsspec.filesystem("memory")
    if memory.exists("/root"):
        memory.rm("/root", recursive=True)


@pytest.fixture
def source(root) -> Storage:
    place = find_storage(f"{root}/photos")
    for name in NAMES:
        place.write(name, b"an image")
    return place


@pytest.fixture
def output(root) -> Storage:
    return find_storage(f"{root}/out")


def todo(source: Storage, output: Storage, settings: str = "s", overwrite: bool = False, plan=PLAN):
    """{source: kinds} still to be done."""
    check_outputs(source, output, plan)
    given = dict.fromkeys(plan.kinds, settings)
    with tqdm(disable=True) as bar:
        result = scan(source, output, plan, given, overwrite, bar)
    rows = {os.fsdecode(row["source"]): row["kinds"] for row in result.todo.to_pylist()}
    listed = sum(len(images) for _, images in source.images(exclude=output))
    assert len(rows) == len(result.todo) == listed - result.skipped
    return rows


def make(output: Storage, *sources: str, kinds=PLAN.kinds) -> None:
    for name in sources:
        for kind in kinds:
            output.write(PLAN.target(Path(name), kind).as_posix(), b"a result")


def age(place: Storage, path: str, seconds: float) -> None:
    """As if it had been changed that long before."""
    if place.folder is not None:
        stat = (place.folder / path).stat()
        os.utime(place.folder / path, (stat.st_atime, stat.st_mtime - seconds))
    else:
        file = place.fs.store[place.name(path)]
        file.created = file.created - timedelta(seconds=seconds)


def test_everything_is_to_be_done_at_first_and_nothing_at_last(source, output):
    assert todo(source, output) == dict.fromkeys(NAMES, "alpha rgba")
    make(output, *NAMES)
    assert todo(source, output) == {}


def test_what_is_missing_is_done(source, output):
    todo(source, output)
    make(output, *NAMES[1:])
    make(output, NAMES[0], kinds=["rgba"])
    assert todo(source, output) == {NAMES[0]: "alpha"}


def test_an_image_changed_since_is_done_again(done, source, output):
    source.write("a/c.JPG", b"another image")
    assert todo(source, output) == {"a/c.JPG": "alpha rgba"}


@pytest.fixture
def done(source, output) -> None:
    """All was done an hour ago, of images and under settings that are two hours old."""
    todo(source, output)
    make(output, *NAMES)
    for name in NAMES:
        age(source, name, 7200)
    for kind in PLAN.kinds:
        age(output, f".portraitmatting/{kind}", 7200)
        for name in NAMES:
            age(output, PLAN.target(Path(name), kind).as_posix(), 3600)
    assert todo(source, output) == {}


@pytest.mark.parametrize("change", [{"settings": "other"}, {"overwrite": True}])
def test_all_is_done_again_even_if_that_is_interrupted(done, source, output, change):
    assert todo(source, output, **change) == dict.fromkeys(NAMES, "alpha rgba")
    make(output, *NAMES[:2])
    settings = change.get("settings", "s")
    assert set(todo(source, output, settings)) == set(NAMES[2:])


def test_two_images_of_one_name_keep_their_suffix(source, output):
    source.write("a/c.png", b"")
    given = dict.fromkeys(PLAN.kinds, "s")
    with tqdm(disable=True) as bar:
        rows = scan(source, output, PLAN, given, False, bar).todo.to_pylist()
    names = {os.fsdecode(row["source"]): os.fsdecode(row["name"]) for row in rows}
    assert names["a/c.png"] == "a/c.png.png"
    assert names["a/c.JPG"] == "a/c.JPG.png"
    assert names["b.png"] == ""


def test_an_output_belongs_to_one_input(root, source, output):
    todo(source, output)
    other = find_storage(f"{root}/other")
    other.write("b.png", b"another image")
    with pytest.raises(PortraitmattingError, match=r"holds the results of .*photos: choose"):
        todo(other, output)
    assert todo(other, output, overwrite=True) == {"b.png": "alpha rgba"}


def test_a_mistyped_input_keeps_the_output_free(root, source, output):
    mistyped = find_storage(f"{root}/mistyped")
    mistyped.write("notes.txt", b"no image")
    with pytest.raises(PortraitmattingError, match="no images found"):
        todo(mistyped, output)
    assert todo(source, output)


def test_folders_of_results_are_no_inputs(source):
    for name in ".portraitmatting.jsonl", "alpha/a.png", "old/.portraitmatting/alpha":
        source.write(name, b"")
    source.write("old/rgba/a.png", b"")
    source.write("old/own/a.png", b"")
    assert set(todo(source, find_storage(f"{source.url}/out"))) == {*NAMES, "old/own/a.png"}


def test_reports_replace_nobodys_files(source, output):
    check_reports(output)
    output.write("failures.csv", b"mine,yours\n")
    with pytest.raises(PortraitmattingError, match=r"failures\.csv is not a report of ours"):
        check_reports(output)
    output.write(
        "failures.csv",
        b"source,outcome,reason,seconds,cpu_seconds,bytes_read,bytes_written,worker\n",
    )
    check_reports(output)


def test_hidden_names_and_the_output_are_no_images(source):
    for name in ".hidden.png", ".folder/a.png", "out/alpha/b.png", "notes.txt":
        source.write(name, b"")
    inside = find_storage(f"{source.url}/out")
    assert set(todo(source, inside)) == set(NAMES)


def test_places_that_cannot_be(root, source, output):
    with pytest.raises(PortraitmattingError, match="no such folder"):
        check_outputs(find_storage(f"{root}/nowhere"), output, PLAN)
    with pytest.raises(PortraitmattingError, match="is the input folder too"):
        check_outputs(source, source, PLAN)
    make(output, "below/x.png")
    for lost in f"{root}/out/alpha", f"{root}/out/alpha/below":
        with pytest.raises(PortraitmattingError, match="is among the results"):
            check_outputs(find_storage(lost), output, PLAN)
    find_storage(f"{root}/empty").write("notes.txt", b"")
    with pytest.raises(PortraitmattingError, match="no images found"):
        todo(find_storage(f"{root}/empty"), output)


def test_stores_and_disks_list_the_same_images(tmp_path):
    for name in (*NAMES, "a/.b.png", "a/d/x.PNM", "ü/1.2.gif", "a.png/b.avif", "q.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "memory://listed", recursive=True)
    elsewhere = find_storage("memory://out")
    for url in str(tmp_path), f"file://{tmp_path}", "memory://listed":
        result = find_storage(url).images(exclude=elsewhere)
        assert sorted(folder / name for folder, names in result for name in names) == list_images(
            tmp_path
        )
    memory.rm("/listed", recursive=True)


def test_on_a_disk_files_appear_whole(tmp_path, monkeypatch):
    place = find_storage(str(tmp_path))
    place.write("a/b.png", b"first")

    def fails(self, data):
        raise OSError("full")

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OSError, match="full"):
        place.write("a/b.png", b"second")
    assert place.read("a/b.png") == b"first"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.png"]


def test_a_dangling_link_is_tried_each_time(tmp_path):
    write_image(tmp_path / "in.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").symlink_to(tmp_path / "in.png")
    (tmp_path / "photos" / "b.png").symlink_to(tmp_path / "gone.png")
    source, output = find_storage(str(tmp_path / "photos")), find_storage(str(tmp_path / "out"))
    todo(source, output)
    make(output, "a.png", "b.png")
    assert set(todo(source, output)) == {"b.png"}


def test_names_with_colons_are_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("12:30:00", "a::b", "memory:c"):
        storage = find_storage(name)
        assert storage.folder == tmp_path / name
        storage.write("a.png", b"an image")
        assert [list(images) for _, images in storage.images(exclude=storage)] == []
        other = find_storage(str(tmp_path / "elsewhere"))
        assert [list(images) for _, images in storage.images(exclude=other)] == [["a.png"]]
    for empty in ("", " "):
        with pytest.raises(PortraitmattingError, match="an empty name"):
            find_storage(empty)


@pytest.mark.parametrize("url", ["nosuch://bucket/a", "s4://x"])
def test_an_address_that_nothing_can_open_is_one_line(url):
    with pytest.raises(PortraitmattingError, match=f"^{url}: .*choose a folder, or a URL"):
        find_storage(url)


def test_errors_of_a_store_become_ours(source, output, monkeypatch):
    class NoRights(Exception):
        pass

    def refuse(*_, **__):
        raise NoRights("403")

    monkeypatch.setattr(type(source.fs), "ls", refuse)
    if source.folder is None:
        with pytest.raises(PortraitmattingError, match=r"photos: cannot be used \(403\)"):
            list(source.images(exclude=output))
    with pytest.raises(PortraitmattingError, match=r"out: cannot be used \(403\)"):
        todo(source, output)
