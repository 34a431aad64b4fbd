"""Run every benchmark one after the other, then render the results pages.

    python benchmarks/run_all.py [NAME ...]

Takes about two hours on two cores; scripts that keep finished rows continue after an interruption.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = (
    "fusion", "mesh_metrics", "worlds", "reconstruct", "demo_seeds", "stereo_real", "mesh_real", "sfm_real",
    "real_sets", "evaluation",
)  # fmt: skip


def main() -> None:
    chosen = sys.argv[1:] or list(SCRIPTS)
    failed = []
    for name in chosen:
        sys.stdout.write(f"== {name}\n")
        sys.stdout.flush()
        if subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=False).returncode:
            failed.append(name)
    for page in ("render_results", "render_evaluation"):
        subprocess.run([sys.executable, str(HERE / f"{page}.py")], check=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
