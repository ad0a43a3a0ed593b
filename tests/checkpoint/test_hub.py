"""Fetching, against a stand-in hub over real HTTP: what is asked for, and what is said when it cannot be had."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from support import hub_server, layouts
from support.hub_server import COMMIT, Hub

from csm_mlx.checkpoint import files, hub
from csm_mlx.checkpoint.convert import convert
from csm_mlx.checkpoint.load import load_checkpoint
from csm_mlx.errors import HubError

SESAME = [
    ".gitattributes",
    "README.md",
    "chat_template.jinja",
    "ckpt.pt",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "prompts/conversational_a.wav",
    "prompts/read_speech_d.wav",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "transformers-00001-of-00002.safetensors",
    "transformers-00002-of-00002.safetensors",
    "transformers.safetensors.index.json",
]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub in this process believes to be the real one, and an empty cache."""
    with hub_server.serve() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield hub


def as_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def repository(server: Hub, tmp_path: Path) -> str:
    """someone/csm, in Sesame's layout with its model twice, a codec beside, and a pickle."""
    tiny = layouts.make_tiny()
    layouts.write_transformers(tmp_path / "repository", tiny, n_shards=2)
    layouts.write_torchtune(tmp_path / "repository", tiny)
    (tmp_path / "repository" / "ckpt.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "repository" / "README.md").write_text("Hello.")
    server.repositories["someone/csm"] = as_files(tmp_path / "repository")
    return "someone/csm"


def test_only_what_is_needed_is_chosen() -> None:
    chosen = hub.needed_files(SESAME, "checkpoint", "sesame/csm-1b")

    assert chosen == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "prompts/conversational_a.wav",
        "prompts/read_speech_d.wav",
        "tokenizer.json",
    ]


def test_shards_come_with_their_index_and_other_layouts_with_their_parts() -> None:
    sharded = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = "model.safetensors.index.json"
    assert hub.needed_files([*sharded, index, "x.bin"], "checkpoint", "a/b") == [*sharded, index]
    senstella = ["ckpt.safetensors", "adapters.safetensors", "README.md"]
    assert hub.needed_files(senstella, "checkpoint", "a/b") == ["ckpt.safetensors"]
    own = ["config.json", "model.safetensors", "codec.safetensors", "tokenizer.json", "voices/anna/clip.wav"]
    assert set(hub.needed_files(own, "checkpoint", "a/b")) == set(own)


def test_of_a_repository_with_a_codec_only_that_is_chosen() -> None:
    moshi = ["config.json", "model.safetensors", files.MIMI_FILE, "tokenizer_spm_32k_3.model"]
    assert hub.needed_files(moshi, hub.CODEC, files.MIMI_REPO) == ["config.json", files.MIMI_FILE]
    mimi = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert hub.needed_files([*mimi, "README.md"], hub.CODEC, "kyutai/mimi") == mimi


def test_a_repository_of_pickles_is_refused() -> None:
    with pytest.raises(HubError, match=r"a/b holds no safetensors, only a pickle \(ckpt.pt\); a pickle can run any"):
        hub.needed_files(["ckpt.pt", "config.json"], "checkpoint", "a/b")
    with pytest.raises(HubError, match=r"a/b holds no safetensors file; it has README.md, model.gguf"):
        hub.needed_files(["model.gguf", "README.md"], "checkpoint", "a/b")


def test_a_repository_loads_by_its_id(server: Hub, repository: str) -> None:
    seen: dict[str, list[int]] = {}

    loaded = load_checkpoint(
        repository, on_progress=lambda name, done, total: seen.setdefault(name, [total]).append(done)
    )

    expected = layouts.make_tiny().model["projection.weight"]
    assert np.array_equal(np.asarray(loaded.model.projection.weight), expected)
    assert (
        sorted(server.fetched())
        == sorted(seen)
        == [
            "config.json",
            "model.safetensors",
            "tokenizer-e351c8d8-checkpoint125.safetensors",
            "tokenizer.json",
        ]
    )
    for name, (total, *done) in seen.items():
        assert total == len(server.repositories[repository][name])
        assert done == sorted(done)
        assert done[-1] == total


def test_what_is_in_the_cache_is_not_fetched_again(server: Hub, repository: str) -> None:
    folder = hub.fetch(repository)
    n_fetched = len(server.fetched())

    assert hub.fetch(repository) == folder
    assert len(server.fetched()) == n_fetched


def test_a_conversion_takes_an_id(repository: str, tmp_path: Path) -> None:
    report = convert(repository, tmp_path / "out")

    assert report.layout == "torchtune"
    assert load_checkpoint(tmp_path / "out").config.source == {"name": "someone/csm", "layout": "torchtune"}


