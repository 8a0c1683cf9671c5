"""Score mattes against a benchmark folder's ground truth, ours and those of other tools alike:
`portraitmatting evaluate`.

Names are imported on first use: a wrong call is answered before PyTorch is loaded.
"""

from portraitmatting.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "REGIONS": "evaluation",
        "Benchmark": "benchmark",
        "MattingMethod": "evaluation",
        "Report": "report",
        "evaluate": "evaluation",
        "find_benchmark": "benchmark",
        "from_checkpoint": "evaluation",
        "from_folder": "evaluation",
        "from_predictor": "evaluation",
    },
)
