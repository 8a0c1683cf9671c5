"""How the C library hands out memory."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next allocation; whether it does so now.

    By default each large block comes from the system and goes back to it, and the system fills it
    with zeros page by page: up to a third of the network's time on a CPU. The setting holds for the
    whole process, so the commands make it for theirs. A notebook may too, before its first
    prediction. With another C library (musl, macOS, Windows) nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
        ctypes.CDLL(None).gnu_get_libc_version  # noqa: B018  musl has the former as an empty shell
    except (AttributeError, OSError):
        return False
    # Before glibc 2.35 no threshold above 32 MiB is taken.
    mapped = mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)
    return bool(mapped and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