def test_a_broken_download_resumes(server: Hub, repository: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    server.broken_after = 100_000

    folder = hub.fetch(repository)

    content = (folder / "model.safetensors").read_bytes()
    assert content == server.repositories[repository]["model.safetensors"]
    assert [asked for _, path, asked in server.requests if asked and path.endswith("model.safetensors")] == [
        "bytes=100000-"
    ]


def test_an_interrupted_download_goes_on_in_another_run(
    server: Hub, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setattr(hub, "RESUMED_BYTES", 100_000)

    def interrupt(name: str, done: int, _: int) -> None:
        if name == "model.safetensors" and done >= 50_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.fetch(repository, on_progress=interrupt)
    folder = hub.fetch(repository)

    assert (folder / "model.safetensors").read_bytes() == server.repositories[repository]["model.safetensors"]
    (asked,) = [asked for _, path, asked in server.requests if asked and path.endswith("model.safetensors")]
    assert int(asked.removeprefix("bytes=").rstrip("-")) >= 40_000
    assert not list(folder.parents[1].rglob("*.part"))


def test_a_large_file_that_arrives_damaged_is_not_kept(
    server: Hub, repository: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "RESUMED_BYTES", 100_000)
    server.large_files = True
    good = server.repositories[repository]["model.safetensors"]
    part = tmp_path / "cache" / "models--someone--csm" / "blobs" / f"{hub_server.sha256(good)}.csm-mlx.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1000))  # what an earlier run left, not what the file begins with

    with pytest.raises(HubError, match=r"model\.safetensors arrived damaged: its SHA-256 is .*; fetch it again"):
        hub.fetch(repository)

    assert not part.exists()
    assert (hub.fetch(repository) / "model.safetensors").read_bytes() == good


def test_a_part_that_is_too_long_is_begun_again(
    server: Hub, repository: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "RESUMED_BYTES", 100_000)
    server.large_files = True
    good = server.repositories[repository]["model.safetensors"]
    part = tmp_path / "cache" / "models--someone--csm" / "blobs" / f"{hub_server.sha256(good)}.csm-mlx.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(good + bytes(10))

    assert (hub.fetch(repository) / "model.safetensors").read_bytes() == good


def test_a_gated_repository_says_how_to_get_in(server: Hub) -> None:
    server.repositories["sesame/csm-1b"] = dict.fromkeys(SESAME, b"x")
    server.gated.add("sesame/csm-1b")

    with pytest.raises(HubError) as caught:
        load_checkpoint("sesame/csm-1b")

    assert str(caught.value) == (
        f"sesame/csm-1b is gated: accept its terms at {server.url}/sesame/csm-1b, "
        "then log in with `hf auth login` (or set HF_TOKEN), or use the open mirror unsloth/csm-1b"
    )


def test_an_unknown_repository_or_revision_is_told_apart(repository: str) -> None:
    with pytest.raises(HubError, match=r"no folder some/thing here and no repository http.*/some/thing, or it is priv"):
        load_checkpoint("some/thing")
    with pytest.raises(HubError, match=r"someone/csm has no revision 'v9'; see http"):
        load_checkpoint(repository, revision="v9")
    with pytest.raises(HubError, match=r"someone/csm has no mimi.json; it has README.md, ckpt.pt"):
        hub.fetch(repository, want=("mimi.json",))


def test_offline_takes_what_is_in_the_cache(server: Hub, repository: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, and someone/csm is not in the cache; fetch it once"):
            load_checkpoint(repository)
    folder = hub.fetch(repository)
    n_requests = len(server.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert hub.fetch(repository) == folder
    assert load_checkpoint(repository).path == folder
    assert len(server.requests) == n_requests
    (folder / "model.safetensors").unlink()
    (folder / "tokenizer-e351c8d8-checkpoint125.safetensors").unlink()
    with pytest.raises(HubError, match="someone/csm is in the cache without its weights; fetch it once"):
        load_checkpoint(repository)


def test_a_hub_that_is_down_or_out_of_reach_leaves_the_cache(
    server: Hub, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the hub library waits between its attempts
    server.down = True
    with pytest.raises(HubError, match=r"the Hub cannot be reached, and someone/csm is not in the cache; .*503"):
        hub.fetch(repository)
    server.down = False
    folder = hub.fetch(repository)
    server.down = True
    assert hub.fetch(repository) == folder
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub.fetch(repository) == folder
    with pytest.raises(HubError, match="the Hub cannot be reached, and other/thing is not in the cache"):
        hub.fetch("other/thing")


def test_a_codec_that_is_nowhere_beside_is_fetched(server: Hub, tmp_path: Path) -> None:
    tiny = layouts.make_tiny()
    layouts.write_senstella(tmp_path / "model", tiny)
    (tmp_path / "model" / "mimi.safetensors").unlink()
    (tmp_path / "model" / "tokenizer.json").unlink()
    layouts.save(tmp_path / "mimi.safetensors", layouts.kyutai_mimi(tiny))
    layouts.write_tokenizer(tmp_path)
    server.repositories[files.MIMI_REPO] = {
        files.MIMI_FILE: (tmp_path / "mimi.safetensors").read_bytes(),
        "model.safetensors": bytes(10),
    }
    server.repositories[files.TOKENIZER_REPO] = {
        "tokenizer.json": (tmp_path / "tokenizer.json").read_bytes(),
        "model.safetensors": bytes(10),
    }

    loaded = load_checkpoint(tmp_path / "model")

    assert loaded.config.codec == layouts.CONFIG.codec
    assert server.fetched() == [files.MIMI_FILE, "tokenizer.json"]


def test_a_codec_may_be_given_by_its_id(server: Hub, tmp_path: Path) -> None:
    tiny = layouts.make_tiny()
    layouts.write_transformers_beside(tmp_path / "model", tiny)
    (tmp_path / "model" / "mimi").rename(tmp_path / "mimi")
    server.repositories["kyutai/mimi"] = as_files(tmp_path / "mimi")

    assert load_checkpoint(tmp_path / "model", codec="kyutai/mimi").config.codec == layouts.CONFIG.codec


def test_the_environment_decides_as_everywhere(server: Hub, repository: str, tmp_path: Path) -> None:
    code = "import sys; from csm_mlx.checkpoint import hub; print(hub.fetch(sys.argv[1]))"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}

    run = subprocess.run(
        [sys.executable, "-c", code, repository], capture_output=True, text=True, env=environment, check=True
    )

    folder = Path(run.stdout.strip())
    assert folder.is_relative_to(tmp_path / "home" / "hub")
    assert folder.name == COMMIT
    assert run.stderr == ""  # the library is silent
    offline = environment | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    again = subprocess.run(
        [sys.executable, "-c", code, repository], capture_output=True, text=True, env=offline, check=True
    )
    assert again.stdout == run.stdout
