"""Checkpoints: `registry` finds their files, `format` reads and writes them, `convert` translates
the author's, `load` makes networks of them.

`CheckpointInfo`, which callers need for weights of their own, is imported on first use: `registry`
serves calls that must not wait for PyTorch.
"""

from portraitmatting.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__, {"CheckpointInfo": "format"})
