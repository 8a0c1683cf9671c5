"""The network beside its plain twin, and beside the machine's matrix multiplication."""

import statistics
import sys
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import Function, interleaved, say, table
from portraitmatting import PortraitMatting, PortraitmattingError
from portraitmatting.checkpoint.author_keys import from_author_keys
from portraitmatting.device import check_compiler

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from golden_weights import golden_shapes, weights
from plain_network import PlainNetwork

SIZES = ((448, 576), (768, 1024))
_GEMM = 2048, 1024, 1024
_GEMMS = 10


def networks() -> tuple[PortraitMatting, PlainNetwork]:
    """Ours as `Predictor` runs it, and the plain one, under the same made-up weights."""
    state = weights(golden_shapes())
    ours, plain = PortraitMatting().eval(), PlainNetwork().eval()
    ours.load_state_dict(from_author_keys(state))
    plain.load_state_dict({k: v for k, v in state.items() if "index" not in k}, strict=False)
    return ours.to(memory_format=torch.channels_last), plain


def multiplications() -> dict[str, Function]:
    """The ways this PyTorch can multiply matrices, `_GEMMS` times over; the fastest counts."""
    rows, inner, columns = _GEMM
    a, b = torch.randn(rows, inner), torch.randn(columns, inner)

    def mkl() -> None:
        for _ in range(_GEMMS):
            torch.nn.functional.linear(a, b)

    def onednn() -> None:
        for _ in range(_GEMMS):
            torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")

    return {"mkl": mkl, "onednn": onednn} if torch.backends.mkldnn.is_available() else {"mkl": mkl}


@torch.inference_mode()
def network_table(quick: bool) -> str:
    """Seconds, speed-up over the plain network, and share of the machine's GEMM rate."""
    ours, plain = networks()
    rows = []
    for height, width in SIZES[:1] if quick else SIZES:
        for batch in (1,) if quick else (1, 4):
            say(f"network at {height}x{width}, batch {batch}")
            images = torch.rand(batch, 3, height, width)
            laid_out = images.contiguous(memory_format=torch.channels_last)
            with FlopCounterMode(display=False) as counter:
                expected = plain(images)
            apart = max(
                (mine - theirs).abs().max().item()
                for mine, theirs in zip(ours(laid_out), expected, strict=True)
            )
            functions: dict[str, Function] = {
                "plain": lambda images=images: plain(images),
                "ours": lambda images=laid_out: ours(images),
                **multiplications(),
            }
            large = batch * height * width > 10**6
            seconds = interleaved(functions, 1 if quick else 3 if large else 9)
            gemm = 2 * _GEMMS * _GEMM[0] * _GEMM[1] * _GEMM[2]
            gemm_rate = gemm / min(seconds[name] for name in multiplications())
            rate = counter.get_total_flops() / seconds["ours"]
            rows.append(
                [
                    f"{height}x{width}, batch {batch}",
                    f"{seconds['plain']:.2f} s",
                    f"{seconds['ours']:.2f} s",
                    f"{seconds['plain'] / seconds['ours']:.2f}",
                    f"{rate / 1e9:.0f} of {gemm_rate / 1e9:.0f} GFLOP/s ({rate / gemm_rate:.0%})",
                    f"{apart:.0e}",
                ]
            )
    titles = ("network, fp32", "plain", "ours", "speed-up", "share of GEMM", "largest difference")
    return table(titles, rows)


_OPERATORS = {
    "linear layers": ("addmm", "addmm_", "mm"),
    "convolutions": ("mkldnn_convolution",),
    "attention": ("_scaled_dot_product_flash_attention_for_cpu", "bmm", "_softmax"),
    "GELU": ("gelu", "gelu_"),
    "moving and joining": ("copy_", "cat", "index_select", "index", "fill_"),
    "LayerNorm, GroupNorm": ("native_layer_norm", "native_group_norm"),
    "sums": ("add", "add_"),
    "PReLU": ("_prelu_kernel",),
    "upsampling": ("upsample_bilinear2d",),
}


@torch.inference_mode()
def operators_table() -> str:
    """Where the time goes at 448x576, batch 1: medians of five profiled passes in turns."""
    ours, plain = networks()
    images = torch.rand(1, 3, *SIZES[0])
    laid_out = images.contiguous(memory_format=torch.channels_last)
    functions: dict[str, Function] = {
        "plain": lambda: plain(images),
        "ours": lambda: ours(laid_out),
    }
    say("operators")
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in functions}
    for number in range(6):
        for name, function in functions.items():
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                function()
            if number:
                turns[name].append(_by_group(profiler))
    rows = []
    for group in (*_OPERATORS, "all else"):
        milliseconds = (statistics.median(turn[group] for turn in turns[name]) for name in turns)
        rows.append([group, *(f"{value:.0f} ms" for value in milliseconds)])
    return table(("operators", *functions), rows)


def _by_group(profiler: profile) -> dict[str, float]:
    """Milliseconds per group of operators."""
    group_of = {f"aten::{name}": group for group, names in _OPERATORS.items() for name in names}
    group_of["mkldnn::_linear_pointwise"] = "linear layers"
    found = dict.fromkeys((*_OPERATORS, "all else"), 0.0)
    for event in profiler.key_averages():
        found[group_of.get(event.key, "all else")] += event.self_cpu_time_total / 1000
    return found


@torch.inference_mode()
def compile_table() -> str:
    """torch.compile beside the network as it is; in words where there is no compiler."""
    try:
        check_compiler()
    except PortraitmattingError as error:
        return f"torch.compile: not measured ({error})\n"
    ours, _ = networks()
    compiled = torch.compile(ours)
    rows = []
    for height, width in ((448, 576), (576, 448)):
        images = torch.rand(1, 3, height, width).contiguous(memory_format=torch.channels_last)
        say(f"torch.compile at {height}x{width}")
        before = time.perf_counter()
        compiled(images)
        first = time.perf_counter() - before
        seconds = interleaved(
            {
                "as it is": lambda images=images: ours(images),
                "compiled": lambda images=images: compiled(images),
            },
            5,
        )
        rows.append(
            [
                f"{height}x{width}",
                f"{first:.0f} s",
                f"{seconds['compiled']:.2f} s",
                f"{seconds['as it is'] / seconds['compiled']:.2f}",
            ]
        )
    return table(("torch.compile", "first call", "compiled", "speed-up over ours"), rows)
