// Elements, changed only where something is different, so that nothing flickers and readers are not interrupted.

export const $ = (id) => document.getElementById(id);

/** Make an element. Attributes that are null or false are left out; "on…" ones are listeners; text is never markup. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

export function attribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

export function tag(words, tone) {
  return h("span", { class: "tag", "data-tone": tone }, words);
}

/** Rebuild an element's children when `key` differs from the last time. */
export function rebuilt(element, key, make) {
  if (element.dataset.key === key) return;
  element.dataset.key = key;
  element.replaceChildren(...make());
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
