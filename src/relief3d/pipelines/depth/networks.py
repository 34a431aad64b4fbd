"""From the options of ``relief3d depth`` to the weights it takes."""

from __future__ import annotations

from collections.abc import Callable

from relief3d.core.errors import InputError, RunError
from relief3d.models.metric.opening import (
    PROMPTED,
    MetricRunOptions,
    MetricWeights,
    check_options,
    find_metric,
)
from relief3d.models.packaged import PLAIN
from relief3d.models.packaged import PROMPTED as PACKAGED_PROMPTED
from relief3d.pipelines.depth.config import DepthConfig


def find_weights(config: DepthConfig, announce: Callable[[str], None]) -> MetricWeights:
    """Find (for published ones: download) the weights and see which network they are for.

    Without a name: the packaged network for pictures with a prompt, or the one for pictures alone.

    Raises:
        InputError: no such file, damaged, of none of the networks, or options that do not fit.
    """
    name = config.model or (PLAIN if config.prompt is None else PACKAGED_PROMPTED)
    try:
        weights = find_metric(name, size=config.model_size, announce=announce)
    except RunError as exc:
        # Nothing has been started: without weights the request itself cannot be served.
        raise InputError(exc.message, remedy=exc.remedy) from exc
    _check_options(config, weights.architecture)
    return weights


def find_prior(
    config: DepthConfig, weights: MetricWeights, announce: Callable[[str], None]
) -> MetricWeights | None:
    """The network that guides a teacher's prompt, or None.

    Raises:
        InputError: see :func:`find_weights`; or the network takes no prior, or the prior itself needs a prompt.
    """
    if not config.prior:
        return None
    if weights.architecture != "teacher":
        raise InputError(f"a {weights.architecture} network takes no prior", remedy="leave --prior away")
    try:
        prior = find_metric(config.prior, announce=announce)
    except RunError as exc:
        raise InputError(exc.message, remedy=exc.remedy) from exc
    if prior.needs_prompt:
        raise InputError(
            f"{prior.label} needs a prompt itself", remedy="name a network for pictures alone with --prior"
        )
    return prior


def run_options(config: DepthConfig) -> MetricRunOptions:
    """What of the options is the network's."""
    return MetricRunOptions(config.side, config.pixels, config.tokens)


def _check_options(config: DepthConfig, architecture: str) -> None:
    check_options(run_options(config), architecture, "--")
    if config.prompt is not None and architecture not in PROMPTED:
        raise InputError(
            f"a {architecture} network takes no prompt",
            remedy=f"leave --prompt away, or name weights of a {' or '.join(PROMPTED)}",
        )
    if config.prompt is None and architecture in PROMPTED:
        raise InputError(
            f"a {architecture} network needs sparse metric depth", remedy="give it with --prompt"
        )
