"""Models, losses, worlds and training work where only torch, numpy, safetensors and tyro are installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]

CODE = '''
import importlib, importlib.metadata, pkgutil, sys

ALLOWED = {"torch", "numpy", "safetensors", "tyro", "relief3d", "tests"}

def needs(roots):
    """Packages that the allowed ones require themselves."""
    import re
    waiting, seen = list(roots), set()
    while waiting:
        name = re.split(r"[^A-Za-z0-9_.-]", waiting.pop())[0].lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [r for r in found.requires or [] if "extra ==" not in r]
    return seen

kept = needs(["torch", "numpy", "safetensors", "tyro"])
owners = importlib.metadata.packages_distributions()
blocked = {
    module for module, of in owners.items()
    if module not in ALLOWED and not {d.lower().replace("_", "-") for d in of} & kept
}
assert {"PIL", "scipy", "skimage", "trimesh"} <= blocked, blocked

class Hiding:
    """A finder that does not find what is blocked, as if it were not installed."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in blocked else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]

import relief3d
count = 0
for layer in ("core", "geometry", "data", "worlds", "nn", "models", "losses", "train"):
    package = importlib.import_module(f"relief3d.{layer}")
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(info.name)
        count += 1
assert not blocked & {n.split(".")[0] for n in sys.modules}

import tempfile
from pathlib import Path
from tests.corpora.toy_task import ToyTask
from relief3d.train.config import EmaConfig, TrainConfig
from relief3d.train.loop import fit
with tempfile.TemporaryDirectory() as folder:
    for stop in (2, 4):
        result = fit(ToyTask(), TrainConfig(steps=4, ema=EmaConfig()), Path(folder), device="cpu", stop_at=stop)
assert result.finished
print("imported", count)
'''


def test_light_layers_import_and_train_without_other_packages() -> None:
    found = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, cwd=REPO, env=None, check=False
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert int(found.stdout.split()[-1]) > 50
