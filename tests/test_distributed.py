"""The folder job on many machines: nothing is lost, doubled or done twice."""

import csv
import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch

from deadly_results import DeadlyResults
from portraitmatting import ModelConfig, PortraitMatting, PortraitmattingError, Predictor
from portraitmatting.checkpoint.format import CheckpointInfo, save_checkpoint
from portraitmatting.checkpoint.load import load_model
from portraitmatting.cli import FAILED, USAGE, run
from portraitmatting.commands import distributed as command_line
from portraitmatting.folder.job import matte_folder
from portraitmatting.folder.plan import plan_folder, plan_results
from portraitmatting.folder.results import ResultOptions
from portraitmatting.images.files import read_image, write_image
from portraitmatting.pymatting_solvers import load_solver

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
pa = pytest.importorskip("pyarrow")
fsspec = pytest.importorskip("fsspec")

from portraitmatting.distributed import cluster, worker  # noqa: E402
from portraitmatting.distributed import run as run_module  # noqa: E402
from portraitmatting.distributed.cluster import CrashCounter  # noqa: E402
from portraitmatting.distributed.report import Report, Summary  # noqa: E402
from portraitmatting.distributed.storage import find_storage  # noqa: E402

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PLAIN = ResultOptions(foreground="none")
KINDS = ("alpha", "rgba")


@pytest.fixture(scope="session")
def two_cores() -> Iterator[None]:
    """Ray on this machine, with room for two workers; it takes seconds to start, so once."""
    with pytest.MonkeyPatch.context() as patch:
        # Workers look there for what they are sent by name.
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
        for last in (False, False, True):
            try:
                ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
                break
            except Exception:  # it gives itself half a minute, which a busy machine may not have
                ray.shutdown()
                if last:
                    raise
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    info = CheckpointInfo(origin="a test", licence="none", working_short_side=64)
    save_checkpoint(path, PortraitMatting(ModelConfig.tiny()), info)
    return str(path)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a worker has it: sums then come in one order, and results can be compared bit by bit."""
    torch_threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(torch_threads)
    cv2.setNumThreads(cv2_threads)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twelve crops of real images, each of its own width, in a tree of odd names, and a file
    that is no image."""
    names = [f"{folder}/{index}.jpg" for folder in ("Jörg & Ann", "x.y/z") for index in range(5)]
    astronaut = read_image(EXAMPLES / "astronaut.jpg").pixels
    for index, name in enumerate(["a.webp", "no utf-8 \udcff.png", *names]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, astronaut[20 + index : 170, 140 : 240 + index])
    (tmp_path / "photos" / "x.y" / "bad.png").write_text("no image")
    return tmp_path / "photos"


@pytest.fixture
def workerlike(two_cores, checkpoint, one_thread) -> Callable[..., worker.Worker]:
    """Makes a worker of this process, which has loaded numba, as workers have not."""
    load_solver("ml")

    def make(
        source: str,
        output: str,
        crashes: CrashCounter,
        style: ResultOptions = PLAIN,
        network: bytes | None = None,
    ) -> worker.Worker:
        calls = SimpleNamespace(
            begin=SimpleNamespace(remote=lambda key: ray.put(crashes.begin(key))),
            end=SimpleNamespace(remote=lambda key: ray.put(crashes.end(key))),
        )
        orders = worker.Orders(
            find_storage(source), find_storage(output), plan_results("", KINDS), style,
            ray.put(network or load_model(checkpoint)), calls, 64, "fp32", 1, 1, "cpu",
        )  # fmt: skip
        return worker.Worker(orders)

    return make


def block(*sources: str) -> "pa.Table":
    rows = [
        {
            "source": os.fsencode(s),
            "name": b"",
            "kinds": " ".join(KINDS),
            "block": 7,
        }
        for s in sources
    ]
    return pa.Table.from_pylist(rows)


