"""The recipe of a run: plain dataclasses, from TOML or a dict and back to a dict."""

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from portraitmatting.errors import PortraitmattingError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KINDS = ("photos", "cutouts", "masks", "backgrounds")


@dataclass(frozen=True)
class DataSource:
    """One folder to draw samples from; `sources` says what each kind's folder holds."""

    kind: str
    """One of `KINDS`."""
    folder: str
    weight: float = 1.0
    """Share of the samples, against the other sources' weights."""
    backgrounds: str | None = None
    """Folder of images without people, to lay cut-outs over and to replace backgrounds."""
    replace: float = 0.0
    """Chance that a photo's background is replaced."""
    band: float = 0.03
    """Masks only: how far from their edge the teacher rules, as a fraction of the short side."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise PortraitmattingError(
                f"data kind {self.kind!r}: expected one of {', '.join(KINDS)}"
            )
        if self.weight < 0 or not 0 <= self.replace <= 1 or self.band < 0:
            raise PortraitmattingError(
                f"data {self.folder}: expected weight and band from 0, replace a chance from 0 to 1"
            )
        if self.backgrounds is None and (self.kind == "cutouts" or self.replace > 0):
            raise PortraitmattingError(
                f"data {self.folder}: needs `backgrounds`, a folder of images"
            )


@dataclass(frozen=True)
class Augment:
    """How far, and how often, a sample may depart from its source."""

    close_up: float = 0.35
    """Chance of a close crop around the upper part of the person, where the face is."""
    smallest_crop: float = 0.35
    """Side of the closest crop, as a fraction of the whole scene's."""
    flip: float = 0.5
    rotation: float = 12.0
    """Degrees either way."""
    aspect: float = 0.12
    """Widest stretch of one side against the other: 0.12 means up to 12 % either way."""
    colour: float = 0.7
    grey: float = 0.05
    blur: float = 0.15
    noise: float = 0.25
    jpeg: float = 0.3

    def __post_init__(self) -> None:
        for name in ("close_up", "flip", "colour", "grey", "blur", "noise", "jpeg"):
            if not 0 <= getattr(self, name) <= 1:
                raise PortraitmattingError(
                    f"augment.{name} {getattr(self, name)}: expected a chance, 0 to 1"
                )
        if not 0 < self.smallest_crop <= 1 or not 0 <= self.aspect < 1 or self.rotation < 0:
            raise PortraitmattingError(
                "augment: expected smallest_crop above 0 up to 1, aspect from 0 to below 1, "
                "rotation from 0"
            )


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts; 0 leaves one out."""

    trimap: float = 1.0
    alpha: float = 1.0
    laplacian: float = 0.5
    whole: float = 0.1
    coarse: float = 0.3


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run's numbers, and how it reports on them."""

    data: tuple[DataSource, ...] = ()
    start: str = "default"
    """"scratch", "default" (our default checkpoint), "imagenet" (timm's Swin-T, downloaded), or
    the path of one of our checkpoints or of timm's weights."""
    seed: int = 0

    steps: int = 1000
    batch_size: int = 8
    """Images per step, over all processes and accumulated pieces."""
    accumulate: int = 1
    """Pieces that a process works a step's images off in: less memory, the same gradient."""
    sizes: tuple[tuple[float, int], ...] = ((0.0, 224), (0.5, 320))
    """Progressive working size: (fraction of the run, short side from there on)."""
    working_short_side: int | None = None
    """What validation and the exported checkpoint use; None: the last of `sizes`."""

    learning_rate: float = 1e-4
    rates: dict[str, float] = field(default_factory=dict)
    """Factor on the learning rate by part (`parts.PARTS`), 1 where absent; 0 freezes the part."""
    weight_decay: float = 0.01
    warm_up: float = 0.05
    """Fraction of the run over which the learning rate rises to its height; then a cosine."""
    floor: float = 0.02
    """Where the cosine ends, as a fraction of the learning rate."""
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    ema: float = 0.999
    """Decay of the weights' moving average."""

    band: tuple[float, float] = (0.01, 0.05)
    """Least and greatest radius of the trimap's unknown band, as fractions of the short side."""
    losses: LossWeights = field(default_factory=LossWeights)
    augment: Augment = field(default_factory=Augment)

    validation: str | None = None
    """Folder with image/ and alpha/ that no sample is drawn from."""
    validate_every: int = 100
    images: int = 8
    """How many validation mattes are kept as images each time."""
    save_every: int = 100
    threads: int = 2
    """Threads that prepare samples; has no influence on the numbers."""
    device: str = "auto"
    precision: str = "auto"
    """"fp32", "bf16", "fp16", or "auto": the best that a GPU has, fp32 elsewhere."""
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "accumulate",
            "validate_every",
            "save_every",
            "threads",
        ):
            if getattr(self, name) < 1:
                raise PortraitmattingError(f"{name} {getattr(self, name)}: expected 1 or more")
        starts = [start for start, _ in self.sizes]
        if not starts or starts[0] != 0 or starts != sorted(starts):
            raise PortraitmattingError("sizes: expected [fraction, short side] pairs from 0.0 on")
        sides = [side for _, side in self.sizes] + [self.short_side]
        if any(side < 32 or side % 32 for side in sides):
            raise PortraitmattingError(f"short sides {sides}: expected multiples of 32")
        if not 0 <= self.band[0] <= self.band[1]:
            raise PortraitmattingError(f"band {self.band}: expected [least, greatest] from 0")

    @property
    def short_side(self) -> int:
        return self.sizes[-1][1] if self.working_short_side is None else self.working_short_side


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A TOML file as a dict, its relative folders taken from the file's own folder."""
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PortraitmattingError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PortraitmattingError(f"{path}: not a TOML file ({error})") from None
    for table in [content, *(d for d in content.get("data", ()) if isinstance(d, dict))]:
        for key in ("folder", "backgrounds", "validation"):
            if isinstance(table.get(key), str):
                table[key] = str(path.parent / table[key])
    return content


def config_from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """A recipe from plain values, as TOML and JSON have them; unknown names and wrong types raise
    `PortraitmattingError` that lists what is known."""
    return _build(TrainConfig, values, "")


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values that `config_from_dict` makes the same recipe of."""
    return asdict(config)


def _build(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise PortraitmattingError(f"{where.rstrip('.')}: expected a table, got {values!r}")
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    for name in values:
        if name not in names:
            raise PortraitmattingError(
                f"unknown setting {where}{name}: expected one of {', '.join(names)}"
            )
    try:
        return kind(**{k: _convert(hints[k], v, f"{where}{k}") for k, v in values.items()})
    except TypeError as error:
        raise PortraitmattingError(f"{where.rstrip('.') or 'config'}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _build(hint, value, f"{where}.")
    if origin is tuple and isinstance(value, list | tuple):
        if inner[-1] is not ... and len(inner) != len(value):
            raise PortraitmattingError(f"{where}: expected {len(inner)} values, got {value!r}")
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        return tuple(_convert(k, v, where) for k, v in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, Mapping):
        return {str(k): _convert(inner[1], v, f"{where}.{k}") for k, v in value.items()}
    choices = inner if inner and origin not in (tuple, dict) else (hint,)
    if type(value) is int and float in choices:
        return float(value)
    if type(value) not in choices:
        raise PortraitmattingError(
            f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}"
        )
    return value
