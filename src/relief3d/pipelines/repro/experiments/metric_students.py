"""MetricAnything's students in miniature: labels and decoder, objectives, data scaling, intrinsics, resolution.

Sizes, steps and worlds are those of :data:`relief3d.pipelines.repro.students.PRESETS` and of the prompted tables, fixed
before the first compared run.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from relief3d.eval.protocols.base import Column
from relief3d.losses.metric_depth import StudentOptions
from relief3d.methods.metric_anything.students.config import DepthMapStudentConfig, Labels, StudentEvaluation
from relief3d.pipelines.repro.experiment import Arm, ArmRun, Comparison, Experiment, ExperimentPlan
from relief3d.pipelines.repro.student_tests import (
    PERCENTILE_KEYS,
    best_fov,
    constant_resolution,
    guessed_fov,
    intrinsics_numbers,
    label_numbers,
    resolution_numbers,
)
from relief3d.pipelines.repro.students import (
    SEVERITY,
    constant_arm,
    depthmap_config,
    detailed_sets,
    pointmap_config,
    student_arm,
    student_numbers,
    student_preset,
    teacher_parameters,
)
from relief3d.pipelines.train.configuration import to_plain
from relief3d.train.recipe import Budget

PAPER = "metric-anything"
SHARES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
DECODERS = {"unet": "U-Net skips", "inverse": "inverse skips"}
LABELS: dict[Labels, str] = {"raw": "raw labels", "teacher": "teacher's labels"}
OBJECTIVES = {
    "balanced": "distance-balanced (the paper's)",
    "depth": "depth",
    "log_depth": "log depth",
    "inverse_depth": "inverse depth",
}
CONSTANTS = (50.0, 100.0, 400.0)
FACTORS = {"x1": 1.0, "x3": 3.0, "x9": 9.0}
_PICTURES = (
    "Pictures of 128 x 160 of procedural worlds; streets are trained on (one family, so that a small network learns "
    "something in minutes), outdoor is never seen (unseen family). Truth is rendered, the focal length is given; means "
    "over held-out pictures."
)
_RAW = (
    f"Raw labels are what imitated stereo (half of the pictures) and active sensors give, with {SEVERITY:g} times the "
    "errors of docs/metric_depth_prompts.md; the teacher is the lean network of the prompted tables, which is told at "
    "most 800 of their points. 15 % of the pictures keep rendered truth in every arm. Where the sky is, all know."
)


# ---- labels and decoder ---------------------------------------------------------------------------------------------

_MAIN = (
    Column("abs_rel", "AbsRel"),
    Column("scaled_abs_rel", "AbsRel, scale of each picture given"),
    Column("rmse", "RMSE", "m"),
    Column("delta1", "delta1", "%", "higher"),
    Column("boundary", "boundary F1", "", "higher"),
    Column("unseen_abs_rel", "AbsRel, unseen family"),
    Column("unseen_rmse", "RMSE, unseen family", "m"),
)
_MAIN_KEYS = tuple(c.key for c in _MAIN)


def plan_labels(budget: Budget) -> ExperimentPlan:
    """Two decoders on two kinds of labels."""
    s = student_preset(budget)
    arms = [
        student_arm(
            f"{decoder}_{labels}",
            f"{DECODERS[decoder]}, {said}",
            budget,
            depthmap_config(budget, labels, skip_order=decoder),
            _MAIN_KEYS,
        )
        for decoder in DECODERS
        for labels, said in LABELS.items()
    ]
    flat = constant_arm(budget, depthmap_config(budget), _MAIN_KEYS)
    return ExperimentPlan(s.depthmap, (*arms, flat), s.seeds)


LABEL_TABLE = Experiment(
    PAPER,
    "student_labels",
    "Student-DepthMap on raw and on a teacher's labels, with both decoders (Tab 12)",
    _MAIN,
    plan_labels,
    (
        *(
            Comparison(f"{decoder}_teacher", f"{decoder}_raw", key)
            for key in ("abs_rel", "scaled_abs_rel", "rmse", "delta1", "boundary", "unseen_abs_rel")
            for decoder in DECODERS
        ),
        Comparison("unet_raw", "inverse_raw", "abs_rel"),
        Comparison("inverse_teacher", "unet_teacher", "abs_rel"),
    ),
    notes=(_PICTURES, _RAW, "The paper's numbers stand below the next table, which has its shape."),
)


def _decoder_numbers(budget: Budget, decoder: str, run: ArmRun) -> dict[str, float]:
    out: dict[str, float] = {}
    for labels in LABELS:
        config = depthmap_config(budget, labels, skip_order=decoder)
        out |= {f"{labels}_{k}": v for k, v in student_numbers(run, budget, config, _MAIN_KEYS).items()}
    return out


def plan_decoders(budget: Budget) -> ExperimentPlan:
    """The networks of the table above, in the paper's shape."""
    s = student_preset(budget)
    arms = []
    for decoder, title in DECODERS.items():
        configs = {labels: depthmap_config(budget, labels, skip_order=decoder) for labels in LABELS}
        parameters: dict[str, Any] = {"training": {k: to_plain(c) for k, c in configs.items()}}
        parameters |= teacher_parameters(budget, configs["teacher"])
        arms.append(Arm(decoder, title, parameters, partial(_decoder_numbers, budget, decoder)))
    return ExperimentPlan(s.depthmap, tuple(arms), s.seeds)


