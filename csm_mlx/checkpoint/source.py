"""Opens a checkpoint folder of any layout: which files, which names, which config. No weights are read here."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from csm_mlx.checkpoint import files, hub
from csm_mlx.checkpoint.detect import csm_layout, mimi_layout
from csm_mlx.checkpoint.names import llama, mimi, mimi_kyutai, mimi_transformers, torchtune, transformers
from csm_mlx.checkpoint.read import PICKLE_REASON, Tensor, read_tensors
from csm_mlx.config import CsmConfig, MimiConfig, SamplingConfig
from csm_mlx.errors import CheckpointError, ConfigError, HubError
from csm_mlx.stored import CheckpointConfig

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class Source:
    """A recognised checkpoint under our names, its weights still on disk."""

    path: Path
    layout: str
    config: CheckpointConfig
    model: dict[str, Tensor]
    codec: dict[str, Tensor]
    tokenizer: Path


@dataclass(frozen=True)
class _Group:
    """One file, or the shards of one model."""

    name: str
    files: tuple[Path, ...]
    tensors: dict[str, Tensor] = field(repr=False)


def open_source(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    codec: str | Path | None = None,
    tokenizer: str | Path | None = None,
    on_progress: hub.Progress | None = None,
) -> Source:
    """Recognise a folder, a weight file or a repository of the Hub.

    codec, tokenizer: where the Mimi or the tokenizer.json is, if neither inside nor beside; else they are fetched.
    Raises CheckpointError, ConfigError or HubError.
    """
    path = hub.resolve(path_or_id, revision=revision, on_progress=on_progress)
    folder = path if path.is_dir() else path.parent
    groups = _groups(_weight_files(path))
    layout, group = _choose_csm(path, groups)
    own = CheckpointConfig.read(folder / files.CONFIG) if layout == "own" else None
    foreign = own.to_dict() if own else read_json(folder / files.CONFIG)
    codec_config, codec_tensors = _open_codec(folder, group, groups, foreign, codec, on_progress)
    model = group.tensors
    if own is not None:
        config = own if codec_config == own.codec else replace(own, codec=codec_config)
    else:
        model, csm, quantization = _map_foreign(layout, group, foreign, codec_config)
        config = CheckpointConfig(
            csm=csm,
            codec=codec_config,
            sampling=_sampling(folder / files.GENERATION_CONFIG),
            quantization=quantization,
            source={"name": source_name(path_or_id), "layout": layout},
        )
    return Source(folder, layout, config, model, codec_tensors, _find_tokenizer(folder, tokenizer, on_progress))


def source_name(path_or_id: str | Path) -> str:
    """A repository's id or the last part of a path: no more of the user's disk goes into a file that may be shared."""
    path = Path(path_or_id)
    return path.resolve().name if path.exists() else str(path_or_id)


def _map_foreign(
    layout: str, group: _Group, foreign: Mapping[str, Any], codec: MimiConfig
) -> tuple[dict[str, Tensor], CsmConfig, dict[str, Any] | None]:
    names = {"transformers": transformers, "torchtune": torchtune, "llama": llama}[layout]
    model = names.map_csm(group.tensors, foreign)
    quantization = llama.map_quantization(model, foreign) if layout == "llama" else None
    return model, names.map_config(model, foreign, codec), quantization


def _weight_files(path: Path) -> list[Path]:
    """`CheckpointError` that says what is there instead, when there are no safetensors."""
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


def _groups(paths: list[Path]) -> list[_Group]:
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
        groups.append(_Group(name, tuple(members), _merged(members)))
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


def _choose_csm(path: Path, groups: list[_Group]) -> tuple[str, _Group]:
    """The model among what a folder holds: our own first, then one with its codec inside, then by name."""
    found = [(layout, group) for group in groups if (layout := csm_layout(group.tensors))]
    if found:
        return min(found, key=lambda f: (f[0] != "own", mimi_layout(f[1].tensors) is None, f[1].name))
    if any(mimi_layout(group.tensors) for group in groups):
        raise CheckpointError(f"{path} holds a Mimi codec and no CSM; give the folder of a CSM, and this one as codec")
    names = [name for group in groups for name in group.tensors]
    raise CheckpointError(
        f"{path} is in no known layout of CSM (csm-mlx, transformers, Sesame's torchtune, senstella or mlx-community): "
        f"its {len(names)} tensors begin with {', '.join(names[:3]) or 'none'}"
    )


def _open_codec(
    folder: Path,
    model: _Group,
    groups: list[_Group],
    config: Mapping[str, Any],
    codec: str | Path | None,
    on_progress: hub.Progress | None,
) -> tuple[MimiConfig, dict[str, Tensor]]:
    """The codec asked for, else inside the model's file, else beside it, else in a folder beside it, else fetched."""
    if codec is not None:
        path = hub.resolve(codec, on_progress=on_progress, want=hub.CODEC)
        return _choose_mimi(path, _groups(_weight_files(path)), {})
    if mimi_layout(model.tensors):
        return _map_mimi(model.tensors, config)
    if any(mimi_layout(group.tensors) for group in groups):
        return _choose_mimi(folder, groups, config)
    for beside in sorted(p for p in folder.iterdir() if p.is_dir()):
        # Only what could be a codec is opened: a folder beside may be anything.
        if (paths := files.weight_files(beside)) and any(mimi_layout(g.tensors) for g in _groups(paths)):
            return _choose_mimi(beside, _groups(paths), {})
    path = _fetch_missing(folder, "Mimi codec", files.MIMI_REPO, files.MIMI_FILE, on_progress)
    return _choose_mimi(path, _groups([path]), {})


