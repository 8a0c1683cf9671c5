"""Damaged files through the image decoder: `python -m benchmarks.fuzz_decode --files 12000`.

Files of every kind that is read are damaged at random and decoded twice, with freshly allocated
memory filled with other bytes each time. A fault is a crash, any exception but ImageError, more
than 20 seconds, and pixels that differ, since these show memory that the decoder never wrote.
"""

import argparse
import ctypes
import faulthandler
import io
import multiprocessing
import random
import resource
import struct
import sys
import zlib
from collections import Counter
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from portraitmatting.errors import ImageError
from portraitmatting.images.decode import decode

_PERTURB = -6  # mallopt's M_PERTURB: fill what malloc hands out and what is freed
_FILES_PER_PROCESS = 250
_MEMORY = 6 << 30


def samples() -> dict[str, bytes]:
    """Small sound files, by kind and variant."""
    y, x = np.mgrid[:45, :62]
    rgb = np.dstack([4 * x, 5 * y, (x * y) % 256]).astype(np.uint8)
    rgba = np.dstack([rgb, (4 * x).astype(np.uint8)])
    grey, deep = rgb[..., 2], rgb.astype(np.uint16) * 257
    unit = deep / np.float32(65535)
    files = {
        "JPEG": _pillow(rgb, "JPEG", quality=90),
        "JPEG progressive": _pillow(rgb, "JPEG", progressive=True),
        "JPEG grey": _pillow(grey, "JPEG"),
        "JPEG CMYK": _pillow(rgba, "JPEG", mode="CMYK"),
        "JPEG restarts": _pillow(rgb, "JPEG", restart_marker_rows=1),
        "PNG": _pillow(rgb, "PNG"),
        "PNG RGBA": _pillow(rgba, "PNG"),
        "PNG palette": _pillow(rgb, "PNG", palette=True),
        "PNG 16 bits": imagecodecs.png_encode(deep),
        "PNG 16 bits grey": imagecodecs.png_encode(deep[..., 0].copy()),
        "PNG 1 bit": _pillow(grey, "PNG", mode="1"),
        "WebP": _pillow(rgb, "WEBP"),
        "WebP lossless RGBA": _pillow(rgba, "WEBP", lossless=True),
        "GIF": _pillow(rgb, "GIF"),
        "GIF transparent": _pillow(rgba, "GIF"),
        "BMP": _pillow(rgb, "BMP"),
        "BMP 32 bits": _pillow(rgba, "BMP"),
        "AVIF": _pillow(rgb, "AVIF"),
        "AVIF RGBA": _pillow(rgba, "AVIF"),
        "AVIF 10 bits": imagecodecs.avif_encode(deep >> 6, bitspersample=10),
        "HEIC": _pillow(rgb, "HEIF"),
        "HEIC RGBA": _pillow(rgba, "HEIF"),
        "JPEG XL": _pillow(rgb, "JXL"),
        "JPEG XL 16 bits": imagecodecs.jpegxl_encode(deep, lossless=True),
        "JPEG 2000": _pillow(rgb, "JPEG2000"),
        "JPEG 2000 codestream": _pillow(rgba, "JPEG2000", no_jp2=True),
        "PPM": _pillow(rgb, "PPM"),
        "PPM 16 bits": b"P6\n62 45\n65535\n" + deep.astype(">u2").tobytes(),
        "PGM 16 bits text": b"P2\n62 45\n65535\n" + b" ".join(b"%d" % v for v in deep[..., 0].flat),
        "PBM": _pillow(grey, "PPM", mode="1"),
        "TIFF CMYK": _pillow(rgba, "TIFF", mode="CMYK"),
        "TIFF YCbCr": _pillow(rgb, "TIFF", mode="YCbCr", compression="tiff_lzw"),
        "TIFF Lab": _pillow(rgb, "TIFF", mode="LAB"),
        "TIFF G4": _pillow(grey, "TIFF", mode="1", compression="group4"),
        "TIFF palette": _pillow(rgb, "TIFF", palette=True),
        "TIFF float": _tiff(unit, photometric="rgb", compression="zlib", predictor=3),
        "TIFF 12 bits": _tiff(deep[..., 0] >> 4, bitspersample=12, rowsperstrip=10),
    }  # fmt: skip
    for name, options in {
        "plain": {},
        "LZW strips": {"compression": "lzw", "predictor": 2, "rowsperstrip": 8},
        "deflate tiles": {"compression": "zlib", "tile": (16, 32)},
        "zstd planes": {"compression": "zstd", "planarconfig": "separate"},
        "PackBits": {"compression": "packbits", "rowsperstrip": 10},
        "big-endian planes": {"planarconfig": "separate", "byteorder": ">"},
    }.items():
        for depth, pixels in {"8 bits": rgb, "16 bits": deep}.items():
            planes = np.moveaxis(pixels, -1, 0) if "planarconfig" in options else pixels
            files[f"TIFF {depth} {name}"] = _tiff(planes, photometric="rgb", **options)
    files["TIFF JPEG"] = _tiff(rgb, photometric="rgb", compression="jpeg", rowsperstrip=16)
    return files


