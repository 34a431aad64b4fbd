"""MetricAnything (arXiv 2601.22054), tables 7 and 8: field of view and boundary sharpness."""

from relief3d.eval.published.table import PublishedTable, published_table

PAPER = "MetricAnything"

TABLE_7 = published_table(
    "metric-anything/table7",
    PAPER,
    "Error of the horizontal field of view in degrees: mean and median over pictures, and the average rank",
    "eth3d.mean eth3d.median ibims.mean ibims.median average.mean average.median rank",
    """
    Perspective      | 13.6 11.9 | 10.6 9.30 | 12.1 10.6 7.25
    WildCam          | 7.70 5.81 | 9.48 9.08 | 8.59 7.45 5.00
    DepthPro         | 7.18 6.34 | 4.12 2.58 | 5.65 4.46 3.50
    LeReS            | 8.26 7.19 | 18.4 17.5 | 13.33 12.35 7.00
    DUSt3R           | 5.77 3.60 | 3.83 2.53 | 4.80 3.07 2.25
    UniDepth         | 10.7 9.96 | 11.9 5.96 | 11.3 7.96 6.25
    MoGe-2           | 4.66 3.04 | 8.17 6.77 | 6.42 4.91 3.25
    Student-PointMap | 2.50 1.86 | 3.74 3.24 | 3.12 2.55 1.50
    """,
    note="The paper does not say whether pictures were cropped, nor which of its two focal solvers was used.",
)

TABLE_8 = published_table(
    "metric-anything/table8",
    PAPER,
    "Boundary F1 (Depth Pro's, without thinning), and the average rank",
    "sintel.f1 spring.f1 ibims.f1 rank",
    """
    DepthAnything    | .261 .0109 .127 7.33
    DAV2             | .228 .0610 .111 8.00
    Marigold         | .068 - .149 7.50
    DPT              | .181 - .113 9.00
    Metric3D         | .037 - .055 11.50
    Metric3Dv2       | .321 .0723 .096 6.33
    ZoeDepth         | .027 .0043 .035 11.33
    PatchFusion      | .312 - .134 6.00
    UniDepth         | .316 .0017 .039 8.67
    DepthPro         | .409 .1100 .176 2.00
    UniDepthv2       | .344 .0737 .138 4.00
    MoGe-2           | .282 .0890 .194 3.67
    Student-DepthMap | .382 .1635 .179 1.67
    """,
    note="Depth Pro's own paper gives .079 for itself on Spring, so the protocol on Spring differs in some way.",
)

TABLES: tuple[PublishedTable, ...] = (TABLE_7, TABLE_8)
