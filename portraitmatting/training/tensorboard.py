"""The two tables as TensorBoard curves, an extra."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portraitmatting.errors import PortraitmattingError


class Board:
    """Writes to RUN/tensorboard."""

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise PortraitmattingError(
                "tensorboard is not installed: pip install tensorboard, or leave the option out"
            ) from None
        self._writer = SummaryWriter(str(run / "tensorboard"))  # type: ignore[no-untyped-call]

    def add(self, table: str, row: Mapping[str, Any]) -> None:
        """A row of numbers at its `step`."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(f"{table}/{name}", value, row["step"])  # type: ignore[no-untyped-call]
        self._writer.flush()  # type: ignore[no-untyped-call]
