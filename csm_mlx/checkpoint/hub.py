"""The Hugging Face Hub: the only code here that uses the network, and only when a name is no folder.

What is needed is chosen from the list of a repository's files; sesame/csm-1b holds 19 GB, of which 6 are one model.
Downloads resume, and the cache, `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` are the hub library's own.
"""

import hashlib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from csm_mlx.checkpoint import files
from csm_mlx.checkpoint.read import PICKLE_REASON
from csm_mlx.errors import CheckpointError, HubError

Progress = Callable[[str, int, int], None]
"""Called with (file, bytes so far, bytes in all)."""

CODEC = "codec"
"""`want` for a repository that is a codec's alone."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ALWAYS = (
    files.CONFIG,
    files.GENERATION_CONFIG,
    *files.PROCESSORS,
    files.TOKENIZER,
    f"tokenizer*{files.SPM_SUFFIX}",
    f"{files.PROMPTS}/*.wav",
    f"{files.VOICES}/*/*",
)
RESUMED_BYTES = 16 << 20
"""Files from this size on are worth going on with."""
_CODECS = ("*codec*", "*mimi*", "tokenizer-*")
_NEVER = ("adapter*", "optimizer*", "training*")


def resolve(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    on_progress: Progress | None = None,
    want: str | Sequence[str] = "checkpoint",
) -> Path:
    """A path that exists, or else the cached folder of a repository. `CheckpointError` for what is neither."""
    path = Path(path_or_id).expanduser()
    if path.exists():
        if revision is not None:
            raise CheckpointError(f"{path} is on this disk and has no revision {revision!r}; leave the revision out")
        return path
    text = str(path_or_id)
    if isinstance(path_or_id, str) and _ID.fullmatch(text) and not Path(text.split("/")[0]).is_dir():
        return fetch(text, revision=revision, want=want, on_progress=on_progress)
    beside = path.parent
    there = sorted(p.name for p in beside.iterdir() if not p.name.startswith(".")) if beside.is_dir() else []
    listing = f"; {beside} holds {', '.join(there[:8])}" if there else ""
    raise CheckpointError(
        f"{path_or_id} does not exist{listing}; give a folder, or a repository of the Hub such as sesame/csm-1b"
    )


def fetch(
    repo_id: str,
    *,
    revision: str | None = None,
    want: str | Sequence[str] = "checkpoint",
    on_progress: Progress | None = None,
) -> Path:
    """Fetch what is needed of a repository into the user's cache; returns its folder there.

    want: "checkpoint", "codec", or the names of files.
    `HubError` says how to get in where the repository is gated, unknown or out of reach.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return _cached(repo_id, revision, want, "HF_HUB_OFFLINE is set")
    with _explained(repo_id, revision):
        try:
            return _download(repo_id, revision, want, on_progress)
        except _network_errors() as error:
            if not _is_unreachable(error):
                raise
            try:
                return _cached(repo_id, revision, want, "the Hub cannot be reached")
            except HubError as missing:
                raise HubError(f"{missing} ({_first_line(error)})") from error


def needed_files(names: Sequence[str], want: str | Sequence[str], repo_id: str) -> list[str]:
    """Which of a repository's files to fetch; `HubError` when the weights are missing or are pickles."""
    if not isinstance(want, str):
        missing = [name for name in want if name not in names]
        if missing:
            raise HubError(f"{repo_id} has no {', '.join(missing)}; it has {_some(names)}")
        return list(want)
    chosen = [name for name in names if any(fnmatch(name, pattern) for pattern in _ALWAYS)]
    roots = [name for name in names if "/" not in name]
    weights = [name for name in roots if name.endswith(files.WEIGHTS_SUFFIX) and not _fits(name, _NEVER)]
    indices = [name for name in roots if name.endswith(files.INDEX_SUFFIX)]
    if not weights:
        pickles = [name for name in names if PurePosixPath(name).suffix in files.PICKLE_SUFFIXES]
        if pickles:
            raise HubError(f"{repo_id} holds no safetensors, only a pickle ({pickles[0]}); {PICKLE_REASON}")
        raise HubError(f"{repo_id} holds no safetensors file; it has {_some(names)}")
    beside = [name for name in weights if _fits(name, _CODECS)]
    if want == CODEC and beside:
        return sorted({files.CONFIG, *beside} & set(names))  # Kyutai's own lies beside 15 GB of Moshi
    if files.MODEL in weights:
        # Sesame's repository holds its model twice, whole and in shards for transformers.
        return sorted({*chosen, files.MODEL, *beside})
    return sorted({*chosen, *indices, *weights})


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _some(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:6]) or "no files"