def results(folder: Path) -> dict[str, bytes]:
    """Every file in the folders of results; a killed process may leave hidden ones behind."""
    paths = (path for kind in KINDS for path in (folder / kind).rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def call(*arguments: object) -> int | str | None:
    """The exit code of the command line, in this process."""
    with pytest.raises(SystemExit) as ended:
        run(lambda: command_line.main([str(argument) for argument in arguments]))
    return ended.value.code


def test_a_killed_worker_loses_and_doubles_nothing(
    two_cores, photos, checkpoint, one_thread, tmp_path, monkeypatch, capsys
):
    output, mark = tmp_path / "out", tmp_path / "killed"
    matte_storage = run_module.matte_storage

    def deadly(source, output, plan, style, **options):
        style = DeadlyResults(style.foreground, style.background, width=106, mark=str(mark))
        return matte_storage(source, output, plan, style, **options)

    monkeypatch.setattr(run_module, "matte_storage", deadly)
    options = ("--checkpoint", checkpoint, "--foreground", "none", "--preset", "fast")
    assert call(photos, output, *options) == FAILED
    assert mark.exists()
    message = capsys.readouterr().out
    assert "12 done, 0 skipped, 1 failed\n" in message
    assert f"failed: {photos / 'x.y' / 'bad.png'}: text, not an image" in message

    plan = plan_folder(photos, tmp_path / "same", KINDS)
    matte_folder(plan, Predictor(load_model(checkpoint), preset="fast"), PLAIN)
    expected = results(tmp_path / "same")
    assert len(expected) == 24
    assert results(output) == expected
    report = table(output / "report.csv")
    names = [str(source).replace("\udcff", r"\udcff") for source in plan.sources]
    assert sorted(row["source"] for row in report) == sorted(names)
    assert [row for row in report if row["outcome"] != "done"] == table(output / "failures.csv")
    assert [row["source"] for row in table(output / "failures.csv")] == ["x.y/bad.png"]

    # A second run, once there is nothing to do.
    (photos / "x.y" / "bad.png").unlink()
    monkeypatch.setattr(run_module, "connected", None)
    written = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert call(photos, output, *options) == 0
    assert "0 done, 12 skipped, 0 failed\n" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == written


def test_an_object_store_gets_what_the_folder_job_writes(photos, checkpoint, workerlike, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(str(photos), "memory://photos", recursive=True)
    matte = workerlike("memory://photos", "memory://out", CrashCounter())
    sources = "a.webp", "x.y/z/3.jpg", "x.y/bad.png", "x.y/gone.png"
    rows = matte(block(*sources)).to_pylist()

    assert [os.fsdecode(row["source"]) for row in rows] == list(sources)
    assert [row["outcome"] for row in rows] == ["done", "done", "failed", "failed"]
    assert "/photos/x.y/bad.png: text, not an image" in rows[2]["reason"]
    assert "/photos/x.y/gone.png: cannot be opened" in rows[3]["reason"]
    matte_folder(plan_folder(photos, tmp_path), Predictor(load_model(checkpoint)), PLAIN)
    for name in "a.png", "x.y/z/3.png":
        for kind in KINDS:
            assert memory.cat(f"/out/{kind}/{name}") == (tmp_path / kind / name).read_bytes()
    assert rows[0]["bytes_read"] == (photos / "a.webp").stat().st_size
    sizes = [(tmp_path / kind / "a.png").stat().st_size for kind in KINDS]
    assert rows[0]["bytes_written"] == sum(sizes)
    memory.rm("/out", recursive=True)
    memory.rm("/photos", recursive=True)


def test_an_image_that_kills_workers_is_given_up_and_no_other(photos, workerlike, tmp_path):
    class Dies(ResultOptions):
        def results(self, matte, kinds, bits):
            if matte.alpha.shape[1] == 104:
                raise KeyboardInterrupt  # what the worker does not catch ends it
            return super().results(matte, kinds, bits)

    crashes, output = CrashCounter(), tmp_path / "out"
    work = block(*(f"Jörg & Ann/{index}.jpg" for index in range(5)))
    for _ in range(3):
        matte = workerlike(str(photos), str(output), crashes, Dies("none"))
        with pytest.raises(KeyboardInterrupt):
            matte(work)
    rows = workerlike(str(photos), str(output), crashes, Dies("none"))(work).to_pylist()
    assert [row["outcome"] for row in rows] == ["done", "done", "failed", "done", "done"]
    assert "Ann/2.jpg: a worker died at it 2 times" in rows[2]["reason"]


def test_an_error_nobody_thought_of_fails_images_and_not_the_job(photos, workerlike, tmp_path):
    class Odd(ResultOptions):
        def results(self, matte, kinds, bits):
            raise TypeError("odd")

    rows = workerlike(str(photos), str(tmp_path), CrashCounter(), Odd("none"))(block("a.webp"))
    assert rows["outcome"].to_pylist() == ["failed"]
    assert rows["reason"].to_pylist() == ["TypeError: odd"]


def test_a_full_disk_stops_the_job(photos, workerlike, tmp_path, monkeypatch):
    matte = workerlike(str(photos), str(tmp_path), CrashCounter())

    def full(self, path, data):
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr("portraitmatting.distributed.storage.Storage.write", full)
    rows = matte(block("a.webp", "x.y/z/3.jpg"))
    assert set(rows["outcome"].to_pylist()) == {"stopped"}
    monkeypatch.undo()
    with Report(find_storage(str(tmp_path)), Summary()) as report:
        report.add(rows)
    assert "No space left on device" in report.summary.stopped
    assert report.summary.done == report.summary.failed == 0


def handed_out(monkeypatch, tmp_path, report_of: Callable[[list], Iterator]) -> Summary:
    """A job of 40 images whose workers say what `report_of` makes of true rows, block by block."""
    todo = block(*map(str, range(40))).drop_columns("block")

    def rows(images) -> Iterator["pa.Table"]:
        tables = (ray.get(ref) for ref in images.to_arrow_refs())
        made = []
        for given in tables:
            row = {"outcome": "done", "seconds": 0.5, "cpu_seconds": 0.25, "bytes_read": 1}
            row |= {"bytes_written": 1, "reason": "", "worker": "here:1"}
            rows = [{**row, **source} for source in given.to_pylist()]
            made.append(pa.Table.from_pylist(rows, worker.ROWS))
        yield from report_of(made)

    # The images as they are handed out, without workers.
    monkeypatch.setattr(ray.data.Dataset, "map_batches", lambda self, *a, **k: self)
    monkeypatch.setattr(run_module, "_rows", rows)
    place = find_storage(str(tmp_path))
    orders = SimpleNamespace(source=place, cores=1)
    with Report(place, Summary()) as report:
        run_module.hand_out(todo, orders, 2, 0, report, progress=False)
    return report.summary


def test_an_onnx_file_travels_too(photos, checkpoint, workerlike, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from portraitmatting.commands import export

    assert export.main([str(tmp_path / "tiny.onnx"), "--checkpoint", checkpoint]) == 0
    matte = workerlike(
        str(photos),
        str(tmp_path / "out"),
        CrashCounter(),
        network=(tmp_path / "tiny.onnx").read_bytes(),
    )
    (tmp_path / "tiny.onnx").rename(tmp_path / "moved.onnx")
    assert matte(block("a.webp"))["outcome"].to_pylist() == ["done"]
    assert (tmp_path / "out" / "rgba" / "a.png").stat().st_size


def test_a_worker_that_cannot_start_is_one_line(two_cores, monkeypatch, tmp_path):
    def fails(images):
        message = "ActorDiedError: ...\n  File x.py\nModuleNotFoundError: No module named 'timm'\n"
        raise ray.exceptions.RayTaskError("f", message, RuntimeError("x"))
        yield

    monkeypatch.setattr(run_module, "_rows", fails)
    place = find_storage(str(tmp_path))
    orders = SimpleNamespace(source=place, cores=1)
    todo = block("a.png").drop_columns("block")
    with Report(place, Summary()) as report, pytest.raises(PortraitmattingError) as caught:
        run_module.hand_out(todo, orders, 2, 0, report, progress=False)
    assert "cannot be started: ModuleNotFoundError: No module named 'timm': see" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


def test_every_image_is_handed_out_once(two_cores, monkeypatch, tmp_path):
    summary = handed_out(monkeypatch, tmp_path, iter)
    assert (summary.done, summary.worker_seconds, summary.cpu_seconds) == (40, 20, 10)
    assert {row["source"] for row in table(tmp_path / "report.csv")} == set(map(str, range(40)))
    assert len(table(tmp_path / "report.csv")) == 40


def test_images_of_which_no_worker_tells_have_failed(two_cores, monkeypatch, tmp_path):
    summary = handed_out(monkeypatch, tmp_path, lambda made: iter(made[1:]))
    assert (summary.done, summary.failed) == (38, 2)
    assert summary.reasons[1] == f"{tmp_path}/1: no worker has reported it: run again"
    assert [row["source"] for row in table(tmp_path / "failures.csv")] == ["0", "1"]


def test_ctrl_c_keeps_the_rows_so_far(two_cores, monkeypatch, tmp_path):
    def interrupted(made):
        yield made[0]
        raise KeyboardInterrupt

    summary = handed_out(monkeypatch, tmp_path, interrupted)
    assert summary.interrupted
    assert (summary.done, summary.failed) == (2, 0)
    assert len(table(tmp_path / "report.csv")) == 2


@pytest.mark.parametrize("count, workers", [(1, 8), (7, 2), (1000, 2), (9999, 3)])
def test_blocks_hold_every_image_once_and_travel_light(count, workers):
    todo = block(*(f"{index:04}.jpg" for index in range(count))).drop_columns("block")
    blocks = run_module._blocks(todo, workers)
    assert pa.concat_tables(blocks).drop_columns("block").equals(todo)
    assert [set(part["block"].to_pylist()) for part in blocks] == [{i} for i in range(len(blocks))]
    assert len({len(part) for part in blocks[:-1]} | {len(blocks[0])}) == 1
    assert len(blocks[0]) <= 64
    assert len(blocks) >= min(count, 8 * workers)
    assert max(part.get_total_buffer_size() for part in blocks) < 64 * 64


def test_crashes_are_counted_until_one_ends():
    crashes = CrashCounter()
    assert [crashes.begin("a"), crashes.begin("a"), crashes.begin("b")] == [0, 1, 0]
    crashes.end("a")
    assert [crashes.begin("a"), crashes.begin("b")] == [0, 1]


def test_workers_are_as_many_as_machines_have_room_for(monkeypatch):
    def machine(cores: int, gpus: int = 0, alive: bool = True) -> dict:
        return {"Alive": alive, "Resources": {"CPU": cores, "GPU": gpus}}

    machines = [machine(7), machine(8, 2), machine(64, 8, alive=False), {**machine(0)}]
    monkeypatch.setattr(ray, "nodes", lambda: machines)
    assert cluster.room_for(1, 0) == 15
    assert cluster.room_for(4, 0) == 1 + 2
    assert cluster.room_for(1, 1) == 2
    assert cluster.room_for(1, 0.5) == 4
    assert cluster.room_for(8, 0.5) == 1
    with pytest.raises(PortraitmattingError, match="largest has 8 cores, 2 GPUs"):
        cluster.room_for(9, 0)


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch):
    def nobody(*_, **__):
        raise ConnectionError("nobody\nthere")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", nobody)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # of the other tests' Ray
    message = r"no Ray cluster at far:1 \(nobody\\nthere"
    with pytest.raises(PortraitmattingError, match=message), cluster.connected("far:1"):
        pass


def test_ray_tells_nobody_of_its_use():
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name)
    )
    assert call("photos", "out") == USAGE
    assert capsys.readouterr().err == (
        'error: many machines need ray: pip install -e ".[distributed]"\n'
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (["--cores-per-worker", "0"], "0: use 1 to 4096"),
        (["--workers", "0"], "0: use 1 to"),
        (["--gpus-per-worker", "2"], "2.0: use 0 to 1"),
        (["--format", "gif"], "unknown format 'gif'"),
        (["--precision", "fp16"], "needs a GPU"),
        (["--preset", "best"], "preset 'best': use live, fast, balanced, quality"),
        (["--foreground", "magic"], "unknown foreground method"),
        (["--checkpoint", "nowhere/x.safetensors"], "nowhere/x.safetensors"),
    ],
)
def test_a_wrong_call_is_answered_before_anything_is_started(photos, options, message, capsys):
    assert call(photos, photos.parent / "out", *options) == USAGE
    assert message in capsys.readouterr().err
    assert not (photos.parent / "out").exists()


def test_a_summary_shows_the_first_failures_and_counts_the_rest():
    summary = Summary(done=1, failed=30, reasons=["a: bad"] * 20, worker_seconds=31, skipped=2)
    lines = str(summary).splitlines()
    assert lines[0] == "1 done, 2 skipped, 30 failed"
    assert lines[1:21] == ["failed: a: bad"] * 20
    assert lines[21] == "failed: 10 more, see failures.csv"
    assert lines[22].startswith("per image: 1.000 worker seconds")


def test_a_summary_names_images_with_nobody_in_them(tmp_path):
    tasks = [worker.Task(name, outcome="done", empty=name != "b") for name in "abc"]
    with Report(find_storage(str(tmp_path)), Summary()) as report:
        report.add(worker.make_rows(tasks, 0))
    assert "2 with nobody in the matte: a, c\n" in str(report.summary)


def test_ray_does_not_keep_sigterm_for_itself(monkeypatch):
    from portraitmatting.distributed.cluster import connected

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", lambda *_, **__: signal.signal(signal.SIGTERM, print))
    with connected():
        assert signal.getsignal(signal.SIGTERM) is before
