"""The recipe of a run: plain dataclasses whose every number has a range.

`recipe` reads them from TOML and JSON. The text of a setting here is also its text in
`train run --help`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from portraitmatting.choices import METHODS, PRECISIONS, check_word
from portraitmatting.errors import PortraitmattingError

KINDS = ("photos", "cutouts", "masks", "scenes", "backgrounds")
_MANY = 10**8


def setting(default: Any, text: str, low: float | None = None, high: float | None = None) -> Any:
    """A field with its help; numbers, also those in tables and lists, lie from `low` to `high`."""
    value: dict[str, Any] = {"default_factory" if callable(default) else "default": default}
    return field(**value, metadata={"help": text, "range": (low, high)})


@dataclass(frozen=True)
class DataSource:
    """One folder to draw samples from; `sources` says what each kind's folder holds."""

    kind: str
    folder: str
    weight: float = setting(1.0, "share of the samples, against the other sources'", 0, 1e6)
    balance: bool = setting(False, "draw a subfolder first, so that small ones weigh as much")
    backgrounds: str | None = setting(None, "folder of images without people")
    replace: float = setting(0.0, "chance that a photo's background is replaced", 0, 1)
    foreground: str = setting("ml", "estimator of the colours of people on new backgrounds")
    band: float = setting(0.03, "masks: teacher's reach from the edge, in short sides", 0, 1)
    people: int = setting(3, "scenes: the most people in one", 1, 10)

    def __post_init__(self) -> None:
        _check_ranges(self, f"data {self.folder}: ")
        check_word("data kind", self.kind, KINDS)
        check_word(f"data {self.folder}: foreground", self.foreground, METHODS)
        if self.backgrounds is None and (self.kind in ("cutouts", "scenes") or self.replace > 0):
            raise PortraitmattingError(
                f"data {self.folder}: needs `backgrounds`, a folder of images"
            )


