"""One dataclass per command; fields are the options, ``run`` calls the library and returns the exit code."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from relief3d.core.errors import EXIT_FAILED, EXIT_OK, InputError
from relief3d.core.progress import ConsoleProgress, Progress, SilentProgress
from relief3d.pipelines.depth.config import DepthConfig
from relief3d.pipelines.evaluate.config import EvaluateConfig
from relief3d.pipelines.label.config import LabelConfig
from relief3d.pipelines.mesh.config import MeshConfig
from relief3d.pipelines.reconstruct.config import ReconstructConfig
from relief3d.train.recipe import Budget, Size, Strategy

InputPath = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="INPUT")]
OutPath = Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="OUT")]


def _progress(quiet: bool) -> Progress:
    return SilentProgress() if quiet else ConsoleProgress()


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


@dataclass(frozen=True)
class ReconstructCommand:
    """Options of ``relief3d reconstruct``."""

    input: InputPath
    """Folder, glob ('photos/*.jpg'), video, COLMAP model folder, cameras.json or transforms.json."""
    out: OutPath
    """Output folder."""
    config: ReconstructConfig = field(default_factory=ReconstructConfig)
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """No progress."""

    def run(self) -> int:
        """Reconstruct and say where the results are."""
        from relief3d.pipelines.reconstruct.run import reconstruct

        scene = reconstruct(self.input, self.out, config=self.config, progress=_progress(self.quiet))
        if not self.quiet:
            _print(scene.info["headline"])
            _print(f"report: {self.out / 'report.html'}")
        return EXIT_OK


@dataclass(frozen=True)
class DepthCommand:
    """Options of ``relief3d depth``."""

    inputs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="INPUT")]
    """Pictures, folders, globs ('photos/*.jpg'), a video, a COLMAP model folder, cameras.json or transforms.json."""
    out: OutPath
    """Output folder; the same command continues what an earlier one began."""
    config: Annotated[DepthConfig, tyro.conf.arg(name="")] = field(default_factory=DepthConfig)
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """No progress."""

    def run(self) -> int:
        """Predict depth and say where it is and what the focal lengths are worth."""
        from relief3d.pipelines.depth.run import predict_depth

        done = predict_depth(self.inputs, self.out, config=self.config, progress=_progress(self.quiet))
        _print(done.text())
        return EXIT_OK


@dataclass(frozen=True)
class MeshCommand:
    """Options of ``relief3d mesh``."""

    input: InputPath
    """Recording with or without poses: folder in a known layout (see --layout), photos, a video, a COLMAP model,
    cameras.json or transforms.json."""
    out: OutPath
    """Output folder; the same command continues what an earlier one began."""
    config: Annotated[MeshConfig, tyro.conf.arg(name="")] = field(default_factory=MeshConfig)
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """No progress."""

    def run(self) -> int:
        """Make the mesh and say where it is."""
        from relief3d.pipelines.mesh.run import make_mesh

        done = make_mesh(self.input, self.out, self.config, progress=_progress(self.quiet))
        if not self.quiet:
            _print(done.text())
        return EXIT_OK


@dataclass(frozen=True)
class ViewCommand:
    """Options of ``relief3d view``."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder written by ``relief3d reconstruct``."""
    port: int = 8080
    """Port; the next free one is taken when it is in use."""
    host: str = "127.0.0.1"
    """Address to listen on; anything but this machine needs --allow-remote."""
    allow_remote: bool = False
    """Let other machines in, behind a secret token in the address (not encrypted)."""

    def run(self) -> int:
        """Serve until interrupted."""
        from relief3d.viewer import open_viewer

        open_viewer(self.out, self.host, self.port, allow_remote=self.allow_remote)
        return EXIT_OK


