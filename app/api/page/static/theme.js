const THEME = "paceline.theme";
const NEXT = { auto: "light", light: "dark", dark: "auto" };

/** auto, light or dark. */
export const theme = () => localStorage.getItem(THEME) ?? "auto";

export function applyTheme() {
  document.documentElement.dataset.theme = theme();
}

export function nextTheme() {
  localStorage.setItem(THEME, NEXT[theme()]);
  applyTheme();
}

export const prefersCalm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** The colours of the theme in use, as canvases need them. */
export function colours(element) {
  const style = getComputedStyle(element);
  const names = ["ink", "muted", "faint", "line", "accent", "page"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`)]));
}
