"""The output folder as a resumable state: which stages are complete, for which input and options."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relief3d.core.contract import Scene
from relief3d.core.errors import InputError
from relief3d.io.atomic import prepare_output_folder, write_text
from relief3d.io.folder_lock import lock_folder

STATE_DIR = ".relief3d"
PREVIOUS_DIR = ".relief3d-previous"
"""Where --overwrite keeps the old result until the new one is complete."""
# What each stage leaves behind; a stage that is not complete starts from a clean slate.
STAGE_FILES = {
    "cameras": ("sparse", "images", "transforms.json"),
    "depth": ("depth",),
    "mesh": ("points.ply", "splats.ply", "mesh.glb", "mesh.ply"),
    "report": ("scene.json", "report.html"),
}
STAGES = tuple(STAGE_FILES)


def input_fingerprint(scene: Scene, source: str, attached: Sequence[Path | None] = ()) -> str:
    """Hash of the input: view names, sizes and, for files, their length and time of change.

    ``attached`` are the files or folders of known cameras, depth and masks, whose change is a change of input.
    """
    digest = hashlib.sha256(source.encode())
    for view in scene.views:
        facts: list[Any] = [view.name, view.camera.width, view.camera.height]
        if view.path is not None and view.path.exists():
            stat = view.path.stat()
            facts += [stat.st_size, stat.st_mtime_ns]
        digest.update(repr(facts).encode())
    for item in attached:
        if item is None:
            continue
        files = sorted(p for p in item.rglob("*") if p.is_file()) if item.is_dir() else [item]
        for path in files:
            stat = path.stat()
            digest.update(repr([path.name, stat.st_size, stat.st_mtime_ns]).encode())
    return digest.hexdigest()[:16]


class Workspace:
    """One output folder.

    Args:
        root: the folder; created when absent.
        input_hash: what :func:`input_fingerprint` says.
        stage_hashes: options fingerprint of each stage.
        overwrite: replace an earlier result instead of refusing; it is kept aside until the new one is complete.
        need_bytes: free space that the run needs.
        layout: stages in order, the last of which is the report, and what each leaves behind.

    Raises:
        InputError: when the folder holds something else, or another result and ``overwrite`` is false, cannot be
            written, lacks space, or is in use by another run.
    """

    def __init__(
        self,
        root: Path,
        *,
        input_hash: str,
        stage_hashes: Mapping[str, str],
        overwrite: bool = False,
        need_bytes: int = 0,
        layout: Mapping[str, Sequence[str]] = STAGE_FILES,
    ) -> None:
        self.root = root
        self._layout = {name: tuple(files) for name, files in layout.items()}
        self._results = (*(f for files in self._layout.values() for f in files), STATE_DIR)
        self.fresh = not root.exists()
        self._state_path = root / STATE_DIR / "state.json"
        stages = {**stage_hashes, "report": stage_hashes["mesh"]}
        if root.exists() and not root.is_dir():
            raise InputError("the output path is a file", path=root, remedy="name a folder")
        previous = self._read_state()
        if previous is None and (root / PREVIOUS_DIR).is_dir():
            self._restore()  # an earlier --overwrite died before its first stage
            previous = self._read_state()
        if root.exists() and previous is None and any(root.iterdir()):
            raise InputError(
                "the output folder holds files that are not a relief3d result",
                path=root,
                remedy="choose an empty or new folder",
            )
        if previous is not None and not overwrite:
            conflict = self._conflict(previous, input_hash, stages)
            if conflict:
                raise InputError(
                    f"the output folder holds a result of {conflict}",
                    path=root,
                    remedy="choose another folder or add --overwrite",
                )
        try:
            prepare_output_folder(root, overwrite=True, need_bytes=need_bytes)
        except InputError:
            if self.fresh and root.is_dir() and not any(root.iterdir()):
                root.rmdir()
            raise
        self._lock = lock_folder(root)
        if previous is not None and overwrite:
            self._set_aside()
            previous = None
        self._state: dict[str, Any] = previous or {
            "version": 1,
            "input": input_hash,
            "began": time.time(),
            "options": stages,
            "stages": {},
        }
        if previous is None:
            self._save()

    @staticmethod
    def _conflict(previous: Mapping[str, Any], input_hash: str, stages: Mapping[str, str]) -> str | None:
        if previous.get("input") != input_hash:
            return "other pictures"
        if previous.get("options") != dict(stages):
            return "other options"
        return None

    def _read_state(self) -> dict[str, Any] | None:
        try:
            state = json.loads(self._state_path.read_text())
        except (OSError, ValueError):
            return None
        return state if isinstance(state, dict) and isinstance(state.get("stages"), dict) else None

    def _save(self) -> None:
        write_text(self._state_path, json.dumps(self._state, indent=1))

    def close(self) -> None:
        """Let other runs use the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def work(self) -> Path:
        """Scratch folder for intermediate files; removed by :meth:`tidy`."""
        path = self.root / STATE_DIR / "work"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def done(self, stage: str) -> bool:
        """True when ``stage`` was completed by this or an earlier run with the same input and options."""
        return stage in self._state["stages"]

    @property
    def complete(self) -> bool:
        """True when nothing is left to do."""
        return all(self.done(stage) for stage in self._layout)

    def record(self, stage: str) -> dict[str, Any]:
        """What :meth:`complete_stage` stored for ``stage``."""
        return dict(self._state["stages"][stage])

    def records(self) -> dict[str, dict[str, Any]]:
        """Records of all completed stages in order."""
        return {s: self.record(s) for s in self._layout if self.done(s)}

    def complete_stage(self, stage: str, **facts: Any) -> None:
        """Mark ``stage`` complete; ``facts`` (JSON types) are kept for later runs and the report."""
        self._state["stages"][stage] = facts
        self._save()

    def begin_stage(self, stage: str) -> None:
        """Remove what an interrupted attempt at ``stage`` left behind."""
        self.clear(self._layout[stage])

    def clear(self, names: tuple[str, ...]) -> None:
        """Remove results by name; nothing else in the folder is touched."""
        for name in names:
            path = self.root / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.exists() or path.is_symlink():
                path.unlink()

    def tidy(self) -> None:
        """Drop the scratch folder and, now that the new result is complete, the one it replaces."""
        shutil.rmtree(self.root / STATE_DIR / "work", ignore_errors=True)
        if self.complete:
            shutil.rmtree(self.root / PREVIOUS_DIR, ignore_errors=True)

    def abandon(self) -> None:
        """After a refusal: remove what was made and put back what was there, so that nothing half-written stays."""
        if self.complete:
            return
        self.clear(self._results)
        if (self.root / PREVIOUS_DIR).is_dir():
            self._restore()
        elif self.fresh and self.root.exists() and not any(self.root.iterdir()):
            self.root.rmdir()

    def _set_aside(self) -> None:
        """Move the old result away; an unfinished one is removed when an older complete one waits already."""
        aside = self.root / PREVIOUS_DIR
        if aside.is_dir():
            self.clear(self._results)
            return
        aside.mkdir()
        for name in self._results:
            if (self.root / name).exists():
                (self.root / name).replace(aside / name)

    def _restore(self) -> None:
        aside = self.root / PREVIOUS_DIR
        for path in aside.iterdir():
            if not (self.root / path.name).exists():
                path.replace(self.root / path.name)
        shutil.rmtree(aside, ignore_errors=True)