@dataclass(frozen=True)
class EvalCommand:
    """Options of ``relief3d eval``."""

    protocol: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROTOCOL")] = ""
    """Name of a benchmark protocol (see --list); ``all`` for the procedural twins of all; or ``reference``: one
    result against a scene that holds the truth."""
    paths: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RESULT REFERENCE")] = ()
    """For ``reference``: folder written by ``relief3d reconstruct`` (or any scene file, for poses only), and the scene
    with the truth: cameras.json, transforms.json, COLMAP folder or a reconstruct result."""
    list: bool = False
    """Show all protocols with their published rows, and the models; with PROTOCOL only that one."""
    config: Annotated[EvaluateConfig, tyro.conf.arg(name="")] = field(default_factory=EvaluateConfig)
    mesh: Path | None = None
    """For ``reference``: true mesh (PLY, GLB); without it, true depth is fused when the reference has depth."""
    json: Path | None = None
    """For ``reference``: also write the numbers to this file."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """No progress."""

    def run(self) -> int:
        """Print the numbers."""
        if self.list:
            from relief3d.eval.protocols.registry import find_protocol
            from relief3d.pipelines.evaluate.listing import format_list

            _print(format_list(find_protocol(self.protocol).name if self.protocol else ""))
            return EXIT_OK
        if not self.protocol:
            raise InputError("name a protocol", remedy="relief3d eval --list shows them")
        return self._reference() if self.protocol == "reference" else self._benchmark()

    def _reference(self) -> int:
        from relief3d.eval.reference import compare, format_comparison
        from relief3d.io.json_file import write_json

        if len(self.paths) != 2:
            raise InputError("this needs two places", remedy="relief3d eval reference RESULT REFERENCE")
        numbers = compare(*self.paths, mesh=self.mesh)
        _print(format_comparison(numbers))
        if self.json is not None:
            write_json(self.json, numbers)
        return EXIT_OK

    def _benchmark(self) -> int:
        from relief3d.eval.protocols.registry import find_protocol
        from relief3d.pipelines.evaluate.run import evaluate, evaluate_all, format_result

        if self.paths:
            raise InputError(
                f"'{self.paths[0]}' is not understood here", remedy="use --predictions and --data"
            )
        if self.protocol == "all":
            refused = 0
            for name, results in evaluate_all(self.config, progress=_progress(self.quiet)).items():
                for result in results:
                    if isinstance(result, str):
                        refused += 1
                        _print(f"{name}: not measured: {result}")
                    else:
                        _print(format_result(find_protocol(name), result, self.config.out))
            return EXIT_FAILED if refused else EXIT_OK
        protocol = find_protocol(self.protocol)
        result = evaluate(self.protocol, self.config, progress=_progress(self.quiet))
        _print(format_result(protocol, result, self.config.out))
        return EXIT_OK


@dataclass(frozen=True)
class LabelCommand:
    """Options of ``relief3d label``."""

    input: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="INPUT")] = None
    """Same as for ``relief3d reconstruct``, or a folder of such inputs, which are labelled scene by scene."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="OUT")] = None
    """Output folder; the same command continues what an earlier one began."""
    labeler: str = ""
    """Name of a labeler (see --list), or MODULE:CLASS for one of your own."""
    set: tuple[str, ...] = ()
    """Options of the labeler, KEY=VALUE."""
    config: Annotated[LabelConfig, tyro.conf.arg(name="")] = field(default_factory=LabelConfig)
    list: bool = False
    """Show the labelers with their options."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """No progress."""

    def run(self) -> int:
        """Label and account for every item; exit 1 when some have no labels."""
        from relief3d.pipelines.label.run import list_labelers, run_label

        if self.list:
            _print(list_labelers())
            return EXIT_OK
        if self.input is None or self.out is None or not self.labeler:
            raise InputError("this needs INPUT, -o OUT and --labeler NAME", remedy="relief3d label --list")
        progress = _progress(self.quiet)
        text, complete = run_label(self.input, self.out, self.labeler, self.set, self.config, progress)
        _print(text)
        return EXIT_OK if complete else EXIT_FAILED


@dataclass(frozen=True)
class TrainCommand:
    """Options of ``relief3d train``."""

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")] = ""
    """What to train (see --list)."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="DIR")] = None
    """Folder of the run; the same command continues what an earlier one began."""
    size: Size | None = None
    """Of the network; nano unless a file says otherwise."""
    budget: Budget | None = None
    """smoke: seconds. mini: minutes on two cores. gpu: ten minutes on a large one. paper: the published schedule."""
    set: tuple[str, ...] = ()
    """Changes of options, NAME=VALUE (train.steps=100 train.ema.decay=0.99); --dry-run -v shows all names."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE.yaml")] = None
    """Options from a file, such as the config.yaml of another run, before --set."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Go on with the run in this folder."""
    dry_run: bool = False
    """State memory, time and data, and train nothing."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    strategy: Strategy | None = None
    """Of several processes, which torchrun or accelerate launch starts: ddp (the default): all weights on each. fsdp:
    weights, gradients and moments spread over them. deepspeed: gradients and moments spread (ZeRO-2)."""
    list: bool = False
    """Show the recipes."""
    verbose: Annotated[bool, tyro.conf.arg(aliases=["-v"])] = False
    """With --dry-run: also print all options."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """No progress."""

    def run(self) -> int:
        """Train and say where the weights are; of several processes, one speaks."""
        from relief3d.train.processes import is_first, one_voice

        with one_voice():
            said = self._run(self.quiet or not is_first())
        if is_first():
            _print(said)
        return EXIT_OK

    def _run(self, quiet: bool) -> str:
        if self.list:
            from relief3d.pipelines.train.registry import list_recipes

            return list_recipes()
        from relief3d.pipelines.train import run

        request = run.TrainRequest(
            self.recipe, self.size, self.budget, self.config, self.set, self.device, self.strategy
        )
        if self.resume is not None:
            if (
                request != run.TrainRequest(device=self.device, strategy=self.strategy)
                or self.out
                or self.dry_run
            ):
                raise InputError("--resume takes everything from its folder", remedy="leave the rest away")
            done = run.resume_run(self.resume, self.device, _progress(quiet), strategy=self.strategy)
        elif not self.recipe and self.config is None:
            raise InputError("name a recipe", remedy="relief3d train --list shows them")
        elif self.dry_run:
            options = f"{run.resolved_yaml(request)}\n" if self.verbose else ""
            return options + run.plan_run(request)
        elif self.out is None:
            raise InputError("this needs -o DIR", remedy="or --dry-run, or --resume DIR")
        else:
            done = run.start_run(request, self.out, _progress(quiet))
        return run.format_trained(done)


@dataclass(frozen=True)
class ReproCommand:
    """Options of ``relief3d repro``."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = ""
    """Which paper's miniatures (see --list)."""
    budget: Budget = "mini"
    """smoke: seconds, proves the plumbing. mini: the numbers. gpu: on a large GPU."""
    out: OutPath = Path("repro_out")
    """Gets runs/, results/ and docs/results/; the same command goes on where an earlier one stopped."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    list: bool = False
    """Show what there is."""
    only: tuple[str, ...] = ()
    """Names of the tables to run (see --list); none: all."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """No progress."""

    def run(self) -> int:
        """Run what is not done yet and say where the page is."""
        from relief3d.pipelines.repro.registry import list_experiments

        if self.list:
            _print(list_experiments())
            return EXIT_OK
        from relief3d.pipelines.repro.run import reproduce

        progress = _progress(self.quiet)
        page = reproduce(
            self.name, self.budget, self.out, device=self.device, progress=progress, only=self.only
        )
        _print(f"page: {page}")
        return EXIT_OK


@dataclass(frozen=True)
class PlanCommand:
    """Options of ``relief3d plan``."""

    input: InputPath
    """Same as for ``relief3d reconstruct``."""
    config: ReconstructConfig = field(default_factory=ReconstructConfig)

    def run(self) -> int:
        """Print the plan."""
        from relief3d.pipelines.reconstruct.plan import format_plan, make_plan

        _print(format_plan(make_plan(self.input, self.config)))
        return EXIT_OK


@dataclass(frozen=True)
class DoctorCommand:
    """Options of ``relief3d doctor``."""

    json: bool = False
    """Machine-readable."""

    def run(self) -> int:
        """Print the findings; exit 1 when something required is missing."""
        from relief3d.pipelines.doctor import examine, format_findings

        findings = examine()
        if self.json:
            _print(json.dumps([f.as_dict() for f in findings], indent=1))
        else:
            _print(format_findings(findings))
        return EXIT_FAILED if any(f.required and not f.ok for f in findings) else EXIT_OK


@dataclass(frozen=True)
class DemoCommand:
    """Options of ``relief3d demo``."""

    out: OutPath = Path("demo_out")
    """Folder for the pictures, the truth and the result."""
    seed: int = 0
    """Which room."""
    views: int = 20
    """How many pictures."""
    width: int = 640
    """Picture width in pixels (4:3)."""
    quality: Literal["fast", "default", "fine", "strict"] = "default"
    """Depth profile of the reconstruction."""
    overwrite: bool = False
    """Replace an earlier demo in the folder."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """No progress."""

    def run(self) -> int:
        """Render, reconstruct with the ordinary command, evaluate."""
        from relief3d.eval.reference import format_comparison
        from relief3d.pipelines.demo import run_demo

        result = run_demo(
            self.out,
            seed=self.seed,
            views=self.views,
            width=self.width,
            quality=self.quality,
            overwrite=self.overwrite,
            progress=_progress(self.quiet),
        )
        _print(format_comparison(result.numbers))
        _print(f"report: {result.report}")
        return EXIT_OK
