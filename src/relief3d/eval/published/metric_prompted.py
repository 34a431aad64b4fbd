"""MetricAnything (arXiv 2601.22054): depth from sparse prompts, radar, prompt density, scaling, the constant C."""

from relief3d.eval.published.table import PublishedTable, published_table

PAPER = "MetricAnything"
_PROMPTS = ("8x", "16x", "lidar", "extreme")
_SETS = ("nyu", "eth3d", "kitti")

TABLE_1 = published_table(
    "metric-anything/table1",
    PAPER,
    "Depth completion and super-resolution without training on the data, AbsRel in %",
    [f"{data}.{prompt}" for data in _SETS for prompt in _PROMPTS],
    """
    DAv2          | 4.77 5.13 4.85 4.77 | 6.27 7.38 7.41 6.51 | 9.54 11.22 8.86 9.25
    DepthPro      | 4.48 4.83 4.47 4.41 | 5.88 6.79 5.31 6.51 | 6.76 9.16 6.05 6.19
    Omni-DC       | 1.57 3.11 2.12 2.63 | 1.86 4.09 1.88 1.98 | 4.05 8.35 5.27 4.17
    Marigold-DC   | 1.83 3.32 1.90 2.13 | 2.33 4.75 2.27 2.03 | 5.17 9.47 6.88 5.62
    DepthLab      | 2.60 3.73 4.30 6.30 | 2.60 4.50 6.40 8.01 | 17.17 22.90 37.17 40.29
    PromptDA      | 1.61 1.75 17.59 16.96 | 1.80 2.56 18.86 18.18 | 3.92 4.95 21.96 21.39
    PriorDA       | 1.73 2.79 2.01 2.01 | 2.06 3.91 1.90 1.61 | 4.54 8.20 4.81 3.76
    LingBot-Depth | 2.23 3.05 2.19 2.03 | 1.18 1.54 13.19 4.12 | 4.24 7.13 6.55 3.26
    Ours-Pretrain | 1.53 1.86 1.70 2.08 | 1.46 2.03 0.87 0.84 | 2.34 3.53 3.53 3.36
    """,
    note="The paper does not state the number of lidar lines; DAv2 and DepthPro are aligned to the prompt afterwards.",
)

TABLE_2 = published_table(
    "metric-anything/table2",
    PAPER,
    "Radar and camera on nuScenes val: MAE and RMSE in mm up to 50, 70 and 80 m",
    "mae_50 rmse_50 mae_70 rmse_70 mae_80 rmse_80",
    """
    Lin                      | 2034.9 4316.5 | 2294.7 5338.2 | 2371.0 5623.0
    RC-PDA                   | 2225.0 4156.5 | 3326.1 6700.6 | 3713.6 7692.8
    R4Dyn                    | - - | - - | - 6434.0
    DORN                     | 1926.6 4124.8 | 2380.6 5252.7 | 2467.7 5554.3
    Singh                    | 1727.7 3746.8 | 2073.2 4590.7 | 2179.3 4898.7
    CaFNet                   | 1674.2 3674.5 | 2010.3 4493.1 | 2109.8 4765.6
    Li                       | 1524.5 3567.3 | 1822.9 4303.6 | 1927.0 4609.6
    TacoDepth (independent)  | 1423.6 3275.8 | 1712.6 3960.5 | 1833.4 4150.2
    RadarCam-Depth (plug-in) | 1286.1 2964.3 | 1587.9 3662.5 | 1689.7 3948.0
    TacoDepth (plug-in)      | 1046.8 2487.5 | 1347.1 3152.8 | 1492.4 3324.8
    Ours from scratch        | 1335.4 2958.8 | 1622.9 3788.1 | 2101.7 4033.2
    Ours finetune            | 651.4 2084.4 | 863.6 2771.6 | 934.5 3057.5
    """,
    note="Which type a row belongs to is ambiguous in our source; the last two rows are the paper's own model.",
)

POINTS = (500, 1000, 2000, 4000, 8000, 16000, 32000, 64000)
TABLE_15_LEFT = published_table(
    "metric-anything/table15_left",
    PAPER,
    "Hypersim test: AbsRel and milliseconds by number of prompt points",
    [*(f"absrel_{n}" for n in POINTS), *(f"ms_{n}" for n in POINTS)],
    """
    Ours-Pretrain | .043 .041 .038 .036 .034 .033 .032 .031 | 224 243 256 266 274 284 299 308
    """,
    note="Our source of this table heads it DIODE, wrongly. The milliseconds include the preparation of the prompt.",
)

TABLE_15_RIGHT = published_table(
    "metric-anything/table15_right",
    PAPER,
    "AbsRel by depth range and the constant C of the distance-balanced loss",
    "near far",
    """
    C = 50  | .441 .635
    C = 100 | .452 .611
    C = 200 | .454 .565
    C = 400 | .456 .562
    C = 600 | .465 .559
    """,
    note="near is 0 to 40 m, far beyond 40 m. Our source does not name the data set; Table 14 suggests DIODE.",
)

SCALING = published_table(
    "metric-anything/scaling",
    PAPER,
    "Data scaling of the teacher: AbsRel in % of 8x super-resolution on KITTI",
    "8x",
    """
    5% of the data   | 5.22
    10% of the data  | 4.25
    20% of the data  | 3.98
    40% of the data  | 3.02
    80% of the data  | 2.63
    100% of the data | 2.34
    """,
    note="The student's scaling is a figure without numbers.",
)

TABLES: tuple[PublishedTable, ...] = (TABLE_1, TABLE_2, TABLE_15_LEFT, TABLE_15_RIGHT, SCALING)
