"""The tree is the architecture: import direction, import cost and banned constructs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "relief3d"
LEVELS = {
    "core": 0,
    "geometry": 1,
    "io": 2,
    "render": 2,
    "data": 3,
    "worlds": 3,
    "fusion": 3,
    "nn": 3,
    "matching": 3.5,
    "sfm": 4,
    "stereo": 4,
    "models": 4,
    "losses": 4,
    "eval": 4,
    "train": 5,
    "labelling": 5,
    "report": 5,
    "methods": 6,
    "pipelines": 6.5,
    "viewer": 7,
    "cli": 8,
}
SIDEWAYS = {("worlds", "data")}
LIGHT = {"core", "geometry", "data", "worlds", "nn", "models", "losses", "train"}
LIGHT_IMPORTS = {"torch", "numpy", "safetensors", "tyro", "relief3d"}
ONLY_IN = {
    "pycolmap": ("sfm",),
    "open3d": ("fusion/open3d_backend", "render/open3d_backend"),
    "viser": ("viewer",),
    "argparse": ("cli",),
    "ray": ("labelling",),
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "use absolute imports"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_level_imports(tree: ast.Module) -> Iterator[str]:
    """What is imported when the module is: functions import on their own account."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)
        else:
            waiting.extend(ast.iter_child_nodes(node))


def layer(path: Path) -> str | None:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def test_every_folder_has_a_level() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.rglob("*.py"))}
    assert folders <= set(LEVELS), f"give these a level: {sorted(folders - set(LEVELS))}"


def test_imports_point_down() -> None:
    wrong = []
    for path in modules():
        mine = layer(path)
        if mine is None:
            continue
        for name in imports(ast.parse(path.read_text())):
            parts = name.split(".")
            if parts[0] != "relief3d" or len(parts) < 2 or parts[1] not in LEVELS or parts[1] == mine:
                continue
            other = parts[1]
            if LEVELS[other] >= LEVELS[mine] and (mine, other) not in SIDEWAYS:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_methods_do_not_import_each_other() -> None:
    for path in modules():
        parts = path.relative_to(PACKAGE).parts
        if parts[0] != "methods" or len(parts) < 3:
            continue
        for name in imports(ast.parse(path.read_text())):
            if name.startswith("relief3d.methods."):
                assert name.split(".")[2] == parts[1], f"{path} imports {name}"


def test_light_layers_import_only_torch_numpy_safetensors_tyro() -> None:
    wrong = []
    for path in modules():
        mine = layer(path)
        if mine not in LIGHT:
            continue
        allowed = LIGHT_IMPORTS - ({"safetensors", "tyro"} if mine == "worlds" else set())
        for name in top_level_imports(ast.parse(path.read_text())):
            root = name.split(".")[0]
            if root not in allowed and root not in sys.stdlib_module_names:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name} at module level")
    assert not wrong, "\n".join(wrong)


def test_packages_stay_where_they_belong() -> None:
    wrong = []
    for path in modules():
        where = path.relative_to(PACKAGE).as_posix()
        for name in imports(ast.parse(path.read_text())):
            homes = ONLY_IN.get(name.split(".")[0])
            if homes and not where.startswith(homes):
                wrong.append(f"{where} imports {name}; only {homes} may")
    assert not wrong, "\n".join(wrong)


BANNED = {
    r"\bimport pickle|\bpickle\.loads?\(": "pickle",
    r"weights_only\s*=\s*False": "unsafe torch.load",
    r"allow_pickle\s*=\s*True": "pickled arrays",
    r"yaml\.load\((?!.*Safe)": "unsafe yaml",
    r"shell\s*=\s*True": "shell",
    r"(?<![\w.])eval\(": "eval",
    r"\.cuda\(\)": "hard-wired device",
    r"sys\.path\s*(\.|\[|\+?=)": "path surgery",
    r"os\.environ\[[^]]+\]\s*=": "environment writes",
    r"^\s*except\s*:\s*$": "bare except",
}


def test_no_banned_constructs() -> None:
    wrong = []
    for path in modules():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for pattern, what in BANNED.items():
                if re.search(pattern, line):
                    wrong.append(f"{path.relative_to(PACKAGE)}:{number}: {what}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


def test_cuda_is_named_only_in_core_device() -> None:
    wrong = [
        f"{p.relative_to(PACKAGE)}:{i}"
        for p in modules()
        if p.relative_to(PACKAGE).as_posix() != "core/device.py"
        for i, line in enumerate(p.read_text().splitlines(), 1)
        if re.search(r"""["']cuda["']|cuda\.is_available""", line)
    ]
    assert not wrong, wrong


def test_modules_and_functions_fit_in_a_head() -> None:
    wrong = []
    for path in modules():
        text = path.read_text()
        if (lines := text.count("\n")) > 600:
            wrong.append(f"{path.relative_to(PACKAGE)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > 90:
                    wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}: {size} lines")
        if re.search(r"(^|/)(utils|misc|helpers|common)\.py$", path.as_posix()):
            wrong.append(f"{path.relative_to(PACKAGE)}: dumping-ground name")
    assert not wrong, "\n".join(wrong)


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_fast_and_without_torch() -> None:
    code = (
        "import time, sys; t = time.perf_counter(); import relief3d; "
        "print(time.perf_counter() - t, 'torch' in sys.modules)"
    )
    seconds, torch_loaded = min((run_python(code).split() for _ in range(3)), key=lambda r: float(r[0]))
    assert float(seconds) < 0.3
    assert torch_loaded == "False"


@pytest.mark.parametrize("argument", ["--help", "reconstruct"])
def test_help_does_not_import_torch(argument: str) -> None:
    extra = [] if argument == "--help" else ["--help"]
    code = (
        "import sys, time; t = time.perf_counter()\n"
        f"sys.argv = ['relief3d', {argument!r}, *{extra!r}]\n"
        "from relief3d.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as e:\n    assert not e.code, e.code\n"
        "print('LOADED', 'torch' in sys.modules, time.perf_counter() - t)"
    )
    last = run_python(code).splitlines()[-1].split()
    assert last[:2] == ["LOADED", "False"]
    assert float(last[2]) < 2.0  # measured 0.3 s alone; generous because test workers share the cores


def test_public_names_resolve() -> None:
    import relief3d

    assert len(relief3d.__all__) <= 25
    for name in relief3d.__all__:
        assert getattr(relief3d, name) is not None
