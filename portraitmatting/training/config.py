"""The recipe of a run: dataclasses whose every number has a range, from TOML and plain dicts.

The text of a setting is also its help in `train run --help`.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from portraitmatting.choices import METHODS, PRECISIONS, check_word
from portraitmatting.errors import PortraitmattingError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KINDS = ("photos", "cutouts", "masks", "scenes", "backgrounds")
RENAMED = {
    "start": "init_from",
    "accumulate": "grad_accum_steps",
    "rates": "lr_scale",
    "warm_up": "warmup_steps",
    "floor": "min_lr",
    "clip": "clip_grad",
}
"""Old name of a setting to its current one."""
PROLONGABLE = (
    *("steps", "decay_steps", "sizes", "validation", "validate_every", "images", "save_every"),
    *("threads", "device", "precision", "tensorboard"),
)
"""Settings that a resumed run may change: its length, its reports, what it computes on."""
STARTS = ("scratch", "default", "imagenet")
"""Values of `init_from` that are no path."""
_FOLDERS = ("folder", "backgrounds", "validation")
_MANY = 10**8


def setting(default: Any, text: str, low: float | None = None, high: float | None = None) -> Any:
    """A field of a recipe.

    Args:
        default: its default, or a function that makes it.
        text: its help.
        low: the smallest value of its numbers, also of those in tables and lists; None if they are
            not limited.
        high: the largest value.
    """
    value: dict[str, Any] = {"default_factory" if callable(default) else "default": default}
    return field(**value, metadata={"help": text, "range": (low, high)})


@dataclass(frozen=True)
class DataSource:
    """One folder to draw samples from; `open_source` says what a folder of each kind holds."""

    kind: str
    folder: str
    weight: float = setting(1.0, "share of the samples, relative to the other sources", 0, 1e6)
    balance: bool = setting(False, "draw a subfolder first, so that each counts alike")
    backgrounds: str | None = setting(None, "folder of images without people")
    replace: float = setting(0.0, "chance that a photo's background is replaced", 0, 1)
    foreground: str = setting("ml", "method for the colours of people on new backgrounds")
    band: float = setting(0.03, "masks: width of the teacher's band, in short sides", 0, 1)
    people: int = setting(3, "scenes: largest number of people in one", 1, 10)

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
    """How often, and how far, samples are changed at random."""

    close_up: float = setting(0.35, "chance of a close crop around the face", 0, 1)
    smallest_crop: float = setting(
        0.35, "side of the closest crop, as a part of the scene's", 0.01, 1
    )
    flip: float = setting(0.5, "chance of a mirror image", 0, 1)
    rotation: float = setting(12.0, "largest turn in either direction, in degrees", 0, 180)
    aspect: float = setting(0.12, "largest stretch of one side relative to the other", 0, 0.9)
    colour: float = setting(0.7, "chance of another exposure, balance and contrast", 0, 1)
    grey: float = setting(0.05, "chance of a grey image", 0, 1)
    blur: float = setting(0.15, "chance of blur", 0, 1)
    noise: float = setting(0.25, "chance of sensor noise", 0, 1)
    jpeg: float = setting(0.3, "chance of JPEG compression", 0, 1)

    def __post_init__(self) -> None:
        _check_ranges(self, "augment.")


@dataclass(frozen=True)
class LossWeights:
    """The weight of each loss; 0 leaves it out. `losses` defines them."""

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
    """The recipe of a training run: everything that determines its weights, and its reports."""

    data: tuple[DataSource, ...] = ()
    init_from: str = setting(
        "default", "first weights: scratch, default, imagenet, or a checkpoint's path"
    )
    seed: int = setting(0, "of everything drawn at random", 0, 2**32 - 1)

    steps: int = setting(1000, "updates of the weights", 1, _MANY)
    batch_size: int = setting(8, "images per step, over all processes and accumulation", 1, 2**16)
    grad_accum_steps: int = setting(1, "parts of a step: less memory, same gradient", 1, 2**16)
    sizes: tuple[tuple[int, ...], ...] = setting(
        ((0, 224, 256, 320),), "[first step, short side, ...]: each batch draws one", 0, _MANY
    )
    working_short_side: int | None = setting(
        None, "for validation and export (default: the largest of the last sizes)", 32, 4096
    )
    coarse_steps: int = setting(
        0, "first steps, which only train encoder, pyramid and decoder down to stride 8", 0, _MANY
    )

    learning_rate: float = setting(1e-4, "highest rate", 1e-12, 10)
    lr_scale: dict[str, float] = setting(
        dict, "factor on the rate of a part of the network; 0 freezes it", 0, 1000
    )
    weight_decay: float = setting(0.01, "AdamW's, of matrices only", 0, 1)
    warmup_steps: int = setting(50, "steps over which the rate rises", 0, _MANY)
    decay_steps: int | None = setting(
        None, "last steps, in which the rate falls linearly (default: a cosine over all)", 0, _MANY
    )
    min_lr: float = setting(0.0, "rate at the end of the run", 0, 10)
    clip_grad: float = setting(1.0, "largest norm of a step's gradient", 1e-12, 1e6)
    ema: float = setting(0.999, "decay of the averaged weights", 0, 0.999999)

    band: tuple[float, float] = setting(
        (0.01, 0.05), "smallest and largest radius of the unknown band, in short sides", 0, 1
    )
    losses: LossWeights = field(default_factory=LossWeights)
    augment: Augment = field(default_factory=Augment)

    validation: str | None = setting(None, "folder with image/ and alpha/ for validation")
    validate_every: int = setting(100, "steps between validations", 1, _MANY)
    images: int = setting(8, "validation mattes kept as images each time", 0, _MANY)
    save_every: int = setting(100, "steps between checkpoints", 1, _MANY)
    threads: int = setting(2, "threads that prepare samples; no effect on numbers", 1, 256)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    precision: str = setting("auto", "fp32, bf16, fp16, or auto: bf16 where the device computes it")
    tensorboard: bool = setting(False, "write TensorBoard's event files too")

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
    """Every number in a value, with its name in the recipe."""
    if isinstance(value, tuple):
        for item in value:
            yield from _numbers(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(f"{name}.{key}", item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A TOML file as a dict; its relative paths are taken from the file's own folder."""
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PortraitmattingError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise PortraitmattingError(f"{path}: not a TOML file ({error})") from None
    data = content.get("data")
    tables = data if isinstance(data, list) else []
    for table in [content, *(t for t in tables if isinstance(t, dict))]:
        for key in _FOLDERS:
            if isinstance(table.get(key), str) and table[key]:
                table[key] = str(path.parent / table[key])
    for key in ("init_from", "start"):
        value = content.get(key)
        if isinstance(value, str) and value not in STARTS and (path.parent / value).is_file():
            content[key] = str(path.parent / value)
    return content


