"""Checkpoint files: `registry` finds, `format` reads and writes, `load` makes networks of them.

`CheckpointInfo`, which callers need for weights of their own, is imported on first use: `registry`
serves calls that must not wait for PyTorch.
"""

from portraitmatting.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__, {"CheckpointInfo": "format"})
