/** The controls around the canvas. Text from file names only ever enters through textContent. */
class Panel {
  constructor(explorer) {
    this.explorer = explorer;
    this.root = explorer.root;
    this.layers();
    this.sliders();
    this.selects();
    this.buttons();
    this.filmstrip();
    this.chosen(null);
    if (this.explorer.canvas.clientWidth < 620) this.root.classList.add("folded");
  }

  part(name) { return this.root.querySelector(`[data-part="${name}"]`); }

  say(text) {
    const box = this.part("message");
    box.textContent = text;
    box.hidden = !text;
  }

  layers() {
    const e = this.explorer, { painter, cameras } = e;
    const present = {
      mesh: painter.mesh, back: painter.mesh, points: painter.clouds.points, sparse: painter.clouds.sparse,
      cameras: cameras.length, path: cameras.length > 1, pictures: cameras.some((c) => c.image), grid: true,
    };
    for (const box of this.root.querySelectorAll("[data-layer]")) {
      const name = box.dataset.layer;
      box.closest("label").hidden = !present[name];
      box.checked = e.show[name] = Boolean(present[name]) && Boolean(e.show[name]);
      box.addEventListener("change", () => { e.show[name] = box.checked; this.dependent(); e.invalidate(); });
    }
    this.dependent();
  }

  /** Controls that only make sense with what is shown. */
  dependent() {
    const e = this.explorer, clouds = e.painter.clouds;
    this.part("confidence-row").hidden = !(e.show.points && clouds.points?.confident);
    this.part("size-row").hidden = !((e.show.points && clouds.points) || (e.show.sparse && clouds.sparse));
    this.part("shading-row").hidden = !(e.show.mesh && e.painter.mesh);
    this.part("frustum-row").hidden = !(e.cameras.length && (e.show.cameras || e.show.pictures));
  }

  slide(name, apply) {
    const input = this.part(name), output = this.part(`${name}-value`);
    const update = () => {
      const shown = apply(Number(input.value));
      if (output) output.textContent = shown;
      this.explorer.invalidate();
    };
    input.addEventListener("input", update);
    update();
  }

  sliders() {
    const e = this.explorer;
    this.slide("confidence", (v) => { e.confidence = v / 255 - 1e-4; return `≥ ${(v / 255).toFixed(2)}`; });
    this.slide("size", (v) => { e.pointSize = 2 ** v; return `${(2 ** v).toFixed(1)}×`; });
    this.slide("frustum", (v) => { e.frustumScale = 2 ** v; e.buildLines(); return `${(2 ** v).toFixed(1)}×`; });
    this.slide("opacity", (v) => { e.opacity = v / 100; return `${v} %`; });
  }

  selects() {
    const e = this.explorer, shading = this.part("shading"), up = this.part("up");
    if (e.painter.mesh && !e.painter.mesh.coloured) shading.querySelector('[value="0"]').disabled = true;
    shading.value = String(e.shading);
    shading.addEventListener("change", () => { e.shading = Number(shading.value); e.invalidate(); });
    up.addEventListener("change", () => {
      e.navigator.setUp(UP_CHOICES[up.value] || e.header.up);
      e.floor = e.findFloor();
      e.reset();
    });
  }

  buttons() {
    const e = this.explorer, on = (name, act) => this.part(name).addEventListener("click", act);
    on("reset", () => e.reset());
    on("previous", () => e.neighbour(-1));
    on("next", () => e.neighbour(1));
    on("leave", () => e.leave());
    on("fold", () => this.root.classList.toggle("folded"));
    on("measure", (event) => {
      e.measuring = !e.measuring;
      e.marks = []; e.markLine = null;
      event.currentTarget.setAttribute("aria-pressed", String(e.measuring));
      e.canvas.classList.toggle("measuring", e.measuring);
      this.say(e.measuring ? "Click two points of the scene." : "");
      e.invalidate();
    });
    on("full", () => (document.fullscreenElement ? document.exitFullscreen() : this.root.requestFullscreen?.()));
  }

  filmstrip() {
    const e = this.explorer, strip = this.part("strip");
    for (const camera of e.cameras) {
      const button = document.createElement("button");
      button.type = "button";
      button.title = camera.name;
      button.setAttribute("aria-label", `Look through ${camera.name}`);
      if (camera.image) {
        const picture = document.createElement("img");
        picture.src = camera.image.src;
        picture.alt = "";
        picture.decoding = "async";
        picture.loading = "lazy";
        button.append(picture);
      } else button.textContent = String(camera.view + 1);
      button.addEventListener("click", () => e.lookThrough(camera));
      strip.append(button);
      camera.button = button;
      camera.image?.addEventListener("load", () => e.invalidate());
    }
    strip.hidden = !e.cameras.length;
  }

  chosen(camera) {
    for (const c of this.explorer.cameras) c.button?.classList.toggle("chosen", c === camera);
    this.part("through").hidden = !camera;
    this.part("help").hidden = Boolean(camera);
    if (!camera) return;
    this.part("through-name").textContent = camera.name;
    const strip = this.part("strip"), b = camera.button;
    strip.scrollTo({ left: b.offsetLeft - strip.clientWidth / 2 + b.offsetWidth / 2, behavior: "smooth" });
  }

  hint(camera, at) {
    const box = this.part("hint");
    box.hidden = !camera || !at;
    if (box.hidden) return;
    box.querySelector("span").textContent = camera.name;
    const picture = box.querySelector("img");
    picture.hidden = !camera.image;
    if (camera.image) picture.src = camera.image.src;
    box.style.left = `${clamp(at[0], 90, this.explorer.canvas.clientWidth - 90)}px`;
    box.style.top = `${at[1]}px`;
    box.classList.toggle("below", at[1] < 190);
  }

  marks(places, distance) {
    places = [...places, null, null].slice(0, 2);
    ["mark-a", "mark-b"].forEach((name, i) => this.put(this.part(name), places[i]));
    const label = this.part("distance");
    this.put(label, distance !== null && places[0] && places[1] ? [(places[0][0] + places[1][0]) / 2, (places[0][1] + places[1][1]) / 2] : null);
    if (distance !== null) label.textContent = `${Number(distance.toPrecision(3))} ${this.explorer.header.metric ? "m" : "units"}`;
  }

  put(box, at) {
    box.hidden = !at;
    if (at) { box.style.left = `${at[0]}px`; box.style.top = `${at[1]}px`; }
  }
}
