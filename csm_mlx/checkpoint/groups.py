"""The files of a checkpoint folder: weights put together as their indices or numbered names say, and its JSON."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csm_mlx.checkpoint import files
from csm_mlx.checkpoint.read import PICKLE_REASON, Tensor, read_tensors
from csm_mlx.errors import CheckpointError, ConfigError

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class Group:
    """One file, or the shards of one model."""

    name: str
    files: tuple[Path, ...]
    tensors: dict[str, Tensor] = field(repr=False)


def found_files(path: Path) -> list[Path]:
    """The safetensors at a path; `CheckpointError` that says what is there instead, when there are none."""
    if path.is_file():
        if path.suffix in files.PICKLE_SUFFIXES:
            raise CheckpointError(f"{path} is a pickle; {PICKLE_REASON}")
        if path.suffix != files.WEIGHTS_SUFFIX:
            raise CheckpointError(f"{path} is no safetensors file; give a folder, a .safetensors file or a Hub id")
        return [path]
    found = files.weight_files(path)
    if found:
        return found
    names = sorted(p.name for p in path.iterdir())
    pickles = [name for name in names if Path(name).suffix in files.PICKLE_SUFFIXES]
    if pickles:
        raise CheckpointError(f"{path} holds no safetensors, only a pickle ({pickles[0]}); {PICKLE_REASON}")
    other = [name for name in names if Path(name).suffix in files.OTHER_WEIGHTS_SUFFIXES]
    there = f"only {other[0]}, which is not read" if other else f"only {', '.join(names[:5])}" if names else "nothing"
    raise CheckpointError(f"{path} holds {there}, expected a safetensors file; give the folder of a saved model")


def groups_of(paths: list[Path]) -> list[Group]:
    """Weight files put together as their indices, or else their numbered names, say."""
    rest, shards = list(paths), {}
    for index in sorted({p for path in paths for p in path.parent.glob(f"*{files.INDEX_SUFFIX}")}):
        members = _indexed(index)
        if not set(members) & set(paths):
            continue  # the index of files that were not fetched, next to others that were
        shards[index.name.removesuffix(files.INDEX_SUFFIX)] = members
        rest = [p for p in rest if p not in members]
    for path in rest:
        if match := _SHARD.fullmatch(path.name):
            stem, total = match[1], int(match[3])
            members = [path.with_name(f"{stem}-{i + 1:05d}-of-{total:05d}{files.WEIGHTS_SUFFIX}") for i in range(total)]
            shards.setdefault(f"{stem} (of {total})", members)
        else:
            shards[path.name] = [path]
    groups = []
    for name, members in shards.items():
        missing = [p.name for p in members if not p.exists()]
        if missing:
            raise CheckpointError(
                f"{members[0].parent} lacks {', '.join(missing)}, of the {len(members)} files of {name}; fetch it again"
            )
        groups.append(Group(name, tuple(members), _merged(members)))
    return groups


def _indexed(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(n, str) for n in weight_map.values())):
        raise CheckpointError(f"{index} has no weight_map, expected one file name per tensor; fetch it again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index} names the file {name!r}, expected a name without folders; do not trust it")
    return [index.with_name(name) for name in names]


def _merged(paths: list[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in read_tensors(path).items():
            if name in tensors:
                raise CheckpointError(f"{name!r} is both in {tensors[name].file} and in {path.name}; fetch them again")
            tensors[name] = tensor
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """Empty when there is no such file: layouts that need it say so themselves."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, expected an object; fetch it again")
    return data
