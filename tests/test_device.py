"""Devices and precisions: only those that were asked for, and a message for every fallback."""

import pytest
import torch

from portraitmatting import PortraitMatting, PortraitmattingError, Predictor
from portraitmatting.device import (
    PRECISIONS,
    choose_device,
    choose_precision,
    describe_device,
    describe_precision,
    is_out_of_memory,
)

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.fixture
def machine(monkeypatch):
    """Pretends to have so many GPUs, or an Apple one."""

    def pretend(gpus: int = 0, apple: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)

    return pretend


def test_auto_is_the_best_device_of_the_machine(machine):
    for gpus, apple, best in [(2, False, CUDA), (1, True, CUDA), (0, True, MPS), (0, False, CPU)]:
        machine(gpus, apple)
        assert choose_device() == choose_device("auto") == best


def test_a_named_device_is_used(machine):
    machine(2, apple=True)
    for name in ("cpu", "cuda", "cuda:0", "cuda:1", "mps"):
        assert choose_device(name) == torch.device(name)


@pytest.mark.parametrize(
    ("name", "gpus", "message"),
    [
        ("cuda", 0, "use cpu or auto"),
        ("cuda:0", 0, "use cpu or auto"),
        ("cuda:2", 2, "there are 2 GPUs"),
        ("mps", 0, "no Apple GPU"),
        ("gpu", 0, "unknown device 'gpu'"),
        ("", 0, "unknown device"),
        ("cuda:x", 1, "unknown device"),
        ("meta", 0, "not supported"),
        ("xpu", 0, "not supported"),
    ],
)
def test_a_missing_device_is_an_error_and_no_fallback(machine, name, gpus, message):
    machine(gpus)
    with pytest.raises(PortraitmattingError, match=message) as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)


def test_the_error_for_cuda_without_a_gpu_names_the_cause(machine, monkeypatch):
    machine()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(PortraitmattingError, match="this PyTorch has no CUDA"):
        choose_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(PortraitmattingError, match="no usable GPU"):
        choose_device("cuda")


def test_precision_auto_depends_on_the_device():
    assert choose_precision("auto", CUDA) == torch.float16
    assert choose_precision("auto", CPU) == choose_precision("auto", MPS) == torch.float32


@pytest.mark.parametrize(
    ("processor", "faster"),
    [
        ({"cpu_name": "AMD EPYC 9R14", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"cpu_name": "AMD EPYC 7R13", "avx512_bf16": False, "amx_bf16": False}, False),
        ({"cpu_name": "Intel(R) Xeon(R) 8488C", "avx512_bf16": True, "amx_bf16": True}, True),
        ({"cpu_name": "Intel(R) Xeon(R) 8488C", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"cpu_name": "Apple M2"}, False),
        ({}, False),
    ],
)
def test_auto_on_a_cpu_is_bf16_where_that_is_faster(monkeypatch, processor, faster):
    monkeypatch.undo()  # of what holds for all other tests
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    dtype = torch.bfloat16 if faster else torch.float32
    assert choose_precision("auto", CPU) == dtype
    assert choose_precision("fp32", CPU) == torch.float32


def test_precisions_by_name():
    for name, dtype in PRECISIONS.items():
        assert choose_precision(name, CUDA) == dtype
        assert describe_precision(dtype) == name


def test_wrong_precisions_are_refused():
    with pytest.raises(PortraitmattingError, match="unknown precision 'half': use auto, fp32"):
        choose_precision("half", CPU)
    with pytest.raises(PortraitmattingError, match="fp16 needs a GPU"):
        choose_precision("fp16", CPU)


def test_descriptions(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert describe_device(CPU) == "cpu (2 threads)"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert describe_device(CPU) == "cpu (1 thread)"
    assert describe_device(MPS) == "mps"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("any words"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_running_out_of_memory_differs_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


def test_the_message_of_the_cpu_allocator_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_libraries_of_cuda_without_memory_are_out_of_memory(message):
    assert is_out_of_memory(RuntimeError(message))


def test_the_device_of_a_predictor_is_that_of_its_model(machine, tiny_model, monkeypatch):
    """With its index: in a thread with another current device, "cuda" would be another GPU."""
    machine(2)
    device = torch.device("meta")  # stands for cuda:1, the current device of this thread
    move = torch.nn.Module.to
    monkeypatch.setattr(PortraitMatting, "to", lambda self, *_, **__: move(self, device))
    assert Predictor(tiny_model, 64, device="cuda").device == device
