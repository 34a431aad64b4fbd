"""MetricAnything (arXiv 2601.22054): metric depth of single pictures and several views, depth ranges, the decoder."""

from relief3d.eval.published.table import PublishedTable, published_table

PAPER = "MetricAnything"
MONO_SETS = ("eth3d", "booster", "nuscenes", "sunrgbd", "sintel", "middlebury")
DETAILS = ("abs_rel", "log10", "delta2", "delta3")

TABLE_3 = published_table(
    "metric-anything/table3",
    PAPER,
    "Metric depth of single pictures without training on the data: delta1 in %, and the average rank",
    [*(f"{data}.delta1" for data in MONO_SETS), "rank"],
    """
    DepthAnything    | 9.3 52.3 35.4 85.0 6.9 39.3 6.00
    DAV2             | 36.3 59.5 17.7 72.4 5.9 37.2 6.17
    Metric3D         | 34.2 4.7 64.4 16.9 17.3 13.6 6.83
    Metric3Dv2       | 87.7 39.4 82.6 75.6 38.3 29.9 4.17
    PatchFusion      | 51.8 22.6 20.4 53.6 14.0 49.9 6.00
    UniDepth         | 25.3 27.6 83.6 95.8 16.5 31.9 5.00
    ZoeDepth         | 34.2 21.6 28.1 85.7 7.8 53.8 5.83
    DepthPro         | 41.5 46.6 49.1 89.0 40.0 60.5 3.17
    Student-DepthMap | 79.9 59.5 88.1 97.7 27.7 65.8 1.50
    """,
    note="Whether all pixels are pooled beyond Booster, whose script is the only one released, is not known.",
)

_TABLE_4_ROWS = {
    "Student-DepthMap": {
        "eth3d": ".147 .064 97.71 99.90",
        "nuscenes": ".152 .063 96.56 98.26",
        "sintel": ".792 .227 50.01 70.57",
        "sunrgbd": ".085 .033 99.31 99.65",
        "booster": ".282 .100 84.11 96.83",
    },
    "DepthPro": {
        "eth3d": ".327 .193 61.31 71.23",
        "nuscenes": ".287 .164 73.84 84.25",
        "sintel": ".508 .230 59.25 71.14",
        "sunrgbd": ".113 .049 98.51 99.55",
        "middlebury": ".251 .089 93.17 96.40",
        "booster": ".336 .118 79.43 96.52",
    },
    "Metric3Dv2": {
        "eth3d": ".124 .053 99.55 99.90",
        "nuscenes": ".197 .080 93.25 95.74",
        "sintel": ".370 .216 62.92 76.87",
        "sunrgbd": ".156 .076 96.35 99.55",
        "middlebury": ".450 .152 73.32 88.61",
        "booster": ".417 .140 75.78 92.83",
    },
    "UniDepth": {
        "eth3d": ".457 .186 57.67 81.48",
        "nuscenes": ".138 .060 93.01 96.42",
        "sintel": ".869 .301 35.72 57.26",
        "sunrgbd": ".087 .037 99.33 99.80",
        "middlebury": ".324 .127 80.05 99.62",
        "booster": ".500 .166 60.90 89.21",
    },
    "DAV2": {
        "eth3d": ".370 .173 64.66 86.26",
        "nuscenes": ".614 .326 31.84 47.27",
        "sintel": "2.226 .494 18.70 33.82",
        "sunrgbd": ".182 .070 97.65 99.46",
        "middlebury": ".262 .141 72.07 90.55",
        "booster": ".315 .110 76.24 94.28",
    },
    "DepthAnything": {
        "eth3d": "1.682 .380 19.78 31.06",
        "nuscenes": ".453 .151 73.88 90.30",
        "sintel": "3.973 .559 15.42 27.28",
        "sunrgbd": ".114 .053 98.81 99.77",
        "middlebury": ".273 .149 69.62 86.06",
        "booster": ".317 .114 79.62 95.23",
    },
    "Metric3D": {
        "eth3d": ".859 .240 49.29 57.57",
        "nuscenes": ".422 .132 77.22 83.61",
        "sintel": "1.733 .387 32.38 44.79",
        "sunrgbd": "1.712 .382 27.00 34.12",
        "middlebury": "1.251 .305 37.53 58.73",
        "booster": "1.332 .346 13.07 33.98",
    },
    "PatchFusion": {
        "eth3d": ".256 .106 88.38 97.31",
        "nuscenes": ".392 .226 48.74 76.04",
        "sintel": ".617 .391 35.52 51.44",
        "sunrgbd": ".466 .961 60.15 60.65",
        "middlebury": ".250 .108 87.17 98.15",
        "booster": ".719 .213 49.39 72.89",
    },
    "ZoeDepth": {
        "eth3d": ".500 .176 64.45 81.43",
        "nuscenes": ".498 .182 64.95 82.70",
        "sintel": ".946 .392 22.70 44.97",
        "sunrgbd": ".123 .053 97.95 99.51",
        "middlebury": ".214 .115 77.68 90.86",
        "booster": ".610 .195 52.66 75.51",
    },
    "ZeroDepth": {
        "nuscenes": ".237 .121 82.60 89.91",
        "sintel": ".703 .491 25.63 37.08",
        "middlebury": ".377 .179 67.06 78.95",
    },
}
_ABSENT = "- - - -"

TABLE_4 = published_table(
    "metric-anything/table4",
    PAPER,
    "The same, in detail: AbsRel, log10, delta2 and delta3 in %",
    [f"{data}.{metric}" for data in MONO_SETS for metric in DETAILS],
    "\n".join(
        f"{method} | " + " | ".join(sets.get(data, _ABSENT) for data in MONO_SETS)
        for method, sets in _TABLE_4_ROWS.items()
    ),
    note="Our source of this table lacks the Middlebury figures of Student-DepthMap.",
)

