const UP_CHOICES = { "+x": [1, 0, 0], "-x": [-1, 0, 0], "+y": [0, 1, 0], "-y": [0, -1, 0], "+z": [0, 0, 1], "-z": [0, 0, -1] };

/** The interactive view: owns the painter and the navigator, listens to the panel, draws only when something changed. */
class Explorer {
  constructor(root, header) {
    this.root = root;
    this.header = header;
    this.canvas = root.querySelector("canvas");
    const { low, high } = header.bounds;
    this.centre = mix(low, high, 0.5);
    this.radius = Math.max(norm(sub(high, low)) / 2, 1e-9);
    this.painter = new Painter(this.canvas, { low: sub(low, this.centre), size: sub(high, low), data: header.data });
    this.cameras = prepareCameras(header, this.centre);
    this.length = frustumLength(this.cameras, this.radius);
    this.navigator = new Navigator(header.up, this.radius);
    this.show = { mesh: true, points: !this.painter.mesh, sparse: !this.painter.mesh && !this.painter.clouds.points, cameras: true, pictures: false, path: header.ordered, grid: true, back: false };
    this.shading = this.painter.mesh && !this.painter.mesh.coloured ? 1 : 0;
    this.confidence = 0; this.pointSize = 1; this.frustumScale = 1; this.opacity = 0.65;
    this.chosen = null; this.hovered = null; this.measuring = false; this.marks = []; this.markLine = null;
    this.floor = this.findFloor();
    this.readTheme();
    this.reset();
    this.navigator.shown = this.navigator.goal();
    this.connect();
    this.invalidate();
  }

  /** Height of the ground: the 3rd percentile of the geometry along the up axis. */
  findFloor() {
    const data = this.header.data, name = ["mesh", "points", "sparse"].find((n) => data[`${n}.position`]);
    const heights = [];
    if (name) {
      const p = data[`${name}.position`], { low, size } = this.painter, stride = Math.max(1, Math.floor(p.length / 3 / 20000));
      for (let r = 0; r < p.length / 3; r += stride) heights.push(dot(this.navigator.up, [0, 1, 2].map((c) => low[c] + p[3 * r + c] / 65535 * size[c])));
    } else for (const c of this.cameras) heights.push(dot(this.navigator.up, c.eye));
    heights.sort((a, b) => a - b);
    return heights[Math.floor(0.03 * heights.length)] || 0;
  }

