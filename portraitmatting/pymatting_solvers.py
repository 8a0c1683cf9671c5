"""pymatting's methods for foreground colours, loaded on first use.

pymatting is compiled by numba: once per environment if numba finds a folder for the results, else
in every process. `load_solver` and the solvers may be called from several threads at once.
"""

import importlib
import importlib.util
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from portraitmatting.errors import PortraitmattingError, one_line

Solver = Callable[
    [NDArray[np.float32], NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]
]
"""image HxWx3 and alpha HxW -> the colours of foreground and background, each HxWx3; all float32 in
0..1."""

_PATIENCE = 3.0
"""Seconds after which a message explains the delay; compiled before, pymatting loads within two."""
_solvers: dict[str, Solver] = {}
_loading = threading.Lock()
_solving = threading.Lock()
_loaded_by: int | None = None
"""The id of the process that loaded a solver."""


def load_solver(method: str) -> Solver:
    """The solver called "ml" or "cf". Raises PortraitmattingError if this environment or this
    process cannot use it."""
    global _loaded_by
    if _loaded_by not in (None, os.getpid()) and _forbids_fork():
        raise PortraitmattingError(
            f"foreground method {method!r} cannot be used in a process that was forked after it "
            "was loaded: start workers with 'spawn', load in each worker, or use 'fast'"
        )
    with _loading:
        if method not in _solvers:
            notice = threading.Timer(_PATIENCE, _say_why_it_takes_long)
            notice.daemon = True
            notice.start()
            threads = torch.get_num_threads()
            try:
                _solvers[method] = _load_or_explain(method)
                _loaded_by = os.getpid()
            finally:
                notice.cancel()
                torch.set_num_threads(threads)  # numba sets its own number in the shared OpenMP
        return _solvers[method]


def _forbids_fork() -> bool:
    """Whether numba would end a process that was forked after numba's first use."""
    import numba

    return sys.platform == "linux" and numba.threading_layer() == "omp"


def _say_why_it_takes_long() -> None:
    print(
        "Foreground estimation: pymatting is still loading. On its first use in an environment it "
        "compiles itself, once, which may take a minute or more.",
        file=sys.stderr,
        flush=True,
    )


def _load_or_explain(method: str) -> Solver:
    """`_load`, with errors that say what to do."""
    if importlib.util.find_spec("pymatting") is None:
        raise PortraitmattingError(
            f"foreground method {method!r} needs pymatting: pip install pymatting, or use 'fast'"
        )
    try:
        from numba import config

        settings: Any = config
        if settings.DISABLE_JIT:
            raise RuntimeError("NUMBA_DISABLE_JIT is set: unset it")
        try:
            return _load(method)
        except Exception:
            # Most often numba has no folder for what it compiles, or no permission to use it.
            settings.CACHE_DIR = _private_folder()
            return _load(method)
    except Exception as error:  # numba and llvmlite raise nearly anything
        reason = one_line(str(error).strip().partition("\n")[0]) or type(error).__name__
        if os.environ.get("NUMBA_THREADING_LAYER") and "threading layer" in reason:
            reason += " (NUMBA_THREADING_LAYER is set: unset it)"
        raise PortraitmattingError(
            f"foreground method {method!r} cannot be used: {reason.rstrip('.')}; or use 'fast'"
        ) from error


def _private_folder() -> str:
    """A temporary folder that only this user can write to, because numba runs the code in it. The
    same folder in every run, unless somebody else made one of its name."""
    if hasattr(os, "getuid"):
        folder = Path(tempfile.gettempdir(), f"portraitmatting-numba-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
        if private and status.st_uid == os.getuid():
            return str(folder)
    return tempfile.mkdtemp(prefix="portraitmatting-numba-")


def _load(method: str) -> Solver:
    """Import, and for "ml" compile, the solver; `_one_at_a_time` where threads must not overlap."""
    if method == "cf":
        # One at a time because of its memory: about half a GB per megapixel.
        module = importlib.import_module("pymatting.foreground.estimate_foreground_cf")
        return _one_at_a_time(_with_background(module.estimate_foreground_cf))
    solver = _with_background(_multi_level_module().estimate_foreground_ml)
    import numba

    # numba chooses a threading layer at the first call. Of its layers only "workqueue" aborts the
    # process when two threads enter it.
    solver(np.zeros((2, 2, 3), np.float32), np.zeros((2, 2), np.float32))
    return _one_at_a_time(solver) if numba.threading_layer() == "workqueue" else solver


def _with_background(estimate: Callable[..., object]) -> Solver:
    return lambda image, alpha: estimate(image, alpha, return_background=True)  # type: ignore[return-value]


def _one_at_a_time(solver: Solver) -> Solver:
    def locked(
        image: NDArray[np.float32], alpha: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with _solving:
            return solver(image, alpha)

    return locked


def _multi_level_module() -> ModuleType:
    """The one module of pymatting that "ml" needs, imported without the package: the first import
    of the package compiles all of it, which takes 49 s instead of 11 s."""
    name = "pymatting.foreground.estimate_foreground_ml"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("pymatting")  # does not import it
    assert package and package.submodule_search_locations
    file = Path(package.submodule_search_locations[0], *name.split(".")[1:]).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: numba stores compiled functions under the module's name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
