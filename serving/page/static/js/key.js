// Asks for a key where reading needs one. It is kept in the storage of this tab, and nowhere else.
import * as api from "./api.js";
import { $, text } from "./dom.js";

export function start() {
  const dialog = $("key-dialog");
  const field = $("key");
  let declined = false; // who goes without is not asked again and again
  const open = (why) => {
    text($("key-why"), why);
    field.value = "";
    if (!dialog.open) dialog.showModal();
    field.focus();
  };
  $("key-open").addEventListener("click", () => open("A key or token of scope read lets the page show the system, write lets you click, admin lets you start an attack."));
  addEventListener("keyless", (event) => declined || open(event.detail || "Reading needs a key or token with scope read."));
  dialog.addEventListener("close", () => {
    if (dialog.returnValue === "save" && field.value.trim()) {
      declined = false;
      api.keep(field.value.trim());
    } else {
      declined = true;
      if (dialog.returnValue === "forget") api.keep(null);
    }
    field.value = "";
    dialog.returnValue = "";
  });
}
