"""MetricAnything (arXiv 2601.22054): language-and-vision questions, robot manipulation, run time."""

from relief3d.eval.published.table import PublishedTable, published_table

PAPER = "MetricAnything"

TABLE_10 = published_table(
    "metric-anything/table10",
    PAPER,
    "LIBERO: success rate in %",
    "spatial object goal long avg",
    """
    TraceVLA      | 84.6 85.2 75.1 54.1 74.8
    Octo          | 78.9 85.7 84.6 51.1 75.1
    OpenVLA       | 84.7 88.4 79.2 53.7 76.5
    SpatialVLA    | 88.2 89.9 78.6 55.5 78.1
    CoT-VLA       | 87.5 91.6 87.6 69.0 83.9
    NORA-AC       | 85.6 89.4 80.0 63.0 79.5
    WorldVLA      | 87.6 96.2 83.4 60.0 79.1
    pi0-FAST      | 96.4 96.8 88.6 60.2 85.5
    ThinkAct      | 88.3 91.4 87.1 70.9 84.4
    Baseline-DAV2 | 87.0 95.4 87.6 77.2 86.6
    Ours          | 88.6 94.4 88.8 78.8 87.7
    """,
    note="Some averages differ from the mean of their four columns by more than rounding; they are kept as printed.",
)

TABLE_11 = published_table(
    "metric-anything/table11",
    PAPER,
    "VSI-Bench: mean relative accuracy of numbers and accuracy of choices, in %",
    "obj_cnt abs_dist obj_size room_size rel_dist rel_dir route appr_order avg rank",
    """
    Ours                | 70.0 51.5 67.5 65.0 66.2 76.8 40.2 29.0 58.3 1
    Spatial-MLLM-4B     | 65.3 34.8 63.1 45.1 41.3 46.2 33.5 46.3 48.4 2
    Gemini-1.5 Pro      | 56.2 30.9 64.1 43.6 51.3 46.3 36.0 34.6 45.4 3
    LLaVA-Video-72B     | 48.9 22.8 57.4 35.3 42.4 36.7 35.0 48.6 40.9 4
    LLaVA-OneVision-72B | 43.5 23.9 57.6 37.5 42.5 39.9 32.5 44.6 40.2 5
    Qwen2.5VL-72B       | 25.1 29.3 54.5 38.8 38.2 37.0 34.0 28.9 37.0 6
    GPT-4o              | 46.2 5.3 43.8 38.2 37.0 41.3 31.5 28.5 34.0 8
    Qwen2.5VL-7B        | 40.9 14.8 43.4 10.7 38.6 38.5 33.0 29.8 33.0 9
    InternVL2-40B       | 34.9 26.9 46.5 31.8 42.1 32.2 34.0 39.6 36.0 7
    LongVILA-8B         | 29.1 9.1 16.7 0.0 29.6 30.7 32.5 25.5 21.6 13
    VILA-1.5-40B        | 22.4 24.8 48.7 22.7 40.5 25.7 31.5 32.9 31.2 10
    LongVA-7B           | 38.0 16.6 38.9 22.2 33.1 43.3 25.4 15.7 29.2 12
    Qwen2.5VL-3B        | 24.3 24.7 31.7 22.6 38.3 41.6 26.3 21.2 30.6 11
    """,
    note="The averages of Spatial-MLLM-4B and of the Qwen2.5VL rows exceed the mean of their columns; kept as printed.",
)

TABLE_13 = published_table(
    "metric-anything/table13",
    PAPER,
    "Size and run time, batch 1: parameters in millions, native input side, GFLOPs at HD, milliseconds on an H200",
    "params native gflops_hd gpu_vga gpu_hd gpu_4k",
    """
    DepthPro         | 952 1536 8848.5 | 246.0 246.0 246.0
    Pretrain         | 993 1536 19992.6 | 285.2 285.2 285.3
    Student-PointMap | 326 840 4015.7 | 29.4 369.8 5043.9
    Student-DepthMap | 877 1536 21516.4 | 278.8 278.5 278.8
    """,
    note="Printed as FP32, but the times need TF32 matrix products. GFLOPs count multiply-adds without the products of "
    "attention; Depth Pro's count leaves out its field-of-view branch, its parameters do not.",
)

TABLES: tuple[PublishedTable, ...] = (TABLE_10, TABLE_11, TABLE_13)