@dataclass(frozen=True)
class Augment:
    """How far, and how often, a sample may depart from its source."""

    close_up: float = setting(0.35, "chance of a close crop around the face", 0, 1)
    smallest_crop: float = setting(0.35, "side of the closest crop, of the whole scene's", 0.01, 1)
    flip: float = setting(0.5, "chance of a mirror image", 0, 1)
    rotation: float = setting(12.0, "greatest turn, in degrees either way", 0, 180)
    aspect: float = setting(0.12, "greatest stretch of one side against the other", 0, 0.9)
    colour: float = setting(0.7, "chance of another exposure, balance and contrast", 0, 1)
    grey: float = setting(0.05, "chance of no colour", 0, 1)
    blur: float = setting(0.15, "chance of blur", 0, 1)
    noise: float = setting(0.25, "chance of sensor noise", 0, 1)
    jpeg: float = setting(0.3, "chance of JPEG compression", 0, 1)

    def __post_init__(self) -> None:
        _check_ranges(self, "augment.")


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts; 0 leaves one out. `losses` defines them."""

    trimap: float = setting(1.0, "cross entropy of the trimap", 0, 1000)
    alpha: float = setting(1.0, "L1 of alpha in the unknown region", 0, 1000)
    laplacian: float = setting(0.5, "Laplacian pyramid of alpha in the unknown region", 0, 1000)
    whole: float = setting(0.1, "L1 of alpha everywhere", 0, 1000)
    fusion: float = setting(1.0, "L1 of both heads' matte, fused softly", 0, 1000)
    coarse: float = setting(0.3, "coverage at the decoder's coarse stages", 0, 1000)

    def __post_init__(self) -> None:
        _check_ranges(self, "losses.")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run's numbers, and how it reports on them."""

    data: tuple[DataSource, ...] = ()
    init_from: str = setting(
        "default", "first weights: scratch, default, imagenet, or a checkpoint's path"
    )
    seed: int = setting(0, "of all that is drawn at random", 0, 2**32 - 1)

    steps: int = setting(1000, "updates of the weights", 1, _MANY)
    batch_size: int = setting(8, "images per step, over all processes and pieces", 1, 2**16)
    grad_accum_steps: int = setting(1, "pieces of a step: less memory, same gradient", 1, 2**16)
    sizes: tuple[tuple[int, ...], ...] = setting(
        ((0, 224, 256, 320),), "[first step, short side, ...]: each batch draws one", 0, _MANY
    )
    working_short_side: int | None = setting(
        None, "for validation and export (default: the largest of the last sizes)", 32, 4096
    )
    coarse_steps: int = setting(
        0, "first steps, which train encoder, pyramid and decoder down to stride 8 only", 0, _MANY
    )

    learning_rate: float = setting(1e-4, "greatest rate", 1e-12, 10)
    lr_scale: dict[str, float] = setting(
        dict, "factor on the rate by part of the network; 0 freezes it", 0, 1000
    )
    weight_decay: float = setting(0.01, "of matrices, as AdamW has it", 0, 1)
    warmup_steps: int = setting(50, "steps over which the rate rises", 0, _MANY)
    decay_steps: int | None = setting(
        None, "last steps, in which the rate falls linearly (default: a cosine over all)", 0, _MANY
    )
    min_lr: float = setting(0.0, "rate at the end of the fall", 0, 10)
    clip_grad: float = setting(1.0, "greatest norm of a step's gradient", 1e-12, 1e6)
    ema: float = setting(0.999, "decay of the averaged weights, which are scored", 0, 0.999999)

    band: tuple[float, float] = setting(
        (0.01, 0.05), "least and greatest radius of the unknown band, in short sides", 0, 1
    )
    losses: LossWeights = field(default_factory=LossWeights)
    augment: Augment = field(default_factory=Augment)

    validation: str | None = setting(None, "folder with image/ and alpha/ to be scored on")
    validate_every: int = setting(100, "steps between validations", 1, _MANY)
    images: int = setting(8, "validation mattes kept as images each time", 0, _MANY)
    save_every: int = setting(100, "steps between checkpoints", 1, _MANY)
    threads: int = setting(2, "threads that prepare samples; changes no number", 1, 256)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    precision: str = setting("auto", "fp32, bf16, fp16, or auto: bf16 where it is computed")
    tensorboard: bool = setting(False, "write TensorBoard's event files, too")

    def __post_init__(self) -> None:
        _check_ranges(self, "")
        check_word("precision", self.precision, ("auto", *PRECISIONS))
        starts = [entry[0] for entry in self.sizes if entry]
        if starts[:1] != [0] or sorted(set(starts)) != starts or min(map(len, self.sizes)) < 2:
            raise PortraitmattingError(
                "sizes: expected [first step, short side, ...] entries, the first from step 0, "
                "each later than the one before"
            )
        sides = [side for entry in self.sizes for side in entry[1:]] + [self.short_side]
        if any(not 32 <= side <= 4096 or side % 32 for side in sides):
            raise PortraitmattingError(f"short sides {sides}: expected multiples of 32 to 4096")
        if self.band[0] > self.band[1]:
            raise PortraitmattingError(f"band {self.band}: expected [least, greatest]")
        if self.min_lr > self.learning_rate:
            raise PortraitmattingError(
                f"min_lr {self.min_lr}: expected at most learning_rate, {self.learning_rate}"
            )
        if self.coarse_steps and not self.losses.coarse:
            raise PortraitmattingError("losses.coarse 0: coarse_steps would train nothing")
        if not any(vars(self.losses).values()):
            raise PortraitmattingError("losses: every weight is 0, nothing would learn")

    @property
    def short_side(self) -> int:
        """The working short side of validation and export."""
        return self.working_short_side or max(self.sizes[-1][1:])


def _check_ranges(values: Any, prefix: str) -> None:
    for spec in fields(values):
        low, high = spec.metadata.get("range", (None, None))
        for name, number in _numbers(spec.name, getattr(values, spec.name)):
            if low is not None and not low <= number <= high:  # nor is NaN
                raise PortraitmattingError(
                    f"{prefix}{name} {number}: expected {low:.16g} to {high:.16g}"
                )


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number in a value, with the name that a user would look for."""
    if isinstance(value, tuple):
        for item in value:
            yield from _numbers(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(f"{name}.{key}", item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