def _pillow(pixels: Any, kind: str, mode: str = "", palette: bool = False, **options: Any) -> bytes:
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if mode:
        image = image.convert("RGB").convert(mode) if mode != "LAB" else _as_lab(image)
    image = image.quantize(64) if palette else image
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _as_lab(image: Image.Image) -> Image.Image:
    return Image.frombytes("LAB", image.size, image.tobytes())


def _tiff(pixels: Any, byteorder: Any = "<", **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, byteorder=byteorder) as file:
        file.write(pixels, metadata=None, **options)
    return buffer.getvalue()


def damage(data: bytes, rng: random.Random) -> bytes:
    """One to eight random changes; half of the PNG files get right checksums afterwards."""
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 8])):
        # Headers are where most goes wrong.
        end = len(damaged) if rng.random() < 0.5 else min(len(damaged), 400)
        place = rng.randrange(max(1, end))
        change = rng.randrange(7)
        if change == 0 and damaged:
            damaged[place % len(damaged)] ^= 1 << rng.randrange(8)
        elif change == 1 and damaged:
            damaged[place % len(damaged)] = rng.choice([0, 1, 2, 127, 128, 255])
        elif change == 2:
            size = rng.choice([2, 4])
            number = rng.choice(
                [0, 1, 255, 256, 32767, 65535, 2**31 - 1, 2**32 - 1, rng.getrandbits(32)]
            )
            number &= (1 << 8 * size) - 1
            damaged[place : place + size] = number.to_bytes(size, rng.choice(["little", "big"]))
        elif change == 3:
            del damaged[place : place + rng.randrange(1, 64)]
        elif change == 4:
            damaged[place:place] = rng.randbytes(rng.randrange(1, 64))
        elif change == 5:
            other = rng.randrange(max(1, len(damaged)))
            damaged[place : place + 32] = damaged[other : other + 32]
        else:
            del damaged[rng.randrange(len(damaged) + 1) :]
    if data.startswith(b"\x89PNG") and rng.random() < 0.5:
        _mend_checksums(damaged)
    return bytes(damaged)


def _mend_checksums(png: bytearray) -> None:
    position = 8
    while position + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, position)
        end = position + 8 + length
        if end + 4 > len(png):
            return
        struct.pack_into(">I", png, end, zlib.crc32(png[position + 4 : end]))
        position = end + 4


def outcome(data: bytes) -> str:
    """ "read", "refused", or what is at fault."""
    results = []
    for filling in (0x35, 0xCA):
        _fill_memory(filling)
        try:
            image = decode(data)
        except ImageError as error:
            results.append(b"refused" if str(error).isprintable() else b"unprintable")
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:100]
        else:
            alpha = b"" if image.alpha is None else image.alpha.tobytes()
            results.append(repr(image.pixels.shape).encode() + image.pixels.tobytes() + alpha)
    if results[0] != results[1]:
        return "differs: memory that was never written"
    return "refused" if results[0] == b"refused" else "read"


def _fill_memory(filling: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(_PERTURB, filling)


def _work(jobs: list[tuple[str, int]], seed: int, position: Any, results: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    files, counts = samples(), Counter()  # type: ignore[var-annotated]
    for index, (kind, number) in enumerate(jobs):
        position.value = index
        faulthandler.dump_traceback_later(20, exit=True)
        result = outcome(damage(files[kind], random.Random(f"{seed} {kind} {number}")))
        faulthandler.cancel_dump_traceback_later()
        counts[kind, result] += 1
        if result not in ("read", "refused"):
            print(f"FAULT {kind} {number}: {result}", flush=True)
    results.put(counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="", help="only kinds that begin like this")
    options = parser.parse_args()
    kinds = [kind for kind in samples() if kind.startswith(options.kind)]
    jobs = [(kinds[i % len(kinds)], i // len(kinds)) for i in range(options.files)]
    context = multiprocessing.get_context("spawn")
    counts: Counter[tuple[str, str]] = Counter()
    while jobs:
        part, jobs = jobs[:_FILES_PER_PROCESS], jobs[_FILES_PER_PROCESS:]
        position, results = context.Value("i", 0), context.SimpleQueue()
        process = context.Process(target=_work, args=(part, options.seed, position, results))
        process.start()
        process.join()
        if process.exitcode == 0:
            counts += results.get()
            continue
        kind, number = part[position.value]
        print(f"FAULT {kind} {number}: the process ended with {process.exitcode}", flush=True)
        counts[kind, "crash or hang"] += 1
        jobs = part[position.value + 1 :] + jobs  # those before it are not counted
    outcomes = sorted({result for _, result in counts})
    for result in outcomes:
        print(f"{sum(n for (_, r), n in counts.items() if r == result):7} {result}")
    families = {kind: "JPEG XL" if "XL" in kind else kind.split()[0] for kind in kinds}
    families |= {kind: "JPEG 2000" for kind in kinds if "2000" in kind}
    for family in sorted(set(families.values())):
        row = {r: sum(n for (k, s), n in counts.items() if families[k] == family and s == r)
               for r in outcomes}  # fmt: skip
        print(f"{family:10}", *(f"{n:6} {result}" for result, n in row.items()))
    return int(not set(outcomes) <= {"read", "refused"})


if __name__ == "__main__":
    sys.exit(main())
