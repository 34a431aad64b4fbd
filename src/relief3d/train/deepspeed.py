"""DeepSpeed's configuration for a run: ZeRO stage 2 (Rajbhandari et al. 2020), generated and checked before a launch.

Keys are those of DeepSpeed's documentation ("DeepSpeed Configuration JSON"), restricted to what a run here decides.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch

from relief3d.core.errors import InputError
from relief3d.train.config import TrainConfig

_SWITCH: frozenset[str] = frozenset({"enabled"})
_KEYS: Mapping[str, frozenset[str] | None] = {
    "train_batch_size": None,
    "train_micro_batch_size_per_gpu": None,
    "gradient_accumulation_steps": None,
    "gradient_clipping": None,
    "steps_per_print": None,
    "wall_clock_breakdown": None,
    "prescale_gradients": None,
    "gradient_predivide_factor": None,
    "communication_data_type": None,
    "zero_allow_untested_optimizer": None,
    "torch_autocast": _SWITCH | {"dtype", "lower_precision_safe_modules"},
    "bf16": _SWITCH,
    "fp16": _SWITCH
    | {"loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale", "auto_cast"},
    "zero_optimization": frozenset(
        {
            "stage",
            "allgather_partitions",
            "allgather_bucket_size",
            "overlap_comm",
            "reduce_scatter",
            "reduce_bucket_size",
            "contiguous_gradients",
            "round_robin_gradients",
            "ignore_unused_parameters",
        }
    ),
}


def deepspeed_config(
    config: TrainConfig, *, samples: int, world: int, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """The content of DeepSpeed's JSON file for a run, as :class:`relief3d.train.zero.ZeroEngine` uses it.

    Args:
        config: of the run.
        samples: in one micro-batch over all processes.
        world: number of processes.
        dtype: of autocast; None: float32.

    Raises:
        InputError: the samples cannot be shared out, or float16.
    """
    if samples < 1 or samples % world:
        raise InputError(f"{samples} samples do not divide among {world} processes")
    if dtype not in (None, torch.bfloat16):
        raise InputError(f"{dtype} is not for DeepSpeed here", remedy="use bfloat16, or the strategy ddp")
    out: dict[str, Any] = {
        "train_batch_size": samples * config.accumulate,
        "train_micro_batch_size_per_gpu": samples // world,
        "gradient_accumulation_steps": config.accumulate,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,  # done by the engine, set by set
        "steps_per_print": None,
        "zero_optimization": {
            "stage": 2,
            "allgather_partitions": True,
            "reduce_scatter": True,
            "contiguous_gradients": True,
            "overlap_comm": True,
        },
    }
    if dtype is not None:
        # No module is named, so that gradients are exchanged in float32.
        name = str(dtype).removeprefix("torch.")
        out["torch_autocast"] = {"enabled": True, "dtype": name, "lower_precision_safe_modules": []}
    validate_deepspeed(out, world=world)
    return out


def validate_deepspeed(config: Mapping[str, Any], *, world: int | None = None) -> None:
    """Check a configuration before machines are started for it.

    Args:
        config: the content of the JSON file.
        world: number of processes; None: any that fits.

    Raises:
        InputError: an unknown key (with the nearest known one), both half precisions, a stage that shards weights,
            or batch sizes that do not multiply.
    """
    for key, value in config.items():
        _known(key, _KEYS, "")
        inner = _KEYS[key]
        if inner is not None:
            if not isinstance(value, Mapping):
                raise InputError(f"'{key}' must be an object in DeepSpeed's configuration")
            for name in value:
                _known(name, inner, f"{key}.")
    if all(config.get(half, {}).get("enabled") for half in ("bf16", "fp16")):
        raise InputError("bf16 and fp16 cannot both be enabled")
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2):
        raise InputError(
            f"zero_optimization.stage must be 0, 1 or 2, not {stage}", remedy="use FSDP2 to spread weights"
        )
    whole, micro = config.get("train_batch_size"), config.get("train_micro_batch_size_per_gpu")
    count = config.get("gradient_accumulation_steps", 1)
    if whole is not None and micro is not None:
        share = micro * count
        if whole % share or (world is not None and whole != share * world):
            raise InputError(
                f"train_batch_size {whole} is not train_micro_batch_size_per_gpu {micro} times "
                f"gradient_accumulation_steps {count} times the number of processes"
            )


def _known(name: str, known: Mapping[str, Any] | frozenset[str], prefix: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, list(known), 1)
        raise InputError(
            f"'{prefix}{name}' is unknown in DeepSpeed's configuration",
            remedy=f"did you mean '{prefix}{near[0]}'?" if near else None,
        )
