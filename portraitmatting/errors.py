"""Errors that a user can fix. Each message is one line that names the value and the way out."""


def one_line(text: str) -> str:
    """`text` with line breaks and other control characters escaped, as file names may hold them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class PortraitmattingError(ValueError):
    """Base of all errors raised on purpose; command lines print it as one line."""


class ImageError(PortraitmattingError):
    """An image cannot be read, written or used as asked."""


class CheckpointError(PortraitmattingError):
    """A checkpoint is missing, damaged, unsafe or not one of ours."""