def _choose_mimi(path: Path, groups: list[_Group], config: Mapping[str, Any]) -> tuple[MimiConfig, dict[str, Tensor]]:
    found = [group for group in groups if mimi_layout(group.tensors)]
    if not found:
        raise CheckpointError(f"{path} holds no Mimi codec; give the one in kyutai/mimi or in {files.MIMI_REPO}")
    group = min(found, key=lambda g: g.name)
    folder = path if path.is_dir() else path.parent
    if not config and (folder / files.CONFIG).is_file():
        config = read_json(folder / files.CONFIG)
    return _map_mimi(group.tensors, config)


def _map_mimi(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[MimiConfig, dict[str, Tensor]]:
    """`config`: of the folder that the codec is in; it may be a CSM's, a Mimi's or anything."""
    layout = mimi_layout(tensors)
    prefix = transformers.CODEC_PREFIX
    inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    tensors = inside or dict(tensors)
    if layout == "kyutai":
        mapped = mimi_kyutai.map_mimi(tensors)
        return mimi.infer_config(mapped), mapped
    if layout == "own":
        own = config.get("codec")
        return (MimiConfig.from_dict(own, "codec") if own else mimi.infer_config(tensors)), dict(tensors)
    foreign = config.get("codec_config") or (config if config.get("model_type") == "mimi" else None)
    if foreign is None:
        mapped = mimi_transformers.map_mimi(tensors, mimi.HEAD_DIM)
        return mimi.infer_config(mapped), mapped
    if not isinstance(foreign, Mapping):
        raise ConfigError(f"config.json says codec_config {foreign!r:.60}, expected an object")
    codec = mimi_transformers.map_config(foreign)
    return codec, mimi_transformers.map_mimi(tensors, codec.transformer.head_dim)


def _find_tokenizer(folder: Path, given: str | Path | None, on_progress: hub.Progress | None) -> Path:
    if given is not None:
        path = hub.resolve(given, on_progress=on_progress, want=(files.TOKENIZER,))
        path = path / files.TOKENIZER if path.is_dir() else path
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; give a tokenizer.json or the folder that holds it")
        return path
    if (folder / files.TOKENIZER).is_file():
        return folder / files.TOKENIZER
    return _fetch_missing(folder, files.TOKENIZER, files.TOKENIZER_REPO, files.TOKENIZER, on_progress)


def _fetch_missing(folder: Path, what: str, repo: str, name: str, on_progress: hub.Progress | None) -> Path:
    """A file of the Hub in place of one that a folder lacks; `HubError` says that it does, too."""
    try:
        return hub.fetch(repo, want=(name,), on_progress=on_progress) / name
    except HubError as error:
        raise HubError(f"{folder} holds no {what}, and another could not be fetched: {error}") from None


def _sampling(path: Path) -> SamplingConfig:
    """What a transformers `generation_config.json` recommends, where there is one."""
    given = read_json(path)
    if given.get("do_sample") is False:
        return SamplingConfig(temperature=0.0)
    known = {ours: given[ours] for ours in ("temperature", "top_k", "top_p", "min_p") if given.get(ours) is not None}
    return SamplingConfig.from_dict(known, str(path))


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
