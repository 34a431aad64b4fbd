"""A world that tests know by formula: one tilted plane, one landmark, cameras as plain numpy matrices.

Nothing here imports the package: files are made from these numbers in each data set's own convention, and what a
reader returns is compared with them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

W, H = 48, 36
NORMAL = np.array([0.25, -0.3, 1.0]) / np.linalg.norm([0.25, -0.3, 1.0])
OFFSET = 5.0  # the plane NORMAL . X = OFFSET
RED, GREY = (255, 0, 0), (90, 90, 90)


def turned(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """A rotation from three angles about y, x and z."""
    (cy, sy), (cp, sp), (cr, sr) = ((np.cos(a), np.sin(a)) for a in (yaw, pitch, roll))
    Ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    Rx = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    Rz = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return Ry @ Rx @ Rz


def camera(i: int) -> np.ndarray:
    """World from camera (4, 4), x right, y down, z forward; the i-th looks at the plane from its own place."""
    T = np.eye(4)
    T[:3, :3] = turned(0.15 * i - 0.1, 0.1 - 0.05 * i, 0.3 * i + 0.2)
    T[:3, 3] = [0.4 * i - 0.2, 0.1 * i, -0.3 + 0.2 * i]
    return T


def K_of(f: float = 40.0, cx: float = 23.0, cy: float = 17.0) -> np.ndarray:
    return np.array([[f, 0, cx], [0, f * 1.1, cy], [0, 0, 1.0]])


def rays(K: np.ndarray, centre: float, width: int = W, height: int = H) -> np.ndarray:
    """(H, W, 3) directions with z = 1 of pixels whose first centre is at (centre, centre)."""
    u, v = np.meshgrid(np.arange(width) + centre, np.arange(height) + centre)
    return np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T


def plane_z(
    K: np.ndarray,
    T: np.ndarray,
    centre: float,
    width: int = W,
    height: int = H,
    normal: np.ndarray = NORMAL,
    offset: float = OFFSET,
) -> np.ndarray:
    """(H, W) z-depth of the plane."""
    slope = rays(K, centre, width, height) @ T[:3, :3].T @ normal
    return (offset - normal @ T[:3, 3]) / slope


def landmark(T: np.ndarray) -> np.ndarray:
    """A world point 4 in front of the first camera, off its axis."""
    return T[:3, :3] @ np.array([0.613, -0.517, 4.0]) + T[:3, 3]


def marked_picture(
    K: np.ndarray, T: np.ndarray, centre: float, X: np.ndarray, width: int = W, height: int = H
) -> Image.Image:
    """Grey with the one pixel red in which the world point X falls."""
    x = np.linalg.inv(T) @ np.append(X, 1.0)
    u, v, w = K @ x[:3]
    column, row = int(np.floor(u / w - centre + 0.5)), int(np.floor(v / w - centre + 0.5))
    assert x[2] > 0 and 0 <= column < width and 0 <= row < height
    pixels = np.full((height, width, 3), GREY, np.uint8)
    pixels[row, column] = RED
    return Image.fromarray(pixels)


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 98, "subsampling": 0} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    picture.save(path, **options)


def save16(values: np.ndarray, path: Path) -> None:
    """A 16-bit grey PNG of rounded values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(values).astype(np.uint16)).save(path)


def save_json(value: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def save_text(text: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def save_pfm(values: np.ndarray, path: Path) -> None:
    """Portable float map: rows from the bottom, little endian."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"Pf\n{values.shape[1]} {values.shape[0]}\n-1.0\n".encode()
    path.write_bytes(head + values[::-1].astype("<f4").tobytes())


def quat_wxyz(R: np.ndarray) -> np.ndarray:
    """Unit quaternion as the eigenvector of the largest eigenvalue (Bar-Itzhack)."""
    (a, b, c), (d, e, f), (g, h, i) = R
    N = np.array(
        [[a - e - i, d + b, g + c, h - f], [d + b, e - a - i, h + f, c - g],
         [g + c, h + f, i - a - e, d - b], [h - f, c - g, d - b, a + e + i]]
    )  # fmt: skip
    x, y, z, w = np.linalg.eigh(N)[1][:, -1]
    return np.array([w, x, y, z])


def check_plane(
    view, tolerance: float, normal: np.ndarray = NORMAL, offset: float = OFFSET, share: float = 0.9
) -> None:
    """Every known pixel of the view, put into the world by its K, pose and depth, lies on the plane."""
    depth, camera = view.load_depth(), view.camera
    K, T = camera.K.numpy(), camera.world_from_cam.numpy()
    z, known = depth.values.numpy().astype(np.float64), depth.valid.numpy()
    assert z.shape == (camera.height, camera.width) and known.mean() >= share
    X = rays(K, 0.5, camera.width, camera.height) * z[..., None] @ T[:3, :3].T + T[:3, 3]
    error = np.abs(X @ normal - offset)[known]
    assert error.max() < tolerance, error.max()


def check_landmark(view, X: np.ndarray) -> None:
    """The red pixel of the view's picture is where K and pose put the world point X."""
    K, T = view.camera.K.numpy(), view.camera.world_from_cam.numpy()
    x = np.linalg.inv(T) @ np.append(X, 1.0)
    u, v, w = K @ x[:3]
    image = view.load_image().numpy()
    assert image.shape == (3, view.camera.height, view.camera.width)
    row, column = np.unravel_index((image[0] - image[1]).argmax(), image.shape[1:])
    assert image[0, row, column] > 0.8 and image[1, row, column] < 0.3
    assert (row, column) == (int(np.floor(v / w)), int(np.floor(u / w)))
