"""Recipes from TOML or a dict and back to a dict, old words included."""

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from portraitmatting.errors import PortraitmattingError
from portraitmatting.training.config import TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RENAMED = {
    "start": "init_from",
    "accumulate": "grad_accum_steps",
    "rates": "lr_scale",
    "warm_up": "warmup_steps",
    "floor": "min_lr",
    "clip": "clip_grad",
}
"""Old words for settings."""
PROLONGABLE = (
    *("steps", "decay_steps", "sizes", "validation", "validate_every", "images", "save_every"),
    *("threads", "device", "precision", "tensorboard"),
)
"""Settings that a resume may change: how long a run is, and how it reports and computes."""
STARTS = ("scratch", "default", "imagenet")
"""What `init_from` may be beside a path."""
_FOLDERS = ("folder", "backgrounds", "validation")


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A TOML file as a dict, its relative paths taken from the file's own folder."""
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

    Old words are translated, and a line says so. Unknown names, wrong types and numbers out of
    range raise `PortraitmattingError`.
    """
    values, old = _translate(values)
    config: TrainConfig = _build(TrainConfig, values, "")
    if old:
        print(f"recipe: old words, taken as the new ones: {', '.join(old)}", file=sys.stderr)
    return config


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values that `config_from_dict` makes the same recipe of."""
    return asdict(config)


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The recipe for any current folder: relative paths are taken from this one."""
    sources = []
    for source in config.data:
        behind = source.backgrounds and os.path.abspath(source.backgrounds)
        sources.append(
            replace(source, folder=os.path.abspath(source.folder), backgrounds=behind or None)
        )
    is_path = config.init_from not in STARTS
    return replace(
        config,
        data=tuple(sources),
        validation=config.validation and os.path.abspath(config.validation),
        init_from=os.path.abspath(config.init_from) if is_path else config.init_from,
    )


def prolonged(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """The recipe with other values of `PROLONGABLE`; a change of others is refused."""
    changed = with_absolute_paths(config_from_dict(config_to_dict(config) | dict(changes)))
    for spec in fields(config):
        old, new = (getattr(c, spec.name) for c in (config, changed))
        if old != new and spec.name not in PROLONGABLE:
            raise PortraitmattingError(
                f"a resumed run keeps its {spec.name}: only {', '.join(PROLONGABLE)} may change"
            )
    return changed


def _translate(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values under today's words, and the translations made, for people."""
    new, old = dict(values), []
    steps = values.get("steps", TrainConfig.steps)
    for word, today in RENAMED.items():
        if word not in new:
            continue
        if today in new:
            raise PortraitmattingError(f"{word} is the old word for {today}: leave it out")
        value = new.pop(word)
        if word in ("warm_up", "floor"):  # they were fractions, of the run and of its rate
            rate = values.get("learning_rate", TrainConfig.learning_rate)
            whole = steps if word == "warm_up" else rate
            if not _is_fraction(value) or not isinstance(whole, int | float):
                raise PortraitmattingError(
                    f"{word} {value!r}: expected 0 to 1, or the new word {today}"
                )
            value = round(value * whole) if word == "warm_up" else value * whole
        new[today] = value
        old.append(f"{word} is {today}" + (f" = {value}" if type(value) in (int, float) else ""))
    sizes = new.get("sizes")
    if isinstance(sizes, list | tuple) and isinstance(steps, int):
        entries = [_from_step(entry, steps) for entry in sizes]
        if any(type(entry[0]) is float and entry[0] > 0 for entry in sizes if _is_size(entry)):
            old.append(f"sizes begin at steps, not fractions of the run: {entries}")
        new["sizes"] = entries
    return new, old


def _is_size(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and len(entry) > 0 and _is_fraction(entry[0])


def _is_fraction(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _from_step(entry: Any, steps: int) -> Any:
    """An entry of `sizes` whose first value was a fraction of the run."""
    if not _is_size(entry) or type(entry[0]) is not float:
        return entry
    return [round(entry[0] * steps), *entry[1:]]


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
