"""Level 3: the data contract as networks see it (stacked batches), samplers and augmentation."""

from relief3d.core.contract import Batch, Camera, Depth, Prediction, Scene, SparseDepth, View
from relief3d.data.batching import batch_from_scene, collate

__all__ = [
    "Batch",
    "Camera",
    "Depth",
    "Prediction",
    "Scene",
    "SparseDepth",
    "View",
    "batch_from_scene",
    "collate",
]
