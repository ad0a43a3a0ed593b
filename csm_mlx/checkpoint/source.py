"""Opens a checkpoint folder of any layout: which files, which names, which config. No weights are read here."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

from csm_mlx.checkpoint import files, hub
from csm_mlx.checkpoint.detect import csm_layout, mimi_layout, moshi_layout
from csm_mlx.checkpoint.groups import Group, found_files, groups_of, read_json
from csm_mlx.checkpoint.names import (
    kyutai_lm,
    kyutai_lm_slices,
    kyutai_lm_torch,
    kyutai_lm_transformers,
    llama,
    mimi,
    mimi_kyutai,
    mimi_transformers,
    torchtune,
    transformers,
)
from csm_mlx.checkpoint.read import Tensor
from csm_mlx.config import CsmConfig, MimiConfig, MoshiConfig, SamplingConfig
from csm_mlx.errors import CheckpointError, ConfigError, HubError
from csm_mlx.stored import AnyConfig, CheckpointConfig, MoshiCheckpointConfig, StoredConfig, read_config

Kind = Literal["csm", "stt", "moshi"]
C = TypeVar("C", bound=StoredConfig, covariant=True)


@dataclass(frozen=True)
class Source(Generic[C]):
    """A recognised checkpoint under our names, its weights still on disk."""

    path: Path
    layout: str
    config: C
    model: dict[str, Tensor]
    codec: dict[str, Tensor]
    tokenizer: Path


def open_source(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    codec: str | Path | None = None,
    tokenizer: str | Path | None = None,
    on_progress: hub.Progress | None = None,
) -> Source[AnyConfig]:
    """Recognise a folder, a weight file or a repository of the Hub.

    codec, tokenizer: where the Mimi and the tokenizer.json, or for Kyutai's language models the sentencepiece model,
        are, if neither inside nor beside; else they are fetched.
    Raises CheckpointError, ConfigError or HubError.
    """
    path = hub.resolve(path_or_id, revision=revision, on_progress=on_progress)
    folder = path if path.is_dir() else path.parent
    groups = groups_of(found_files(path))
    kind, layout, group = _choose_model(path, groups)
    own = read_config(folder / files.CONFIG) if layout == "own" else None
    if own is not None and own.model_type != kind:
        raise ConfigError(
            f"{folder / files.CONFIG} is of {own.model_type}, its weights are of {kind}; fetch or convert both again"
        )
    foreign = own.to_dict() if own else foreign_config(folder, layout)
    codec_config, codec_tensors = _open_codec(folder, group, groups, foreign, codec, on_progress)
    tensors, origin = group.tensors, {"name": source_name(path_or_id), "layout": layout}
    config: AnyConfig
    if own is not None:
        config = own if codec_config == own.codec else replace(own, codec=codec_config)
    elif kind == "moshi":
        tensors, lm, quantization = map_moshi(layout, tensors, foreign)
        config = _moshi_config(lm, codec_config, foreign, quantization, origin)
    else:
        tensors, csm, quantization = _map_csm(layout, group, foreign, codec_config)
        config = CheckpointConfig(
            csm=csm,
            codec=codec_config,
            sampling=_sampling(folder / files.GENERATION_CONFIG),
            quantization=quantization,
            source=origin,
        )
    if isinstance(config, MoshiCheckpointConfig):
        found = _find_spm(folder, tokenizer, foreign, config.moshi, on_progress)
    else:
        found = _find_tokenizer(folder, tokenizer, on_progress)
    return Source(folder, layout, config, tensors, codec_tensors, found)


def open_csm(path_or_id: str | Path, **options: Any) -> Source[CheckpointConfig]:
    """As `open_source`, which has the options; `CheckpointError` for another model than a CSM."""
    return cast("Source[CheckpointConfig]", _required(open_source(path_or_id, **options), "csm"))


def open_moshi(path_or_id: str | Path, kind: Kind, **options: Any) -> Source[MoshiCheckpointConfig]:
    """As `open_source`, which has the options; `CheckpointError` for another model than the kind asked for, stt or
    moshi."""
    return cast("Source[MoshiCheckpointConfig]", _required(open_source(path_or_id, **options), kind))


_KINDS: dict[Kind, tuple[str, str]] = {
    "csm": ("a CSM", "csm say"),
    "stt": ("a speech-to-text model", "csm transcribe"),
    "moshi": ("a Moshi", "csm duplex"),
}
"""What each is called, and what takes it."""


def kind_of(config: AnyConfig) -> Kind:
    """What a checkpoint is for."""
    return "stt" if isinstance(config, MoshiCheckpointConfig) and config.stt is not None else config.model_type


def _required(source: Source[AnyConfig], kind: Kind) -> Source[AnyConfig]:
    found = kind_of(source.config)
    if found != kind:
        (name, command), (expected, _) = _KINDS[found], _KINDS[kind]
        raise CheckpointError(f"{source.path} holds {name}, expected {expected}; {command} takes this one")
    return source


def source_name(path_or_id: str | Path) -> str:
    """A repository's id or the last part of a path: no more of the user's disk goes into a file that may be shared."""
    path = Path(path_or_id)
    return path.resolve().name if path.exists() else str(path_or_id)


_KYUTAIS = {
    "kyutai": kyutai_lm_torch,
    "kyutai-slices": kyutai_lm_slices,
    "kyutai-transformers": kyutai_lm_transformers,
}


def foreign_config(folder: Path, layout: str) -> dict[str, Any]:
    """The config.json beside weights of another layout than ours, empty where there is none; in Kyutai's words where
    transformers saved a model of its."""
    config = read_json(folder / files.CONFIG)
    if layout != "kyutai-transformers":
        return config
    processor = next((said for name in files.PROCESSORS if (said := read_json(folder / name))), {})
    return kyutai_lm_transformers.as_kyutais(config, processor)


def _map_csm(
    layout: str, group: Group, foreign: Mapping[str, Any], codec: MimiConfig
) -> tuple[dict[str, Tensor], CsmConfig, dict[str, Any] | None]:
    names = {"transformers": transformers, "torchtune": torchtune, "llama": llama}[layout]
    model = names.map_csm(group.tensors, foreign)
    quantization = llama.map_quantization(model, foreign) if layout == "llama" else None
    return model, names.map_config(model, foreign, codec), quantization


def map_moshi(
    layout: str, tensors: Mapping[str, Tensor], foreign: Mapping[str, Any]
) -> tuple[dict[str, Tensor], MoshiConfig, dict[str, Any] | None]:
    """A language model of Kyutai's under our names, its config, and what is quantized of it.

    foreign: of `foreign_config`.
    """
    mapped = _KYUTAIS[layout].map_lm(tensors, foreign)
    config = kyutai_lm.map_config(mapped, foreign)
    return mapped, config, kyutai_lm.map_quantization(mapped, config)


def _moshi_config(
    lm: MoshiConfig,
    codec: MimiConfig,
    foreign: Mapping[str, Any],
    quantization: dict[str, Any] | None,
    origin: dict[str, Any],
) -> MoshiCheckpointConfig:
    text, audio = kyutai_lm.map_sampling(foreign, speaks=lm.n_generated > 0)
    return MoshiCheckpointConfig(
        moshi=lm,
        codec=codec,
        text_sampling=text,
        audio_sampling=audio,
        stt=None if lm.n_generated else kyutai_lm.map_stt(foreign, lm),
        quantization=quantization,
        source=origin,
    )


def _choose_model(path: Path, groups: list[Group]) -> tuple[str, str, Group]:
    """(kind, layout, files) of the model among what a folder holds: our own first, then one with its codec inside,
    then by name."""
    found = [("csm", layout, group) for group in groups if (layout := csm_layout(group.tensors))]
    found += [("moshi", layout, group) for group in groups if (layout := moshi_layout(group.tensors))]
    if found:
        return min(found, key=lambda f: (f[1] != "own", mimi_layout(f[2].tensors) is None, f[2].name))
    if any(mimi_layout(group.tensors) for group in groups):
        raise CheckpointError(f"{path} holds a Mimi codec and no CSM; give the folder of a CSM, and this one as codec")
    names = [name for group in groups for name in group.tensors]
    raise CheckpointError(
        f"{path} is in no known layout of CSM (csm-mlx, transformers, Sesame's torchtune, senstella or mlx-community) "
        f"or of Kyutai's models (PyTorch, MLX, candle, transformers): its {len(names)} tensors begin with "
        f"{', '.join(names[:3]) or 'none'}"
    )


def _open_codec(
    folder: Path,
    model: Group,
    groups: list[Group],
    config: Mapping[str, Any],
    codec: str | Path | None,
    on_progress: hub.Progress | None,
) -> tuple[MimiConfig, dict[str, Tensor]]:
    """The codec asked for, else inside the model's file, else beside it, else in a folder beside it, else fetched."""
    if codec is not None:
        path = hub.resolve(codec, on_progress=on_progress, want=hub.CODEC)
        return _choose_mimi(path, groups_of(found_files(path)), {})
    if mimi_layout(model.tensors):
        return _map_mimi(model.tensors, config)
    if any(mimi_layout(group.tensors) for group in groups):
        return _choose_mimi(folder, groups, config)
    for beside in sorted(p for p in folder.iterdir() if p.is_dir()):
        # Only what could be a codec is opened: a folder beside may be anything.
        if (paths := files.weight_files(beside)) and any(mimi_layout(g.tensors) for g in groups_of(paths)):
            return _choose_mimi(beside, groups_of(paths), {})
    path = _fetch_missing(folder, "Mimi codec", files.MIMI_REPO, files.MIMI_FILE, on_progress)
    return _choose_mimi(path, groups_of([path]), {})


