"""Which version this is."""

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """As installed; "(not installed)" for a copy that is merely on the path."""
    try:
        return version("portraitmatting")
    except PackageNotFoundError:
        return "(not installed)"
