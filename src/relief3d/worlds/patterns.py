"""Procedural texture pictures: tileable square images with detail at several scales, muted colours.

Each function takes a NumPy generator and a size and returns (size, size, 3) float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from relief3d.worlds.noise import tileable_fbm, tileable_noise

Picture = np.ndarray


def muted_colour(rng: np.random.Generator, low: float = 0.15, high: float = 0.8) -> np.ndarray:
    """A colour of modest saturation, (3,) float32."""
    value = rng.uniform(low, high)
    tint = rng.normal(0, 1, 3)
    tint -= tint.mean()
    strength = rng.beta(1.3, 3.0) * 0.26
    return np.clip(value * (1 + strength * tint), 0.03, 0.92).astype(np.float32)


def vivid_colour(rng: np.random.Generator) -> np.ndarray:
    """A colour of printed matter, (3,) float32."""
    hue, saturation, value = rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.2, 0.85)
    phase = (np.array([0.0, 1 / 3, 2 / 3]) + hue) % 1
    wheel = np.clip(np.abs(phase * 6 - 3) - 1, 0, 1)
    return (value * (1 - saturation * (1 - wheel))).astype(np.float32)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    return at[None, :], at[:, None]


def _mix(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> Picture:
    return (a + (b - a) * np.clip(t, 0, 1)[..., None]).astype(np.float32)


def _grain(rng: np.random.Generator, picture: Picture, amount: float, cells: int = 24) -> Picture:
    size = picture.shape[0]
    noise = tileable_fbm(rng, size, cells, octaves=6, gain=0.75)
    return np.clip(picture * (1 + amount * noise[..., None]), 0.01, 0.97).astype(np.float32)


def paint(rng: np.random.Generator, size: int) -> Picture:
    """A painted wall: nearly flat, with faint roller marks and stains."""
    base = np.ones((size, size, 1), np.float32) * muted_colour(rng, 0.45, 0.85)
    return _grain(rng, base, rng.uniform(0.005, 0.05), int(rng.integers(3, 40)))


def plaster(rng: np.random.Generator, size: int) -> Picture:
    """Rough render or concrete: spots, pores and large stains."""
    base = np.ones((size, size, 1), np.float32) * muted_colour(rng, 0.3, 0.7)
    stains = tileable_fbm(rng, size, 3, octaves=8, gain=0.65)
    pores = np.clip(tileable_fbm(rng, size, size // 8, octaves=3, gain=0.8) - 1.1, 0, 1)
    return np.clip(base * (1 + 0.16 * stains - 0.5 * pores)[..., None], 0.02, 0.95).astype(np.float32)


def wood(rng: np.random.Generator, size: int) -> Picture:
    """Planks with grain, knots and gaps."""
    x, y = _grid(size)
    planks = int(rng.integers(3, 9))
    row = np.floor(y * planks).astype(np.int64)
    shift = rng.random(planks).astype(np.float32)[row]
    boards = int(rng.integers(1, 4))
    column = np.floor((x + shift) * boards).astype(np.int64) % boards
    board = row * boards + column
    tone = rng.normal(0, 1, planks * boards).astype(np.float32)[board]
    grain = tileable_fbm(rng, size, 4, octaves=6, gain=0.7, stretch=14)
    wave = np.sin(6.28 * (9 * tone + 2.2 * tileable_fbm(rng, size, 2, octaves=3, stretch=5)))
    fine = tileable_fbm(rng, size, size // 24, octaves=3, gain=0.9, stretch=6)
    dark = np.array([0.22, 0.13, 0.07], np.float32) * rng.uniform(0.7, 1.6)
    light = np.array([0.62, 0.44, 0.28], np.float32) * rng.uniform(0.7, 1.25)
    picture = _mix(dark, light, 0.5 + 0.2 * grain + 0.13 * wave + 0.12 * fine + 0.13 * tone)
    gap = np.abs((y * planks) % 1 - 0.5) > 0.5 - planks * 1.2 / size
    end = np.abs(((x + shift) * boards) % 1 - 0.5) > 0.5 - boards * 1.2 / size
    picture *= np.where(gap | end, 0.35, 1.0).astype(np.float32)[..., None]
    return np.clip(picture, 0.01, 0.95)


def brick(rng: np.random.Generator, size: int) -> Picture:
    """Bricks or blocks in running bond, each of its own tone, with rough mortar."""
    x, y = _grid(size)
    rows, columns = int(rng.integers(4, 9)) * 2, int(rng.integers(3, 6))
    warp = 0.0025 * tileable_fbm(rng, size, 24, octaves=2)
    ys, xs = (y + warp) * rows, x + 0.0025 * tileable_fbm(rng, size, 24, octaves=2)
    row = np.floor(ys).astype(np.int64) % rows
    xs = xs * columns + 0.5 * (row % 2)
    column = np.floor(xs).astype(np.int64) % columns
    tone = rng.normal(0, 1, rows * columns).astype(np.float32)[row * columns + column]
    hue = rng.normal(0, 1, rows * columns).astype(np.float32)[row * columns + column]
    fx, fy = np.abs(xs % 1 - 0.5), np.abs(ys % 1 - 0.5)
    joint = np.maximum((fx - 0.5) * (rows / columns) * 0.9 + 0.5, fy) > 0.5 - rng.uniform(0.04, 0.09)
    reds = np.array([[0.48, 0.26, 0.19], [0.6, 0.55, 0.48], [0.4, 0.38, 0.37], [0.55, 0.42, 0.3]], np.float32)
    base = reds[rng.integers(len(reds))] * rng.uniform(0.75, 1.2)
    stone = base * (1 + 0.17 * tone[..., None] + 0.06 * hue[..., None] * np.array([1, 0, -1], np.float32))
    mortar = np.ones(3, np.float32) * rng.uniform(0.35, 0.65)
    picture = np.where(joint[..., None], mortar, stone).astype(np.float32)
    return _grain(rng, _grain(rng, picture, 0.11, 40), 0.07, 5)


def tiles(rng: np.random.Generator, size: int) -> Picture:
    """Floor or wall tiles with slightly different tones, or a checkerboard."""
    x, y = _grid(size)
    count = int(rng.integers(2, 5)) * 2
    column, row = np.floor(x * count).astype(np.int64), np.floor(y * count).astype(np.int64)
    a, b = muted_colour(rng, 0.35, 0.85), muted_colour(rng, 0.2, 0.8)
    check = ((row + column) % 2).astype(np.float32) * rng.choice([0.0, 1.0])
    tone = rng.normal(0, 0.06, (count, count)).astype(np.float32)[row, column]
    picture = _mix(a, b, check) * (1 + tone)[..., None]
    grout = np.maximum(np.abs((x * count) % 1 - 0.5), np.abs((y * count) % 1 - 0.5)) > 0.485
    picture = np.where(grout[..., None], rng.uniform(0.25, 0.7), picture).astype(np.float32)
    veins = np.abs(tileable_fbm(rng, size, 4, octaves=6, gain=0.6))
    picture *= (1 - 0.22 * np.exp(-veins * 9))[..., None]
    return _grain(rng, picture, 0.05, 30)


def stripes(rng: np.random.Generator, size: int) -> Picture:
    """Woven stripes of several widths."""
    _, y = _grid(size)
    count = int(rng.integers(6, 22))
    edges = np.sort(rng.random(count)).astype(np.float32)
    colours = np.stack([muted_colour(rng) for _ in range(int(rng.integers(2, 5)))])
    index = np.searchsorted(edges, y[:, 0]) % count
    picture = colours[rng.integers(0, len(colours), count)[index]][:, None].repeat(size, 1)
    return _weave(rng, picture)


def _weave(rng: np.random.Generator, picture: Picture) -> Picture:
    size = picture.shape[0]
    x, y = _grid(size)
    threads = size // 6
    weave = np.sin(6.2832 * threads * x) * np.sin(6.2832 * threads * y)
    picture = picture * (1 + 0.09 * weave[..., None])
    return _grain(rng, picture, 0.08, 30)


def carpet(rng: np.random.Generator, size: int) -> Picture:
    """A rug: mirrored ornaments with a border over woven noise."""
    ground, figure, accent = muted_colour(rng, 0.15, 0.5), vivid_colour(rng), muted_colour(rng, 0.4, 0.85)
    field = tileable_fbm(rng, size, int(rng.integers(4, 9)), octaves=3)
    detail = tileable_fbm(rng, size, int(rng.integers(12, 24)), octaves=3)
    half = field + 0.6 * detail
    x, y = _grid(size)
    # Nearly mirrored, as rugs are, but with an asymmetric part so that no place looks like another.
    ornament = half + 0.75 * half[:, ::-1]
    picture = _mix(ground, figure, (ornament > 0.35).astype(np.float32))
    picture = _mix(picture, accent, (np.abs(ornament - 0.1) < 0.13).astype(np.float32))
    border = np.maximum(np.abs(x - 0.5), np.abs(y - 0.5))
    frame = (border > 0.44) & (np.abs(tileable_fbm(rng, size, 20, octaves=2)) > 0.5)
    picture = np.where(frame[..., None], accent, picture)
    picture = np.where(((border > 0.425) & (border < 0.44))[..., None], figure * 0.6, picture)
    return _weave(rng, picture.astype(np.float32))


def _discs_and_boxes(rng: np.random.Generator, picture: Picture, count: int, largest: float) -> None:
    size = picture.shape[0]
    for _ in range(count):
        reach = largest * rng.random() ** 2 + 0.01
        cx, cy = rng.random(2)
        w, h = reach * rng.uniform(0.3, 1, 2)
        x0, x1 = sorted((int(np.clip(cx - w, 0, 1) * size), int(np.clip(cx + w, 0, 1) * size)))
        y0, y1 = sorted((int(np.clip(cy - h, 0, 1) * size), int(np.clip(cy + h, 0, 1) * size)))
        if x1 - x0 < 2 or y1 - y0 < 2:
            continue
        block = picture[y0:y1, x0:x1]
        colour = vivid_colour(rng)
        if rng.random() < 0.5:
            block[:] = colour
            continue
        v, u = np.ogrid[-1 : 1 : (y1 - y0) * 1j, -1 : 1 : (x1 - x0) * 1j]
        block[(u * u + v * v) < 1] = colour


def _text_lines(
    rng: np.random.Generator, picture: Picture, top: int, bottom: int, left: int, right: int
) -> None:
    """Rows of glyph-like marks: each glyph a random 5x4 cell pattern."""
    line = max(6, int(rng.uniform(0.018, 0.07) * picture.shape[0]))
    ink = vivid_colour(rng) * 0.35
    cell = max(1, line // 7)
    for y in range(top, bottom - line, int(line * 1.5)):
        x = left
        stop = right - int(rng.random() ** 3 * (right - left))
        while x + 5 * cell < stop:
            if rng.random() < 0.16:
                x += 4 * cell
                continue
            glyph = rng.random((5, 4)) < 0.55
            glyph = np.kron(glyph, np.ones((cell, cell), bool))
            block = picture[y : y + glyph.shape[0], x : x + glyph.shape[1]]
            block[glyph[: block.shape[0], : block.shape[1]]] = ink
            x += 5 * cell


def poster(rng: np.random.Generator, size: int) -> Picture:
    """Printed matter: flat shapes, a photograph-like patch and lines of text-like marks."""
    picture = np.ones((size, size, 3), np.float32) * muted_colour(rng, 0.5, 0.9)
    _discs_and_boxes(rng, picture, int(rng.integers(10, 40)), 0.3)
    half = size // 2
    y, x = int(rng.integers(0, half)), int(rng.integers(0, half))
    photo = _mix(
        vivid_colour(rng), vivid_colour(rng), 0.5 + 0.4 * tileable_fbm(rng, half, 3, octaves=7, gain=0.7)
    )
    photo = _mix(
        photo, vivid_colour(rng), (tileable_fbm(rng, half, 4, octaves=6, gain=0.6) > 0.7).astype(np.float32)
    )
    picture[y : y + half, x : x + half] = photo
    for _ in range(int(rng.integers(2, 5))):
        top, left = int(rng.uniform(0, 0.8) * size), int(rng.uniform(0.02, 0.6) * size)
        bottom = min(size, top + int(rng.uniform(0.1, 0.4) * size))
        right = min(size, left + int(rng.uniform(0.2, 0.6) * size))
        if rng.random() < 0.6:
            picture[top:bottom, left:right] = muted_colour(rng, 0.6, 0.92)
        _text_lines(rng, picture, top + 3, bottom, left + 3, right)
    return _grain(rng, picture, 0.035, 8)


def text(rng: np.random.Generator, size: int) -> Picture:
    """A printed page."""
    picture = np.ones((size, size, 3), np.float32) * muted_colour(rng, 0.65, 0.92)
    half = size // 2
    for left, right in ((size // 24, half - size // 30), (half + size // 30, size - size // 24)):
        _text_lines(rng, picture, size // 20, size - size // 20, left, right)
    return _grain(rng, picture, 0.04, 6)


def book_spines(rng: np.random.Generator, size: int) -> Picture:
    """A row of book backs."""
    picture = np.zeros((size, size, 3), np.float32)
    x = 0
    while x < size:
        width = max(6, int(rng.uniform(0.025, 0.075) * size))
        top = int(size * rng.uniform(0, 0.25))
        picture[:, x : x + width] = 0.05
        block = picture[top:, x : x + width - 1]
        block[:] = vivid_colour(rng) * rng.uniform(0.5, 1)
        for _ in range(int(rng.integers(1, 5))):
            a = int(rng.uniform(0, 0.9) * block.shape[0])
            block[a : a + int(rng.uniform(0.01, 0.12) * size)] = vivid_colour(rng)
        _text_lines(rng, block, block.shape[0] // 5, block.shape[0] - 4, 1, max(2, block.shape[1] - 1))
        x += width
    return _grain(rng, picture, 0.06, 10)


def stone(rng: np.random.Generator, size: int) -> Picture:
    """Cells of a Voronoi diagram: cobbles, flagstones, crackle."""
    count = int(rng.integers(25, 140))
    cells = int(np.sqrt(count)) + 1
    at = np.stack(np.meshgrid(np.arange(cells), np.arange(cells)), -1).reshape(-1, 2)
    points = ((at + rng.random(at.shape)) / cells).astype(np.float32)
    x, y = _grid(size)
    first = np.full((size, size), 9.0, np.float32)
    second, label = first.copy(), np.zeros((size, size), np.int64)
    for i, (px, py) in enumerate(points):
        dx, dy = np.abs(x - px), np.abs(y - py)
        d = np.minimum(dx, 1 - dx) ** 2 + np.minimum(dy, 1 - dy) ** 2
        nearer = d < first
        second = np.where(nearer, first, np.minimum(second, d))
        label[nearer] = i
        first = np.minimum(first, d)
    gap = np.sqrt(second) - np.sqrt(first)
    tone = rng.normal(0, 1, len(points)).astype(np.float32)[label]
    base = muted_colour(rng, 0.25, 0.6)
    picture = base * (1 + 0.18 * tone + 0.14 * tileable_fbm(rng, size, 12, octaves=6, gain=0.7))[..., None]
    edge = np.clip(gap * cells * 7, 0, 1)[..., None]
    return np.clip(picture * (0.35 + 0.65 * edge), 0.02, 0.95).astype(np.float32)


def marble(rng: np.random.Generator, size: int) -> Picture:
    """Veined stone or worktop."""
    a, b = muted_colour(rng, 0.5, 0.85), muted_colour(rng, 0.15, 0.5)
    veins = np.abs(tileable_fbm(rng, size, 3, octaves=8, gain=0.6))
    clouds = tileable_fbm(rng, size, 4, octaves=7, gain=0.6)
    return _grain(rng, _mix(a, b, 0.8 * np.exp(-veins * 5) + 0.15 * clouds), 0.04, 50)


def grass(rng: np.random.Generator, size: int) -> Picture:
    """Grass, soil, leaves: speckle at all scales in earth colours."""
    greens = np.array([[0.2, 0.26, 0.1], [0.34, 0.27, 0.17], [0.42, 0.38, 0.3], [0.16, 0.2, 0.1]], np.float32)
    a, b = greens[rng.integers(4)] * rng.uniform(0.8, 1.3), greens[rng.integers(4)] * rng.uniform(0.9, 1.9)
    fine = tileable_fbm(rng, size, size // 10, octaves=4, gain=0.85)
    large = tileable_fbm(rng, size, 3, octaves=7, gain=0.7)
    return _grain(rng, _mix(a, b, 0.45 + 0.25 * fine + 0.25 * large), 0.12, size // 6)


def asphalt(rng: np.random.Generator, size: int) -> Picture:
    """Road surface: grey speckle, cracks and patches."""
    base = np.ones((size, size, 1), np.float32) * np.float32(rng.uniform(0.25, 0.42))
    speckle = tileable_noise(rng, size, size // 2) - 0.5
    cracks = np.exp(-np.abs(tileable_fbm(rng, size, 4, octaves=7, gain=0.6)) * 45)
    patches = (tileable_fbm(rng, size, 3, octaves=3) > 1.0) * -0.1
    shade = (
        1 + 0.5 * speckle + 0.06 * tileable_fbm(rng, size, 6, octaves=7, gain=0.7) + patches - 0.45 * cracks
    )
    return np.clip(base * shade[..., None] * np.array([1.0, 0.98, 0.95]), 0.02, 0.9).astype(np.float32)


def facade(rng: np.random.Generator, size: int) -> Picture:
    """Storeys of windows in a plastered wall, each window a little different."""
    picture = plaster(rng, size)
    rows, columns = int(rng.integers(2, 5)), int(rng.integers(3, 6))
    frame_colour = muted_colour(rng, 0.4, 0.9)
    for r in range(rows):
        for c in range(columns):
            y0, y1 = int((r + 0.2) / rows * size), int((r + 0.2 + rng.uniform(0.5, 0.6)) / rows * size)
            x0, x1 = int((c + 0.22) / columns * size), int((c + 0.78) / columns * size)
            picture[y0:y1, x0:x1] = frame_colour
            edge = max(1, size // 160)
            glass = picture[y0 + edge : y1 - edge, x0 + edge : x1 - edge]
            shade = np.linspace(
                rng.uniform(0.05, 0.4), rng.uniform(0.05, 0.2), glass.shape[0], dtype=np.float32
            )
            glass[:] = shade[:, None, None] * np.array([0.85, 0.95, 1.05], np.float32)
            if rng.random() < 0.5:
                glass[: int(glass.shape[0] * rng.uniform(0.2, 0.8))] = muted_colour(rng, 0.5, 0.9)
            middle = (x0 + x1) // 2
            picture[y0:y1, middle - edge : middle + edge] = frame_colour
            picture[y1 : y1 + 2 * edge, x0 - edge : x1 + edge] *= 0.6
    return _grain(rng, picture, 0.04, 16)


def metal(rng: np.random.Generator, size: int) -> Picture:
    """Brushed metal or worn lacquer with scratches."""
    base = np.ones((size, size, 1), np.float32) * muted_colour(rng, 0.2, 0.65)
    brushed = tileable_fbm(rng, size, 4, octaves=6, gain=0.8, stretch=20)
    rust = np.clip(tileable_fbm(rng, size, 4, octaves=7, gain=0.65) - rng.uniform(0.8, 2), 0, 1)
    picture = base * (1 + 0.07 * brushed)[..., None]
    return np.clip(_mix(picture, np.array([0.35, 0.2, 0.12], np.float32), rust), 0.02, 0.95)


PATTERNS: dict[str, Callable[[np.random.Generator, int], Picture]] = {
    "paint": paint,
    "plaster": plaster,
    "wood": wood,
    "brick": brick,
    "tiles": tiles,
    "stripes": stripes,
    "carpet": carpet,
    "poster": poster,
    "text": text,
    "books": book_spines,
    "stone": stone,
    "marble": marble,
    "grass": grass,
    "asphalt": asphalt,
    "facade": facade,
    "metal": metal,
}
"""Every pattern by name."""
