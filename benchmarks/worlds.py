"""Speed of the procedural world renderer: prints JSON.

Counted per image: geometry, textures, two lights with jittered shadows, camera effects (exposure, blur,
noise, JPEG-like coding) and all truth maps. Making the worlds is timed apart.
"""

from __future__ import annotations

import argparse
import json
import os
import time

import torch

from relief3d.worlds import CameraEffects, World, WorldConfig, apply_effects, make_bank, make_worlds
from relief3d.worlds.sequences import make_sequences


def measure(world: World, size: int, views: int, *, compile: bool, repeats: int) -> dict[str, float]:
    device = world.device
    seconds, processor = [], []
    sequence = make_sequences(world, views=views, seed=0, size=(size, size))
    for k in range(repeats + 1):
        generator = torch.Generator(device=device).manual_seed(k)
        start, work = time.perf_counter(), time.process_time()
        cameras = (sequence.K, sequence.world_from_cam)
        with torch.no_grad():
            out = world.render(cameras, (size, size), generator=generator, compile=compile)
            apply_effects(out.radiance, CameraEffects(), generator)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - work)
    images = world.count * views
    return {
        "first_s": round(seconds[0], 2),
        "images_per_s": round(images / min(seconds[1:]), 2),
        "processor_s_per_image": round(min(processor[1:]) / images, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--worlds", type=int, default=2)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--family", default="room")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-eager", action="store_true")
    args = parser.parse_args()
    config = WorldConfig(family=args.family)
    start = time.perf_counter()
    bank = make_bank(config)
    bank_s = time.perf_counter() - start
    start = time.perf_counter()
    world = make_worlds(range(args.worlds), config, bank=bank, device=args.device)
    report: dict[str, object] = {
        "size": args.size, "family": args.family, "slots": len(config.layout), "lights": world.lights.shape[1],
        "device": args.device, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "load_before": os.getloadavg()[0], "bank_s": round(bank_s, 2),
        "world_s": round((time.perf_counter() - start) / args.worlds, 4),
    }  # fmt: skip
    if not args.no_eager:
        report["eager"] = measure(world, args.size, args.views, compile=False, repeats=args.repeats)
    if not args.no_compile:
        report["compiled"] = measure(world, args.size, args.views, compile=True, repeats=args.repeats)
    report["load_after"] = os.getloadavg()[0]
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
