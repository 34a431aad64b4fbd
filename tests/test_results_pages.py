"""The results pages say what the result files say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "script",
    [
        "render_results",
        "render_evaluation",
        "render_training",
        "render_labelling",
        "render_scene_alignment",
        "prompted_depth",
        "metric_speed",
        "prompt_preparation",
    ],
)
def test_pages_agree_with_the_files(script: str, repo: Path) -> None:
    command = [sys.executable, str(repo / "benchmarks" / f"{script}.py"), "--check"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=repo)
    assert done.returncode == 0, done.stderr or done.stdout
