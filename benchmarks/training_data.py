"""Pictures per second of the sources of training samples, on one core.

Processor time is counted, which other programs on the machine disturb less than they do the clock; both are recorded.

    python benchmarks/training_data.py            # writes results/training/data_sources.json
    python benchmarks/training_data.py --render   # docs/results/training_data.md from it
    python benchmarks/training_data.py --check    # does the page agree with the file?
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from relief3d.core.provenance import commit, hardware, versions
from relief3d.data.augmentation import Augmentation
from relief3d.data.geometric import Geometric
from relief3d.data.mixtures import Mixture
from relief3d.data.photometric import Photometric
from relief3d.data.shards import ShardSet
from relief3d.data.sources import SampleSource
from relief3d.data.stored_views import ShardSource, prerender
from relief3d.data.streams import BatchStream, StreamConfig
from relief3d.data.view_groups import ViewRequest
from relief3d.io.atomic import write_text
from relief3d.worlds.config import WorldConfig
from relief3d.worlds.training import TabletopSource, WorldSource

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "results" / "training" / "data_sources.json"
PAGE = ROOT / "docs" / "results" / "training_data.md"
VIEWS = 4
AUGMENTED = Augmentation(Geometric(margin=1.2), Photometric(noise=0.02, blur=0.5))


def measure(what: str, size: int, samples: int, work: Callable[[int], Any]) -> dict[str, Any]:
    """One row: ``work`` makes a sample of VIEWS pictures."""
    work(0)
    clock, processor = time.perf_counter(), time.process_time()
    for index in range(1, samples + 1):
        work(index)
    wall, spent = time.perf_counter() - clock, time.process_time() - processor
    pictures = samples * VIEWS
    row = {
        "what": what,
        "size": size,
        "pictures": pictures,
        "pictures_per_processor_second": round(pictures / spent, 1),
        "pictures_per_second": round(pictures / wall, 1),
    }
    print(json.dumps(row), flush=True)
    return row


def source_rows(what: str, source: SampleSource, size: int, samples: int) -> list[dict[str, Any]]:
    request = ViewRequest(VIEWS, (size, size))
    return [measure(what, size, samples, lambda i: source.sample(i, request, i))]


def pool_rows(size: int, samples: int) -> list[dict[str, Any]]:
    """Pre-rendered table tops: writing them, reading them, reading them as augmented batches."""
    fresh = TabletopSource()
    large = AUGMENTED.input_size((size, size))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in (("plain", (size, size)), ("large", large)):
            prerender(fresh, ViewRequest(6, shape), samples + 1, Path(folder) / name, per_shard=64)
        plain, wide = (ShardSource(n, ShardSet(Path(folder) / n)) for n in ("plain", "large"))
        rows += source_rows("pool of table tops, 6 views stored", plain, size, samples)
        config = StreamConfig(views=(VIEWS, VIEWS), scenes=1, sizes=((size, size),), augmentation=AUGMENTED)
        stream = BatchStream(Mixture([wide]), config)
        rows.append(measure("the same, cropped, mirrored, recoloured", size, samples, stream.batch))
    return rows


def run(samples: int) -> None:
    torch.set_num_threads(1)
    began = time.time()
    rows: list[dict[str, Any]] = []
    for size in (48, 112):
        few = max(2, samples // 20)
        rows += source_rows("table tops", TabletopSource(), size, samples)
        rows += pool_rows(size, samples)
        for family in ("objects", "room"):
            config = WorldConfig(family=family)  # type: ignore[arg-type]
            rows += source_rows(f"worlds, {family}", WorldSource(config=config), size, few)
    report = {
        "command": f"python benchmarks/training_data.py --samples {samples}",
        "seed": 0,
        "views_per_sample": VIEWS,
        "rows": rows,
        "wall_s": round(time.time() - began, 1),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
    }
    write_text(RESULT, json.dumps(report, indent=1) + "\n")


def page() -> str:
    data = json.loads(RESULT.read_text(encoding="utf-8"))
    lines = [
        "# Sources of training samples: pictures per second",
        "",
        f"Samples of {data['views_per_sample']} square pictures with depth and cameras, one thread, torch "
        f"{data['versions']['torch']}, {data['hardware']['machine']} with {data['hardware']['cores']} cores that other "
        "programs used too; the processor column is the one to compare.",
        "",
        "| source | side, px | pictures per processor second | per second of the clock |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {r['what']} | {r['size']} | {r['pictures_per_processor_second']} | {r['pictures_per_second']} |"
        for r in data["rows"]
    ]
    made = f"Made by `{data['command']}` at commit {(data['commit'] or 'unknown')[:10]}."
    return "\n".join([*lines, "", made, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.check:
        sys.exit(
            0
            if PAGE.read_text(encoding="utf-8") == page()
            else "docs/results/training_data.md is out of date"
        )
    if not args.render:
        run(args.samples)
    write_text(PAGE, page())


if __name__ == "__main__":
    main()
