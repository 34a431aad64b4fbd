/** Light and dark: follows the system until the button is pressed. */
function connectTheme(changed) {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  document.getElementById("theme").addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; changed(); });
  system.addEventListener("change", changed);
}

function connectSorting() {
  const select = document.getElementById("sort"), box = document.querySelector(".cards");
  if (!select || !box) return;
  const cards = [...box.children];
  const order = {
    order: () => 0,
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true }),
    kept: (a, b) => a.dataset.kept - b.dataset.kept,
    error: (a, b) => b.dataset.error - a.dataset.error,
  };
  select.addEventListener("change", () => box.append(...[...cards].sort(order[select.value])));
}

/** A picture of a card fills the window when clicked. */
function connectLightbox() {
  const box = document.createElement("dialog"), picture = document.createElement("img"), caption = document.createElement("p");
  box.className = "lightbox";
  box.append(picture, caption);
  document.body.append(box);
  box.addEventListener("click", () => box.close());
  document.querySelectorAll(".card img, .orbit img").forEach((image) => image.addEventListener("click", () => {
    picture.src = image.src;
    picture.alt = caption.textContent = image.alt;
    box.showModal();
  }));
}

async function start() {
  let explorer = null;
  connectTheme(() => { explorer?.readTheme(); explorer?.invalidate(); });
  connectSorting();
  connectLightbox();
  const root = document.querySelector(".explorer");
  if (!root) return;
  try {
    explorer = new Explorer(root, await readPayload());
    root.classList.add("ready");
  } catch (error) {
    root.classList.add("broken");
    const message = root.querySelector('[data-part="message"]');
    message.hidden = false;
    message.textContent = `The interactive view cannot start: ${error.message}.`;
    return;
  }
  const byView = new Map(explorer.cameras.map((c) => [String(c.view), c]));
  document.querySelectorAll(".jump").forEach((button) => button.addEventListener("click", () => {
    const camera = byView.get(button.dataset.view);
    if (!camera) return;
    root.scrollIntoView({ block: "center", behavior: "smooth" });
    explorer.lookThrough(camera);
  }));
}

start();
