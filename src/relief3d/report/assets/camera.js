const FIELD = 50 * Math.PI / 180;  // vertical field of view while orbiting

/** Where the eye is. It has a goal (an orbit, or exactly one of the cameras) and glides towards it. */
class Navigator {
  constructor(up, radius) {
    this.radius = radius;
    this.orbit = { target: [0, 0, 0], yaw: 0, pitch: 0.5, distance: 2.6 * radius };
    this.fixed = null;  // { eye, quat, fov } while looking through a camera
    this.shown = null;
    this.tau = 0.07;
    this.setUp(up);
  }

  setUp(up) {
    this.up = unit(up);
    const helper = Math.abs(this.up[0]) < 0.8 ? [1, 0, 0] : [0, 0, 1];
    this.right = unit(cross(helper, this.up));
    this.forward = cross(this.up, this.right);
  }

  /** Yaw and pitch of a direction from the target to the eye. */
  anglesOf(direction) {
    const d = unit(direction);
    return { yaw: Math.atan2(dot(d, this.forward), dot(d, this.right)), pitch: Math.asin(clamp(dot(d, this.up), -1, 1)) };
  }

  goal() {
    if (this.fixed) return this.fixed;
    const { target, yaw, pitch, distance } = this.orbit;
    const flat = add(scale(this.right, Math.cos(yaw)), scale(this.forward, Math.sin(yaw)));
    const back = add(scale(flat, Math.cos(pitch)), scale(this.up, Math.sin(pitch)));
    const side = unit(cross(this.up, flat));
    return { eye: along(target, back, distance), quat: quatFromAxes(side, cross(back, side), back), fov: FIELD };
  }

  /** Move what is shown towards the goal; true while still moving. */
  step(seconds) {
    const goal = this.goal();
    if (!this.shown) { this.shown = goal; return true; }
    const t = 1 - Math.exp(-Math.min(seconds, 0.5) / this.tau), s = this.shown;
    const rest = norm(sub(goal.eye, s.eye)) / this.radius + quatAngle(goal.quat, s.quat) + Math.abs(goal.fov - s.fov);
    if (rest < 2e-4) { this.shown = goal; this.tau = 0.07; return rest > 0; }
    this.shown = { eye: mix(s.eye, goal.eye, t), quat: quatMix(s.quat, goal.quat, t), fov: s.fov + (goal.fov - s.fov) * t };
    return true;
  }

  get settled() {
    const goal = this.goal(), s = this.shown;
    return Boolean(s) && norm(sub(goal.eye, s.eye)) / this.radius + quatAngle(goal.quat, s.quat) < 0.02;
  }

  /** Leave a camera: orbit about the point `distance` in front of it. */
  release(distance) {
    if (!this.fixed) return;
    const back = axesFromQuat(this.fixed.quat)[2];
    this.orbit = { target: along(this.fixed.eye, back, -distance), distance, ...this.anglesOf(back) };
    this.fixed = null;
    this.tau = 0.12;
  }

  lookFrom(eye, quat, fov) {
    this.fixed = { eye, quat, fov };
    this.tau = 0.16;
  }

  turn(dx, dy) {
    this.orbit.yaw -= dx;
    this.orbit.pitch = clamp(this.orbit.pitch + dy, -1.55, 1.55);
  }

  pan(dx, dy, height) {
    const [x, y] = axesFromQuat(this.shown.quat), unitsPerPixel = 2 * Math.tan(FIELD / 2) * this.orbit.distance / height;
    this.orbit.target = along(along(this.orbit.target, x, -dx * unitsPerPixel), y, dy * unitsPerPixel);
  }

  zoom(factor) {
    const nearest = 0.004 * this.radius;
    this.orbit.distance = clamp(this.orbit.distance * factor, nearest, 12 * this.radius);
  }

  focus(point) {
    this.orbit.target = point;
    this.tau = 0.12;
  }
}

/** Mouse, touch, pen and keys. `on` gets: orbit(), click(x, y), double(x, y), hover(x, y), changed(), key(name). */
function attachControls(canvas, navigator, on) {
  const fingers = new Map();
  let moved = 0, lastTap = { time: 0, x: 0, y: 0 };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const spread = () => {
    const [a, b] = [...fingers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, size: Math.hypot(a.x - b.x, a.y - b.y) };
  };
  canvas.addEventListener("pointerdown", (event) => {
    const [x, y] = place(event);
    if (fingers.size === 0) moved = 0;
    fingers.set(event.pointerId, { x, y, pan: event.button !== 0 || event.shiftKey || event.ctrlKey || event.metaKey });
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = place(event), finger = fingers.get(event.pointerId);
    if (!finger) { on.hover(x, y); return; }
    const before = fingers.size === 2 ? spread() : null, dx = x - finger.x, dy = y - finger.y;
    moved += Math.abs(dx) + Math.abs(dy);
    finger.x = x; finger.y = y;
    if (moved < 4) return;
    on.orbit();
    if (before) {
      const after = spread();
      navigator.pan(after.x - before.x, after.y - before.y, canvas.clientHeight);
      if (after.size > 10 && before.size > 10) navigator.zoom(before.size / after.size);
    } else if (finger.pan) navigator.pan(dx, dy, canvas.clientHeight);
    else navigator.turn(dx * 0.006, dy * 0.006);
    on.changed();
  });
  const lift = (event) => {
    const finger = fingers.get(event.pointerId);
    if (!finger) return;
    fingers.delete(event.pointerId);
    if (event.type !== "pointerup" || moved >= 4 || fingers.size) return;
    const again = event.timeStamp - lastTap.time < 350 && Math.hypot(finger.x - lastTap.x, finger.y - lastTap.y) < 12;
    lastTap = { time: again ? 0 : event.timeStamp, x: finger.x, y: finger.y };
    if (again) on.double(finger.x, finger.y); else on.click(finger.x, finger.y);
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => on.hover(-1, -1));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    on.orbit();
    navigator.zoom(Math.exp(clamp(event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0015), -0.4, 0.4)));
    on.changed();
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const turns = { ArrowLeft: [-0.08, 0], ArrowRight: [0.08, 0], ArrowUp: [0, -0.08], ArrowDown: [0, 0.08] }[event.key];
    if (turns) { on.orbit(); navigator.turn(...turns); }
    else if (event.key === "+" || event.key === "=") { on.orbit(); navigator.zoom(0.9); }
    else if (event.key === "-") { on.orbit(); navigator.zoom(1.1); }
    else if (!on.key(event.key)) return;
    event.preventDefault();
    on.changed();
  });
}
