// Creates and changes elements. Strings become text, never markup, so input from customers cannot inject any.

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  alert: "M8 2.5 14 13H2zM8 6.5V9M8 11.2v.1",
  back: "M6 3 3 6l3 3M3 6h6a3.5 3.5 0 0 1 0 7H6",
  box: "M2.5 5 8 2l5.5 3v6L8 14l-5.5-3zM2.5 5 8 8l5.5-3M8 8v6",
  card: "M2 4h12v8H2zM2 7h12",
  check: "m3.5 8.5 3 3 6-7",
  clock: "M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11M8 5v3l2 1.5",
  cross: "m4.5 4.5 7 7m0-7-7 7",
  flag: "M4 14V3h8l-2 2.75 2 2.75H4",
  inbox: "M2.5 8.5 4.5 3h7l2 5.5V13h-11zM2.5 9H6l.8 1.5h2.4L10 9h3.5",
  mail: "M2 4h12v8.5H2zM2.5 4.5 8 9l5.5-4.5",
  pause: "M6 4.5v7M10 4.5v7",
  person: "M8 8a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5M3 13.5c.5-3 2.3-4 5-4s4.5 1 5 4",
  step: "M8 4.5 11.5 8 8 11.5 4.5 8z",
  stop: "M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11M4.2 4.2l7.6 7.6",
  truck: "M1.5 4h8v7.5h-8zM9.5 6.5h3l2 2.5v2.5h-5M4.5 13.2v.1M11.5 13.2v.1",
};

/** element("p", { class: "note", hidden: true }, "text", other): attributes by name, `on…` as listeners. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else set(made, name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** Sets an attribute only if it differs, so that an unchanged value causes no new layout. */
export function set(target, name, value) {
  if (value == null || value === false) return target.removeAttribute(name);
  const text = value === true ? "" : String(value);
  if (target.getAttribute(name) !== text) target.setAttribute(name, text);
}

/** Sets the text only if it differs. */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Creates an icon. It is hidden from screen readers, because there is always a word beside it. */
export function icon(name) {
  const svg = svgElement("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, svgElement("path"));
  changeIcon(svg, name);
  return svg;
}

export function svgElement(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) set(made, name, value);
  made.append(...children);
  return made;
}

/** Replaces an icon by another one. */
export function changeIcon(svg, name) {
  set(svg.firstChild, "d", ICONS[name]);
}

const news = document.getElementById("news");

/** Announces a text to screen readers. */
export function announce(text) {
  news.textContent = text;
}

/** Announces a text, and shows it for a few seconds. */
export function notify(text) {
  announce(text);
  for (const animation of news.getAnimations()) animation.cancel();
  news.animate({ opacity: [0, 1, 1, 1, 1, 0] }, 6000);
}

const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

/** Whether changes may move: the user does not prefer reduced motion, and sees the page. */
export const mayMove = () => !reducedMotion.matches && !document.hidden;

/** Highlights a change for a moment. */
export function flash(target) {
  if (!mayMove()) return;
  target.animate({ backgroundColor: ["color-mix(in srgb, var(--accent) 25%, transparent)", "transparent"] }, 1200);
}
