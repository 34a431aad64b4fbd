"""The ``relief3d`` command: parses options, calls the library, turns errors into exit codes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from relief3d.cli.commands import (
    DemoCommand,
    DepthCommand,
    DoctorCommand,
    EvalCommand,
    LabelCommand,
    MeshCommand,
    PlanCommand,
    ReconstructCommand,
    ReproCommand,
    TrainCommand,
    ViewCommand,
)
from relief3d.cli.models_command import ModelsCommand
from relief3d.core.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, ReliefError

_COMMANDS: dict[str, tuple[type[Any], str]] = {
    "reconstruct": (ReconstructCommand, "Photos or a video in; cameras, depth, mesh and a report out."),
    "depth": (
        DepthCommand,
        "Metric depth of pictures or a video by a trained network, with or without a prompt.",
    ),
    "mesh": (
        MeshCommand,
        "Posed or unposed recordings into one surface, by scale-aligned depth of overlapping submaps.",
    ),
    "view": (ViewCommand, "Explore a result in the browser (served on this machine only)."),
    "eval": (
        EvalCommand,
        "Measure a model, predictions or a result: benchmark protocols, or against a reference.",
    ),
    "label": (
        LabelCommand,
        "Compute pseudo-labels (depth, tracks, masks, cameras) of many pictures, resumably.",
    ),
    "train": (TrainCommand, "Train a network by a named recipe, resumably."),
    "repro": (ReproCommand, "Run the miniature tables of a paper, arm by arm, resumably."),
    "models": (
        ModelsCommand,
        "Networks: which come along or are published, under which licence, and how large.",
    ),
    "plan": (PlanCommand, "State memory and time of a reconstruction before it starts."),
    "doctor": (DoctorCommand, "Check the installation and say what is missing."),
    "demo": (DemoCommand, "Render a procedural room, reconstruct it and compare with the exact truth."),
}


def _parser_type() -> Any:
    union: Any = None
    for name, (kind, text) in _COMMANDS.items():
        entry: Any = Annotated[kind, tyro.conf.subcommand(name, description=text)]
        union = entry if union is None else union | entry
    return union


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit the process.

    Exit codes: 0 done, 1 failed while running, 2 bad input or usage, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if arguments == ["--version"]:
        from relief3d import __version__

        sys.stdout.write(f"relief3d {__version__}\n")
        raise SystemExit(EXIT_OK)
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s: %(message)s"
    )
    raise SystemExit(_run(arguments, debug))


def _parse(arguments: list[str]) -> Any:
    return tyro.cli(
        _parser_type(),
        prog="relief3d",
        description="Ordinary images and video into 3D. Add --debug for tracebacks, --version for the version.",
        args=arguments or ["--help"],
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )


def _run(arguments: list[str], debug: bool) -> int:
    try:
        return int(_parse(arguments).run())
    except ReliefError as exc:
        if debug:
            raise
        _say(f"relief3d: {exc}")
        return exc.exit_code
    except KeyboardInterrupt:
        _say("relief3d: interrupted; run the same command again to continue")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`relief3d ... | head`); do not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except MemoryError:
        _say(_OUT_OF_MEMORY)
        return EXIT_FAILED
    except OSError as exc:
        if debug:
            raise
        _say(f"relief3d: {exc.filename or 'file system'}: {exc.strerror or exc}")
        return EXIT_FAILED
    except Exception as exc:
        if debug:
            raise
        from relief3d.core.device import is_out_of_memory

        if is_out_of_memory(exc):
            _say(_OUT_OF_MEMORY)
            return EXIT_FAILED
        _say(f"relief3d: unexpected {type(exc).__name__}: {exc} (this is a bug; --debug shows where)")
        return EXIT_FAILED


_OUT_OF_MEMORY = (
    "relief3d: out of memory (use a smaller --side, --chunk or --depth-width, or --max-memory with what is free; "
    "see relief3d plan)"
)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
