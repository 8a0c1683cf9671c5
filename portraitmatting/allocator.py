"""A setting of the C library's memory allocation that makes the network faster on a CPU."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for later allocations; returns whether it does.

    By default glibc gets each large block from the system and gives it back when it is freed, and
    the system fills each new one with zeros: up to a third of the network's time on a CPU. The
    setting applies to the whole process, so only the commands make it. A notebook may do so, too,
    before its first prediction. With other C libraries (musl, macOS, Windows) nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
        ctypes.CDLL(None).gnu_get_libc_version  # noqa: B018  musl's mallopt does nothing
    except (AttributeError, OSError):
        return False
    # glibc before 2.35 refuses thresholds above 32 MiB.
    mapped = mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)
    return bool(mapped and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