def config_from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """A recipe from plain values, as TOML and JSON have them.

    Old names are translated, and a line says so. Unknown names, wrong types and numbers out of
    range raise `PortraitmattingError`.
    """
    values, notes = _translate(values)
    config: TrainConfig = _build(TrainConfig, values, "")
    if notes:
        print(f"recipe: old words, taken as the new ones: {', '.join(notes)}", file=sys.stderr)
    return config


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The recipe for any current folder: relative paths are taken from this one."""

    def absolute(path: str | None) -> Any:
        return path and os.path.abspath(path)

    data = [
        replace(source, folder=absolute(source.folder), backgrounds=absolute(source.backgrounds))
        for source in config.data
    ]
    start = config.init_from if config.init_from in STARTS else absolute(config.init_from)
    validation = absolute(config.validation)
    return replace(config, data=tuple(data), validation=validation, init_from=start)


def prolonged(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """The recipe with other values of `PROLONGABLE`; changes of others raise
    PortraitmattingError."""
    changed = with_absolute_paths(config_from_dict(asdict(config) | dict(changes)))
    for spec in fields(config):
        old, new = (getattr(c, spec.name) for c in (config, changed))
        if old != new and spec.name not in PROLONGABLE:
            raise PortraitmattingError(
                f"a resumed run keeps its {spec.name}: only {', '.join(PROLONGABLE)} may change"
            )
    return changed


def _translate(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values under their current names, and a note on each translation."""
    new, notes = dict(values), []
    steps = values.get("steps", TrainConfig.steps)
    for word, name in RENAMED.items():
        if word not in new:
            continue
        if name in new:
            raise PortraitmattingError(f"{word} is the old word for {name}: leave it out")
        value = new.pop(word)
        if word in ("warm_up", "floor"):  # these were fractions, of the run and of its rate
            rate = values.get("learning_rate", TrainConfig.learning_rate)
            whole = steps if word == "warm_up" else rate
            is_fraction = type(value) in (int, float) and 0 <= value <= 1
            if not is_fraction or not isinstance(whole, int | float):
                raise PortraitmattingError(
                    f"{word} {value!r}: expected 0 to 1, or the new word {name}"
                )
            value = round(value * whole) if word == "warm_up" else value * whole
        new[name] = value
        notes.append(f"{word} is {name}" + (f" = {value}" if type(value) in (int, float) else ""))
    sizes = new.get("sizes")
    if isinstance(sizes, list | tuple) and isinstance(steps, int):
        new["sizes"] = entries = [_in_steps(entry, steps) for entry in sizes]
        if any(e[0] != old[0] for e, old in zip(entries, sizes, strict=True) if e is not old):
            notes.append(f"sizes begin at steps, not fractions of the run: {entries}")
    return new, notes


def _in_steps(entry: Any, steps: int) -> Any:
    """An entry of `sizes`: in old recipes its first value was a fraction of the run."""
    if not isinstance(entry, list | tuple) or not entry or type(entry[0]) is not float:
        return entry
    return [round(entry[0] * steps), *entry[1:]] if 0 <= entry[0] <= 1 else entry


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
    if type(value) is int and float in choices and abs(value) < 2**63:
        return float(value)
    if type(value) not in choices:
        names = {tuple: "a list", dict: "a table"}
        expected = names.get(origin) or getattr(hint, "__name__", hint)
        raise PortraitmattingError(f"{where}: expected {expected}, got {repr(value)[:60]}")
    if isinstance(value, str) and (not value or "\0" in value):
        raise PortraitmattingError(f"{where} {value!r}: empty, or no text")
    return value