def _choose_mimi(path: Path, groups: list[Group], config: Mapping[str, Any]) -> tuple[MimiConfig, dict[str, Tensor]]:
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


def _find_spm(
    folder: Path,
    given: str | Path | None,
    foreign: Mapping[str, Any],
    config: MoshiConfig,
    on_progress: hub.Progress | None,
) -> Path:
    """The sentencepiece model asked for, else the one that config.json names, else any in the folder, else fetched."""
    if given is not None:
        path = hub.resolve(given, on_progress=on_progress)
        folder = path if path.is_dir() else path.parent
        if path.is_file():
            return path
    named = foreign.get("tokenizer_name")
    candidates = [folder / named] if isinstance(named, str) and Path(named).name == named else []
    candidates += [folder / files.SPM, *sorted(folder.glob(f"*{files.SPM_SUFFIX}"))]
    if found := next((path for path in candidates if path.is_file()), None):
        return found
    if given is not None:
        raise CheckpointError(f"{folder} holds no sentencepiece model; give its file, such as {files.SPM}")
    if config.text_head_size not in files.SPM_REPOS:
        raise CheckpointError(f"{folder} holds no sentencepiece model (*{files.SPM_SUFFIX}); give one as tokenizer")
    repo, name = files.SPM_REPOS[config.text_head_size]
    return _fetch_missing(folder, "sentencepiece model", repo, name, on_progress)


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