DECODER_TABLE = Experiment(
    PAPER,
    "student_decoders",
    "The same networks in the shape of the paper's table 12",
    tuple(
        Column(f"{labels}_{key}", f"{label}, {said}", "m" if key.endswith("rmse") else "")
        for key, label in (
            ("abs_rel", "AbsRel"),
            ("rmse", "RMSE"),
            ("unseen_abs_rel", "AbsRel, unseen"),
            ("unseen_rmse", "RMSE, unseen"),
        )
        for labels, said in LABELS.items()
    ),
    plan_decoders,
    published={
        "metric-anything/table12": {
            f"{ours}_{prefix}{metric}": f"{data}.{theirs}.{metric}"
            for ours, theirs in (("raw", "real"), ("teacher", "pseudo"))
            for prefix, data in (("", "nuscenes"), ("unseen_", "eth3d"))
            for metric in ("abs_rel", "rmse")
        }
    },
    notes=(
        "Nothing is trained for this table. The paper's sets are nuScenes and (as our unseen family) ETH3D.",
    ),
)


# ---- objectives -----------------------------------------------------------------------------------------------------

_RANGES = {
    "from_0m": ("0-10 m", "r0_10"),
    "from_10m": ("10-20 m", "r10_20"),
    "from_20m": ("20-30 m", "r20_30"),
    "from_30m": ("30-40 m", "r30_40"),
    "from_40m": ("40-50 m", "r40_50"),
    "from_50m": ("beyond 50 m", "r50"),
}
_OBJECTIVE_COLUMNS = (
    Column("near", "AbsRel to 20 m"),
    Column("far", "AbsRel beyond 20 m"),
    Column("abs_rel", "AbsRel"),
    *(Column(key, f"AbsRel, {said}") for key, (said, _) in _RANGES.items()),
)
_FAR = (
    "Rendered truth is the label, so that only the objective differs. AbsRel by distance is over the pixels of all "
    "pictures together. One seed: no order is claimed."
)


def objective_config(budget: Budget, losses: StudentOptions) -> DepthMapStudentConfig:
    """Student-DepthMap on truth."""
    return depthmap_config(budget, "truth", losses=losses)


def plan_objectives(budget: Budget) -> ExperimentPlan:
    """The four objectives, with the same gradient term in their own space."""
    s, keys = student_preset(budget), tuple(c.key for c in _OBJECTIVE_COLUMNS)
    configs = {
        space: objective_config(budget, StudentOptions(space=space))  # type: ignore[arg-type]
        for space in OBJECTIVES
    }
    arms = [student_arm(k, OBJECTIVES[k], budget, config, keys) for k, config in configs.items()]
    return ExperimentPlan(s.depthmap, (*arms, constant_arm(budget, configs["balanced"], keys)), s.seeds[:1])


OBJECTIVE_TABLE = Experiment(
    PAPER,
    "student_objectives",
    "Space of the loss, by distance (Tab 14)",
    _OBJECTIVE_COLUMNS,
    plan_objectives,
    tuple(
        Comparison("balanced", other, key)
        for other in OBJECTIVES
        if other != "balanced"
        for key in ("far", "near")
    ),
    {"metric-anything/table14": {key: theirs for key, (_, theirs) in _RANGES.items()}},
    (
        _PICTURES.split(";")[0] + ".",
        _FAR,
        "Balanced and log depth differ by a factor 1 / ln C of one of two terms only, so a tie is what the algebra "
        "says. Depth is limited to [1/400, 400] m in all arms.",
    ),
)

_CONSTANT_COLUMNS = (
    Column("to_middle", "AbsRel to 40 m"),
    Column("beyond_middle", "AbsRel beyond 40 m"),
    Column("near", "AbsRel to 20 m"),
    Column("far", "AbsRel beyond 20 m"),
)


def plan_constants(budget: Budget) -> ExperimentPlan:
    """Three values of C."""
    s, keys = student_preset(budget), tuple(c.key for c in _CONSTANT_COLUMNS)
    configs = {c: objective_config(budget, StudentOptions(constant=c)) for c in CONSTANTS}
    arms = [student_arm(f"c{c:g}", f"C = {c:g}", budget, config, keys) for c, config in configs.items()]
    flat = constant_arm(budget, configs[400.0], keys)
    return ExperimentPlan(s.depthmap, (*arms, flat), s.seeds[:1])


