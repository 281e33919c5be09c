// The switch of colours: as the system has them, light, dark.
const ORDER = [null, "light", "dark"];
const NAMES = { null: ["Auto", "Colours: as the system has them"], light: ["Light", "Colours: light"], dark: ["Dark", "Colours: dark"] };

function chosen() {
  try { return localStorage.getItem("theme"); } catch { return null; }
}

export function start(button) {
  const show = () => {
    const [name, label] = NAMES[chosen()];
    button.textContent = name;
    button.setAttribute("aria-label", label);
  };
  button.addEventListener("click", () => {
    const next = ORDER[(ORDER.indexOf(chosen()) + 1) % ORDER.length];
    try {
      if (next === null) localStorage.removeItem("theme");
      else localStorage.setItem("theme", next);
    } catch { /* storage may be forbidden: then the colours stay those of the system */ }
    dispatchEvent(new Event("retheme"));
    show();
  });
  show();
}