def _download(repo_id: str, revision: str | None, want: str | Sequence[str], on_progress: Progress | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    commit = info.sha or revision or "main"  # one commit for all files, though the branch may move meanwhile
    folder = None
    for name in needed_files(list(sizes), want, repo_id):
        bar = _bar(name, sizes[name], on_progress)
        if sizes[name] >= RESUMED_BYTES:
            _download_blob(repo_id, name, commit, bar)
        path = Path(hf_hub_download(repo_id, name, revision=commit, **_bar_option(hf_hub_download, bar)))
        folder = folder or path.parents[len(PurePosixPath(name).parts) - 1]
        if on_progress is not None:
            on_progress(name, sizes[name], sizes[name])
    assert folder is not None  # needed_files is never empty
    _remember_branch(folder, revision, info.sha)
    return folder


def _download_blob(repo_id: str, name: str, commit: str, bar: type) -> None:
    """Put a large file where the hub library keeps contents, going on where an earlier run was stopped.

    The library itself drops what an interrupted run had fetched (since its version 2). It finds this and links to it.
    """
    import fcntl

    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(repo_id, name, revision=commit, endpoint=constants.ENDPOINT)
    known = get_hf_file_metadata(url)
    if known.etag is None:
        return  # nothing to know the content by; the library fetches it its own way
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model") / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    blob, part = blobs / known.etag, blobs / f"{known.etag}.csm-mlx.part"
    if blob.exists():
        return
    part.touch()
    with part.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another process that fetches the same goes first
        if blob.exists():
            return
        start = file.seek(0, os.SEEK_END)
        if known.size is not None and start > known.size:  # no part of this file; going on would fail for ever
            start = file.truncate(file.seek(0))
        headers = build_hf_headers()
        if urlsplit(known.location).netloc != urlsplit(url).netloc:
            headers.pop("authorization", None)  # the token is the Hub's, not its storage's
        options = _bar_option(http_get, bar)
        http_get(known.location, file, resume_size=start, headers=headers, expected_size=known.size, **options)
        file.flush()
        _verify(part, known.etag, name)
        part.rename(blob)


def _verify(part: Path, etag: str, name: str) -> None:
    """Large files are known by their SHA-256; a part that does not make it is dropped, or it would be resumed again."""
    if not re.fullmatch(r"[0-9a-f]{64}", etag):
        return
    digest = hashlib.sha256()
    with part.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    if digest.hexdigest() != etag:
        part.unlink()
        raise HubError(f"{name} arrived damaged: its SHA-256 is {digest.hexdigest()}, expected {etag}; fetch it again")


def _remember_branch(folder: Path, revision: str | None, commit: str | None) -> None:
    """Note which commit a branch was, as the hub library does for downloads by branch, so that offline finds it."""
    branch = revision or "main"
    if commit is None or branch == commit:
        return
    ref = folder.parent.parent / "refs" / branch
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)


def _bar(name: str, size: int, on_progress: Progress | None) -> type:
    """A silent progress bar class that reports to `on_progress`."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any):
            options.pop("name", None)
            self._done = int(options.get("initial") or 0)
            super().__init__(*args, **(options | {"disable": True}))

        def update(self, n: float | None = 1) -> None:
            self._done += int(n or 0)
            if on_progress is not None:
                on_progress(name, min(self._done, size), size)

    return Bar


def _bar_option(download: Callable[..., Any], bar: type) -> dict[str, Any]:
    """Versions of the hub library before 1.0 take no bar for one file."""
    return {"tqdm_class": bar} if "tqdm_class" in inspect.signature(download).parameters else {}


def _cached(repo_id: str, revision: str | None, want: str | Sequence[str], why: str) -> Path:
    """The folder of a repository that was fetched before; `HubError` when it is not there in full."""
    from huggingface_hub import try_to_load_from_cache

    named = isinstance(want, str)
    probes = (files.CONFIG, files.MODEL, "ckpt.safetensors", files.MIMI_FILE) if named else tuple(want)
    hits = [try_to_load_from_cache(repo_id, name, revision=revision) for name in probes]
    folder = next((Path(hit).parent for hit in hits if isinstance(hit, str)), None)
    if folder is None:
        raise HubError(f"{why}, and {repo_id} is not in the cache; fetch it once with the network there")
    missing = [name for name in want if not (folder / name).exists()] if not isinstance(want, str) else []
    if missing or (isinstance(want, str) and not files.weight_files(folder)):
        lost = ", ".join(missing) or "its weights"
        raise HubError(f"{why}, and {repo_id} is in the cache without {lost}; fetch it once with the network there")
    return folder


def _network_errors() -> tuple[type[BaseException], ...]:
    """What the hub library may raise: its transport has been requests, httpx and httpx2, whose errors differ."""
    from huggingface_hub import errors

    transport = errors.HfHubHTTPError.__bases__[0]
    return (transport, OSError, errors.HFValidationError)


def _is_unreachable(error: BaseException) -> bool:
    """No answer at all, or one of a server in trouble."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return False
    if isinstance(error, errors.HfHubHTTPError):
        return error.response is not None and error.response.status_code >= 500
    return not isinstance(error, errors.EntryNotFoundError) and getattr(error, "errno", None) is None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _explained(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turns the hub library's errors into a `HubError` with the way out."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo_id}"
    mirror = files.OPEN_MIRRORS.get(repo_id)
    other = f", or use the open mirror {mirror}" if mirror else ""
    login = "log in with `hf auth login` (or set HF_TOKEN)"
    try:
        yield
    except HubError:
        raise
    except errors.GatedRepoError as error:
        raise HubError(f"{repo_id} is gated: accept its terms at {page}, then {login}{other}") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{repo_id} has no revision {revision!r}; see {page}/tree/main") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"there is no folder {repo_id} here and no repository {page}, or it is private; "
            f"check the spelling, or {login}{other}"
        ) from error
    except _network_errors() as error:
        raise HubError(f"cannot fetch {repo_id}: {_first_line(error)}; try again, what came is kept") from error