CONSTANT_TABLE = Experiment(
    PAPER,
    "student_constant",
    "The constant C of the distance-balanced loss (Tab 15, right)",
    _CONSTANT_COLUMNS,
    plan_constants,
    tuple(Comparison("c400", "c50", key) for key in ("to_middle", "beyond_middle")),
    {"metric-anything/table15_right": {"to_middle": "near", "beyond_middle": "far"}},
    (
        _FAR,
        "C divides one of two terms by ln C, and limits depth to [1/C, C] m: nothing else. A tie is what is expected; "
        "C was not tuned.",
    ),
)


# ---- scaling --------------------------------------------------------------------------------------------------------


def _share(share: float) -> str:
    return f"data_{round(100 * share)}"


def plan_scaling(budget: Budget) -> ExperimentPlan:
    """Nested shares of the worlds with the teacher's labels, always with the same number of steps."""
    s = student_preset(budget)
    arms = [
        student_arm(
            _share(share),
            f"{round(100 * share)} % of the worlds",
            budget,
            depthmap_config(budget, share=share),
            _MAIN_KEYS,
        )
        for share in SHARES
    ]
    return ExperimentPlan(
        s.depthmap, (*arms, constant_arm(budget, depthmap_config(budget), _MAIN_KEYS)), s.seeds
    )


SCALING_TABLE = Experiment(
    PAPER,
    "student_scaling",
    "Data scaling of the student: 5 to 100 % of the worlds, the same steps",
    _MAIN,
    plan_scaling,
    tuple(Comparison("data_100", "data_5", key) for key in ("abs_rel", "scaled_abs_rel", "delta1")),
    notes=(
        _PICTURES,
        "Teacher's labels, inverse skips; the last arm is that of the tables above. Shares are nested. The teacher "
        "knows all worlds in every arm. The paper shows its student's scaling as a picture without numbers (Fig. 2a).",
    ),
)


def _trend(budget: Budget, run: ArmRun) -> dict[str, float]:
    from scipy.stats import spearmanr

    found = [
        student_numbers(run, budget, depthmap_config(budget, share=share), _MAIN_KEYS) for share in SHARES
    ]
    out = {
        k: float(spearmanr(SHARES, [n[k] for n in found]).statistic) for k in ("abs_rel", "unseen_abs_rel")
    }
    return {**out, "gain": 100 * (1 - found[-1]["abs_rel"] / found[0]["abs_rel"])}


def plan_trend(budget: Budget) -> ExperimentPlan:
    """Rank correlation of share and error over the networks of the scaling table."""
    s, config = student_preset(budget), depthmap_config(budget)
    parameters = {
        "shares": list(SHARES),
        "training": to_plain(config),
        **teacher_parameters(budget, config),
    }
    arm = Arm("each", "errors of one seed", parameters, partial(_trend, budget))
    return ExperimentPlan(s.depthmap, (arm,), s.seeds)


TREND_TABLE = Experiment(
    PAPER,
    "student_scaling_trend",
    "Data scaling of the student: Spearman correlation of share and error",
    (
        Column("abs_rel", "correlation with AbsRel", "", None),
        Column("unseen_abs_rel", "with AbsRel, unseen family", "", None),
        Column("gain", "error saved from 5 to 100 %", "%", None),
    ),
    plan_trend,
    notes=("Of the networks of the table above; -1 says that every larger share has a smaller error.",),
)


# ---- intrinsics -----------------------------------------------------------------------------------------------------

_FOV_COLUMNS = (
    Column("fov", "FoV error", "deg"),
    Column("fov_median", "median", "deg"),
    Column("fov_weiszfeld", "FoV error, Weiszfeld", "deg"),
    Column("abs_rel", "AbsRel, focal predicted"),
    Column("abs_rel_known", "AbsRel, focal given"),
    Column("unseen_fov", "FoV error, unseen family", "deg"),
    Column("unseen_abs_rel", "AbsRel, unseen family"),
)
_FOV_KEYS = tuple(c.key for c in _FOV_COLUMNS)


def plan_intrinsics(budget: Budget) -> ExperimentPlan:
    """Student-PointMap on raw and on the teacher's labels."""
    s = student_preset(budget)
    arms = []
    for labels, said in LABELS.items():
        config = pointmap_config(budget, labels)
        parameters = {"training": to_plain(config), **teacher_parameters(budget, config)}
        arms.append(Arm(labels, said, parameters, partial(intrinsics_numbers, budget, config)))
    seen = {"evaluation": to_plain(pointmap_config(budget).evaluation)}
    title = "best constant field of view (sees the truth)"
    arms.append(Arm("best_fov", title, seen, partial(best_fov, budget, _FOV_KEYS)))
    title = "best constant depth; focal length guessed as the width"
    arms.append(Arm("constant", title, seen, partial(guessed_fov, budget), True))
    return ExperimentPlan(s.pointmap, tuple(arms), s.seeds)


