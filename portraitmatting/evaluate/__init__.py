"""Score mattes against a benchmark folder's ground truth, ours and those of other tools alike.

The command line is `python -m portraitmatting evaluate`. Names are imported on first use.
"""

from typing import TYPE_CHECKING

from portraitmatting.lazy import lazy_names

if TYPE_CHECKING:
    from portraitmatting.evaluate.benchmark import Benchmark, find_benchmark
    from portraitmatting.evaluate.evaluation import REGIONS, evaluate
    from portraitmatting.evaluate.methods import (
        MattingMethod,
        from_checkpoint,
        from_folder,
        from_predictor,
    )
    from portraitmatting.evaluate.report import Report

_HOME = {
    "REGIONS": "evaluation",
    "Benchmark": "benchmark",
    "MattingMethod": "methods",
    "Report": "report",
    "evaluate": "evaluation",
    "find_benchmark": "benchmark",
    "from_checkpoint": "methods",
    "from_folder": "methods",
    "from_predictor": "methods",
}

__all__ = [
    "REGIONS",
    "Benchmark",
    "MattingMethod",
    "Report",
    "evaluate",
    "find_benchmark",
    "from_checkpoint",
    "from_folder",
    "from_predictor",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
