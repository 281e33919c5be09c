// Runs before the first paint: the colours that were chosen, or the system's.
{
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    let choice = null;
    try { choice = localStorage.getItem("theme"); } catch { /* storage may be forbidden */ }
    document.documentElement.dataset.theme = choice ?? (dark.matches ? "dark" : "light");
    document.dispatchEvent(new CustomEvent("themed"));
  };
  dark.addEventListener("change", apply);
  addEventListener("storage", apply);
  addEventListener("retheme", apply);
  apply();
}