INTRINSICS_TABLE = Experiment(
    PAPER,
    "student_intrinsics",
    "Student-PointMap: field of view and metric depth of single pictures (Tab 5 to 7)",
    _FOV_COLUMNS,
    plan_intrinsics,
    (
        *(Comparison(labels, "best_fov", "fov") for labels in LABELS),
        Comparison("teacher", "raw", "abs_rel"),
        Comparison("teacher", "raw", "fov"),
    ),
    {
        "metric-anything/table7": {"fov": "average.mean", "fov_median": "average.median"},
        "metric-anything/table5": {"abs_rel": "mean.abs_rel"},
    },
    (
        _PICTURES.replace(", the focal length is given", ""),
        _RAW,
        "True fields of view are between 35 and 100 degrees. The focal length is that of MoGe's solver (focal and "
        "shift), or of Weiszfeld's iteration (Eq. 6) on the points shifted by it. The paper's AbsRel are in percent.",
    ),
)


# ---- resolution, labels ---------------------------------------------------------------------------------------------

_RESOLUTION_COLUMNS = (
    Column("boundary", "boundary F1, depth map", "", "higher"),
    Column("abs_rel", "AbsRel, depth map"),
    Column("point_boundary", "boundary F1, point map", "", "higher"),
    Column("point_abs_rel", "AbsRel, point map"),
)


def plan_resolution(budget: Budget) -> ExperimentPlan:
    """Trained students of the other tables at three resolutions of test pictures of twice the side."""
    s, test = student_preset(budget), StudentEvaluation(detailed_sets(budget))
    configs = {"depthmap": depthmap_config(budget), "pointmap": pointmap_config(budget)}
    parameters = {
        "test": to_plain(test),
        "training": {k: to_plain(c) for k, c in configs.items()},
        **teacher_parameters(budget, configs["depthmap"]),
    }
    arms = [
        Arm(
            name,
            f"{factor:g}x the pixels",
            {**parameters, "factor": factor},
            partial(resolution_numbers, budget, test, factor),
        )
        for name, factor in FACTORS.items()
    ]
    title = "best constant depth (sees the truth)"
    arms.append(Arm("constant", title, {"test": to_plain(test)}, partial(constant_resolution, test), True))
    return ExperimentPlan(s.depthmap, tuple(arms), s.seeds)


RESOLUTION_TABLE = Experiment(
    PAPER,
    "student_resolution",
    "More pixels at test time than in training: 1x, 3x, 9x",
    _RESOLUTION_COLUMNS,
    plan_resolution,
    tuple(Comparison(name, "x1", key) for name in ("x3", "x9") for key in ("boundary", "point_boundary")),
    notes=(
        "Pictures of streets, 256 x 320. The depth map takes larger tiles (sides are rounded to what tiles "
        "can be: 3x is 4x), the point map more tokens. Nothing is trained for this table.",
    ),
)


def plan_percentiles(budget: Budget) -> ExperimentPlan:
    """Depths that the two kinds of labels hold, and the truth."""
    s = student_preset(budget)
    arms = []
    for labels, said in {**LABELS, "truth": "truth"}.items():
        config = depthmap_config(budget, labels)
        parameters = {
            "labels": to_plain(config.labels),
            "pictures": to_plain(config.pictures),
            "compared": s.compared,
            **teacher_parameters(budget, config),
        }
        arms.append(Arm(labels, said, parameters, partial(label_numbers, budget, s.compared, config)))
    return ExperimentPlan(s.depthmap, tuple(arms), s.seeds[:1])


PERCENTILE_TABLE = Experiment(
    PAPER,
    "student_label_depths",
    "What labels hold: percentiles of depth, coverage, errors (Fig. 3)",
    (
        *(Column(key, f"{key[1:]} %", "m", None) for key in PERCENTILE_KEYS),
        Column("coverage", "pixels with a label", "%", None),
        Column("abs_rel", "AbsRel of labels", "", None),
        Column("boundary", "boundary F1 of labels", "", None),
        Column("held_out", "error at points kept from the teacher", "%", None),
    ),
    plan_percentiles,
    notes=(
        "Over the pixels of training pictures without rendered labels. Coverage is of the pixels with a surface; "
        "AbsRel and boundary F1 are those of the labels against the truth where both are known.",
    ),
)

EXPERIMENTS = (
    PERCENTILE_TABLE,
    LABEL_TABLE,
    DECODER_TABLE,
    OBJECTIVE_TABLE,
    CONSTANT_TABLE,
    SCALING_TABLE,
    TREND_TABLE,
    INTRINSICS_TABLE,
    RESOLUTION_TABLE,
)