POINT_SETS = ("kitti", "eth3d", "ibims", "diode")
_POINT_COLUMNS = [
    *(f"{data}.{metric}" for data in POINT_SETS for metric in ("abs_rel", "delta1")),
    *("mean.abs_rel", "mean.delta1", "rank"),
]

TABLE_5 = published_table(
    "metric-anything/table5",
    PAPER,
    "Metric depth of point-map models without intrinsics: AbsRel and delta1 in %",
    _POINT_COLUMNS,
    """
    ZoeDepth          | 17.0 85.4 | 57.1 33.7 | 17.4 67.2 | 39.3 29.3 | 32.70 53.90 7.00
    MASt3R            | 56.7 9.84 | 47.2 20.1 | 18.7 61.5 | 54.9 19.0 | 44.38 27.61 9.13
    DAV1              | 11.6 94.5 | 40.2 24.0 | 12.9 81.8 | 58.0 16.2 | 30.68 54.13 6.88
    DAV2              | 10.6 88.6 | 36.1 36.3 | 11.1 91.7 | 41.2 22.1 | 24.75 59.68 4.88
    UniDepthV1        | 4.69 98.4 | 56.9 14.9 | 23.8 57.6 | 17.1 71.9 | 25.62 60.70 5.50
    UniDepthV2        | 8.58 95.4 | 20.7 69.5 | 9.52 93.2 | 43.0 51.8 | 20.45 77.48 3.63
    DepthPro          | 23.5 38.3 | 38.5 32.8 | 15.9 81.5 | 31.9 37.7 | 27.45 47.58 6.75
    MoGe-2            | 18.1 62.9 | 10.4 90.8 | 13.6 83.0 | 17.5 66.4 | 14.90 75.78 4.13
    DA3-Metric-Large  | 11.8 83.0 | 11.0 90.1 | 27.6 43.5 | 24.2 53.7 | 18.66 67.59 5.88
    DA3-Nested-G-L    | 83.2 0.00 | 80.7 0.00 | 39.1 20.9 | 51.9 26.4 | 63.73 11.84 10.38
    Student-PointMap  | 3.22 97.7 | 10.8 90.2 | 11.3 86.6 | 13.9 79.8 | 9.81 88.58 1.88
    """,
    note="AbsRel and delta1 are of the metric depth, not of the points.",
)

TABLE_6 = published_table(
    "metric-anything/table6",
    PAPER,
    "Metric depth of point-map models given the horizontal field of view: AbsRel and delta1 in %",
    _POINT_COLUMNS,
    """
    Metric3Dv2        | 5.25 98.0 | 11.8 88.8 | 9.96 94.1 | 49.1 1.98 | 19.03 70.72 3.38
    UniDepthV1        | 4.43 98.5 | 44.5 26.7 | 22.6 60.5 | 21.0 63.5 | 23.13 62.30 3.75
    UniDepthV2        | 5.98 97.7 | 15.0 85.2 | 7.71 95.5 | 41.0 67.1 | 17.42 86.38 3.13
    MoGe-2            | 8.64 93.7 | 10.5 92.2 | 9.92 92.4 | 16.2 77.1 | 11.32 88.85 2.88
    Student-PointMap  | 5.47 99.6 | 9.75 92.4 | 9.47 92.0 | 14.1 74.3 | 9.69 89.56 1.88
    """,
    note="AbsRel and delta1 are of the metric depth, not of the points.",
)

TABLE_9 = published_table(
    "metric-anything/table9",
    PAPER,
    "Metric depth of several views: AbsRel and delta1 in %, with and without metric depth of single pictures as input",
    "eth3d.abs_rel eth3d.delta1 scannet.abs_rel scannet.delta1 mean.abs_rel mean.delta1",
    """
    MapAnything        | 20.43 69.07 | 37.61 61.78 | 29.02 65.42
    MapAnything + ours | 18.98 73.94 | 5.90 99.41 | 12.44 86.68
    """,
    note="Which student gives the depth is not stated beyond 'our prompt-free model'.",
)

TABLE_12 = published_table(
    "metric-anything/table12",
    PAPER,
    "Decoder of the student and labels: AbsRel and RMSE (m) trained on real labels and on pseudo labels",
    [
        f"{data}.{labels}.{m}"
        for data in ("nuscenes", "eth3d")
        for labels in ("real", "pseudo")
        for m in ("abs_rel", "rmse")
    ],
    """
    U-Net   | .213 9.631 | .187 7.222 | .327 5.353 | .269 1.44
    Inverse | .235 9.662 | .125 6.267 | .334 5.490 | .182 1.898
    """,
)

TABLE_14 = published_table(
    "metric-anything/table14",
    PAPER,
    "DIODE by depth range: AbsRel of four representations of depth in the loss",
    "r0_10 r10_20 r20_30 r30_40 r40_50 r50",
    """
    Depth         | .574 .582 .599 .622 .645 .689
    Log depth     | .556 .562 .577 .594 .612 .663
    Inverse depth | .467 .493 .565 .581 .592 .632
    Ours          | .465 .480 .489 .502 .537 .589
    """,
    note="The third range is printed as 10-30 m, presumably 20-30 m.",
)

TABLES: tuple[PublishedTable, ...] = (TABLE_3, TABLE_4, TABLE_5, TABLE_6, TABLE_9, TABLE_12, TABLE_14)