  readTheme() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim().match(/[0-9a-f]{2}/gi).map((v) => parseInt(v, 16) / 255);
    this.theme = { back: colour("--scene"), ink: colour("--scene-ink"), camera: colour("--camera"), accent: colour("--chosen") };
    this.buildLines();
  }

  buildLines() {
    const length = this.length * this.frustumScale, rows = this.cameras.flatMap((c) => frustumRows(c, length, [...this.theme.camera, 0.95]));
    this.frusta = this.cameras.length ? this.painter.makeLines(rows) : null;
    this.rowsPerCamera = this.cameras.length ? rows.length / this.cameras.length : 0;
    const path = this.cameras.slice(1).map((c, i) => [...this.cameras[i].eye, ...c.eye, ...this.theme.camera, 0.5]);
    this.path = path.length ? this.painter.makeLines(path) : null;
    this.chosenLines = null;
  }

  /** Look at everything from above the side where the cameras are. */
  reset() {
    const n = this.navigator;
    n.fixed = null; n.tau = 0.12;
    let direction = along(scale(n.right, 0.8), n.forward, 0.6);
    if (this.cameras.length) {
      const mean = scale(this.cameras.reduce((s, c) => add(s, c.z), [0, 0, 0]), -1 / this.cameras.length);
      const flat = along(mean, n.up, -dot(mean, n.up));
      if (norm(flat) > 0.15) direction = flat;
    }
    const angles = n.anglesOf(direction);
    const { centre, radius } = this.header.focus;
    n.orbit = { target: sub(centre, this.centre), yaw: angles.yaw + 0.35, pitch: 0.5, distance: radius * 2.15 };
    this.choose(null);
    this.invalidate();
  }

  invalidate() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame((now) => {
      this.pending = false;
      const seconds = this.last ? (now - this.last) / 1000 : 0.016;
      const moving = this.navigator.step(seconds);
      this.last = moving ? now : null;  // after a rest the clock starts anew
      this.draw();
      if (moving) this.invalidate();
    });
  }

  matrices() {
    const { eye, quat, fov } = this.navigator.shown, aspect = this.canvas.width / this.canvas.height;
    const reach = norm(eye) + 4 * this.radius, near = Math.max(2e-4 * this.radius, 0.004 * (this.navigator.fixed ? this.radius : this.navigator.orbit.distance));
    const projection = perspective(fov, aspect, near, reach), axes = axesFromQuat(quat);
    return { eye, axes, projection, clip: multiply(projection, viewMatrix(eye, axes)) };
  }

  pixelScale() { return this.canvas.height / (2 * Math.tan(this.navigator.shown.fov / 2)); }

  /** Diameter of a point relative to the scene: many points are drawn small, few large. */
  dot(name) {
    const cloud = this.painter.clouds[name];
    return cloud ? clamp(2.6 / Math.sqrt(cloud.count), 0.003, 0.012) : 0;
  }

  drawSurfaces(clip, eye, pick) {
    const p = this.painter, n = this.navigator, show = this.show, scalePixels = this.pixelScale() * this.radius * this.pointSize;
    if (show.mesh) p.drawMesh(clip, eye, n.up, this.shading, this.show.back, pick);
    if (show.points) p.drawCloud("points", clip, this.dot("points") * scalePixels, 1.2 * p.ratio, this.confidence, this.theme.ink, pick);
    if (show.sparse) p.drawCloud("sparse", clip, 1.3 * this.dot("sparse") * scalePixels, 1.6 * p.ratio, 0, this.theme.ink, pick);
  }

  draw() {
    const p = this.painter, n = this.navigator, show = this.show;
    p.resize();
    const { eye, clip } = this.matrices();
    this.clip = clip;
    p.begin(this.theme.back);
    this.drawSurfaces(clip, eye, 0);
    if (show.pictures) for (const c of this.cameras) if (c.image && c !== this.chosen) p.drawPicture(clip, cornersOf(c, this.length * this.frustumScale), c.image, 256, 1);
    p.blended(true);
    if (show.grid) p.drawGrid(clip, scale(n.up, this.floor), n.right, n.forward, 3.2 * this.radius, this.gridStep(), this.theme.ink);
    if (show.path) p.drawLines(this.path, clip, 1.2);
    if (show.cameras) p.drawLines(this.frusta, clip, 1.3);
    this.drawChosen(clip);
    p.drawLines(this.markLine, clip, 2.4);
    p.blended(false);
    this.placeLabels();
  }

  drawChosen(clip) {
    const c = this.chosen, p = this.painter, gl = p.gl;
    if (!c) return;
    if (!this.chosenLines) this.chosenLines = p.makeLines(frustumRows(c, this.length * this.frustumScale, [...this.theme.accent, 1]));
    gl.disable(gl.DEPTH_TEST);  // the picture lies over the scene, whatever stands in between
    if (c.image && this.navigator.fixed && this.opacity > 0) p.drawPicture(clip, cornersOf(c, this.radius), c.image, 1024, this.opacity);
    p.drawLines(this.chosenLines, clip, 2.2);
    gl.enable(gl.DEPTH_TEST);
  }

  gridStep() {
    const rough = this.radius / 8, power = 10 ** Math.floor(Math.log10(rough));
    return power * ([1, 2, 5, 10].find((m) => m * power >= rough) || 10);
  }

  /** Canvas position in CSS pixels of a point, or null behind the eye. */
  project(point) {
    const [x, y, , w] = toClip(this.clip, point);
    if (w <= 0) return null;
    return [(x / w * 0.5 + 0.5) * this.canvas.clientWidth, (0.5 - y / w * 0.5) * this.canvas.clientHeight];
  }

  /** Scene point under a canvas position (CSS pixels), or null. */
  pointAt(x, y) {
    const ratio = this.painter.ratio, { eye, axes, projection: m, clip } = this.matrices();
    const z = this.painter.pickDepth(x * ratio, y * ratio, () => this.drawSurfaces(clip, eye, 1));
    this.invalidate();
    if (z === null) return null;
    const depth = m[14] / (z * 2 - 1 + m[10]);  // distance along the view axis, from the projection matrix
    const u = (x / this.canvas.clientWidth * 2 - 1) / m[0], v = (1 - y / this.canvas.clientHeight * 2) / m[5];
    return along(eye, sub(add(scale(axes[0], u), scale(axes[1], v)), axes[2]), depth);
  }

  /** The camera whose centre or picture frame is under a canvas position, or null. */
  cameraAt(x, y) {
    if (!this.show.cameras && !this.show.pictures) return null;
    let best = 14, found = null;
    for (const c of this.cameras) {
      if (c === this.chosen && this.navigator.fixed) continue;
      const corners = cornersOf(c, this.length * this.frustumScale), middle = scale(corners.reduce(add), 0.25);
      for (const point of [c.eye, middle]) {
        const at = this.project(point), distance = at ? Math.hypot(at[0] - x, at[1] - y) : Infinity;
        if (distance < best) { best = distance; found = c; }
      }
    }
    return found;
  }

  choose(camera) {
    this.chosen = camera;
    this.chosenLines = null;
    this.panel?.chosen(camera);
    this.invalidate();
  }

  /** Glide into a camera and lay its picture over the scene. */
  lookThrough(camera) {
    const aspect = this.canvas.clientWidth / this.canvas.clientHeight;
    const fit = Math.max(Math.tan(camera.fovY / 2), Math.tan(camera.fovX / 2) / aspect) * 1.12;
    this.choose(camera);
    this.navigator.lookFrom(camera.eye, camera.quat, Math.min(2 * Math.atan(fit), 2.6));
    this.invalidate();
  }

  /** Back to orbiting from where the eye is. */
  leave() {
    if (!this.navigator.fixed) return;
    this.navigator.release(clamp(norm(this.navigator.fixed.eye), 0.25 * this.radius, 1.5 * this.radius));
    this.choose(null);
  }

  neighbour(step) {
    if (!this.cameras.length) return;
    const at = this.chosen ? this.chosen.order + step : 0;
    this.lookThrough(this.cameras[(at + this.cameras.length) % this.cameras.length]);
  }

  measure(point) {
    if (!point) return;
    this.marks = this.marks.length === 2 ? [point] : [...this.marks, point];
    this.markLine = this.marks.length === 2 ? this.painter.makeLines([[...this.marks[0], ...this.marks[1], ...this.theme.accent, 1]]) : null;
    this.invalidate();
  }

  connect() {
    attachControls(this.canvas, this.navigator, {
      orbit: () => this.leave(),
      changed: () => this.invalidate(),
      click: (x, y) => {
        if (this.measuring) { this.measure(this.pointAt(x, y)); return; }
        const camera = this.cameraAt(x, y);
        if (camera) this.lookThrough(camera);
      },
      double: (x, y) => {
        const point = this.pointAt(x, y);
        if (!point) return;
        this.leave();
        this.navigator.focus(point);
        this.invalidate();
      },
      hover: (x, y) => this.hover(x, y),
      key: (key) => {
        const action = { r: () => this.reset(), Escape: () => this.leave(), n: () => this.neighbour(1), p: () => this.neighbour(-1) }[key];
        action?.();
        return Boolean(action);
      },
    });
    this.panel = new Panel(this);
    this.canvas.addEventListener("webglcontextlost", (event) => { event.preventDefault(); this.panel.say("The graphics context was lost; reload the page."); });
    new ResizeObserver(() => this.invalidate()).observe(this.canvas);
  }

  hover(x, y) {
    const camera = x < 0 || !this.clip ? null : this.cameraAt(x, y);
    if (camera === this.hovered) return;
    this.hovered = camera;
    this.canvas.classList.toggle("pointing", Boolean(camera));
    this.panel.hint(camera, camera && this.project(camera.eye));
  }

  placeLabels() {
    this.panel.marks(this.marks.map((m) => this.project(m)), this.marks.length === 2 ? norm(sub(...this.marks)) : null);
  }
}
