"""What a check comes back with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    found: str
    wrong: str | None = None
    """What is wrong with it and the way out, on one line; None if all is well."""
