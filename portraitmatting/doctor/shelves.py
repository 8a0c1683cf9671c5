"""The default checkpoint: there, whole, and the one that is listed."""

from portraitmatting.checkpoint.registry import SUMS, locate, sha256
from portraitmatting.doctor.environment import attempt
from portraitmatting.doctor.finding import Finding
from portraitmatting.errors import CheckpointError


def checkpoint() -> list[Finding]:
    """The default checkpoint's file and sha256; wrong if it is missing, a pointer to the weights
    instead of them, damaged, or not the listed one."""
    try:
        path, listed = locate()
    except CheckpointError as error:
        return [Finding("checkpoint", "missing", str(error))]
    digest = sha256(path)
    known = "not listed" if not listed else "as listed" if digest == listed else "not as listed"
    wrong = None
    if attempt("torch")[0]:  # what is wrong with PyTorch, if anything, is said elsewhere
        from portraitmatting.checkpoint.format import read_state

        try:
            read_state(path)
        except CheckpointError as error:
            wrong = str(error)
    if not wrong and listed and digest != listed:
        wrong = f"{path}: {SUMS} lists sha256 {listed}: damaged or another version, fetch it again"
    return [
        Finding("checkpoint", path.name, wrong),
        Finding("sha256", f"{digest} ({known})"),
    ]
