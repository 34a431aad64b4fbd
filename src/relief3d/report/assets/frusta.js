/** The cameras as the page draws them: centre, axes, image corners. Positions relative to the scene's centre. */
function prepareCameras(header, centre) {
  return header.cameras.map((c, order) => {
    const p = c.pose, [fx, fy, cx, cy] = c.K;
    const x = [p[0], p[4], p[8]], y = [p[1], p[5], p[9]], z = [p[2], p[6], p[10]];  // right, down, forward
    const eye = sub([p[3], p[7], p[11]], centre);
    const ray = (u, v) => add(add(scale(x, (u - cx) / fx), scale(y, (v - cy) / fy)), z);
    return {
      ...c, order, eye, z,
      quat: quatFromAxes(x, scale(y, -1), scale(z, -1)),
      rays: [ray(0, 0), ray(c.w, 0), ray(0, c.h), ray(c.w, c.h)],
      fovX: 2 * Math.atan(Math.max(cx, c.w - cx) / fx), fovY: 2 * Math.atan(Math.max(cy, c.h - cy) / fy),
      image: document.getElementById(`picture-${c.view}`),
    };
  });
}

/** Typical length for drawing cameras: small beside the scene, and beside the gaps between cameras. */
function frustumLength(cameras, radius) {
  const gaps = cameras.map((a) => Math.min(Infinity, ...cameras.filter((b) => b !== a).map((b) => norm(sub(a.eye, b.eye)))));
  gaps.sort((a, b) => a - b);
  const gap = gaps.length > 1 ? gaps[Math.floor(gaps.length / 2)] : Infinity;
  return clamp(0.55 * gap, 0.015 * radius, 0.09 * radius);
}

const cornersOf = (camera, length) => camera.rays.map((ray) => along(camera.eye, ray, length));

/** Line rows of one frustum with a tick that marks the top of the picture. */
function frustumRows(camera, length, colour) {
  const [a, b, c, d] = cornersOf(camera, length), e = camera.eye, rows = [];
  for (const [p, q] of [[e, a], [e, b], [e, c], [e, d], [a, b], [b, d], [d, c], [c, a]]) rows.push([...p, ...q, ...colour]);
  const roof = along(mix(a, b, 0.5), sub(a, c), 0.16);
  rows.push([...mix(a, b, 0.36), ...roof, ...colour], [...roof, ...mix(a, b, 0.64), ...colour]);
  return rows;
}
