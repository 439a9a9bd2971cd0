import { html } from "./html.js";

const PATHS = {
  attach: "M13.5 7.5 8 13a3.2 3.2 0 0 1-4.5-4.5L9 3a2.1 2.1 0 0 1 3 3L6.600 11.400a1 1 0 0 1-1.500-1.500L10 5",
  auto: "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2Zm0 0v12M8 5.500h4.600M8 8h5.900M8 10.500h4.600",
  check: "m3 8.500 3.200 3.200L13 4.800",
  close: "m4 4 8 8m0-8-8 8",
  copy: "M6 6h7.500v7.500H6zM10 3.500V2.500H2.500V10h1",
  dark: "M13.500 9.600A6 6 0 0 1 6.400 2.500a6 6 0 1 0 7.100 7.100Z",
  down: "M8 3v10m-4-4 4 4 4-4",
  edit: "m3 13 .6-2.800L10.800 3a1.300 1.300 0 0 1 1.900 0l.300.300a1.300 1.300 0 0 1 0 1.900L5.800 12.400 3 13Z",
  export: "M8 10V2.500m-3 3 3-3 3 3M3 9.500v4h10v-4",
  key: "M9.500 9a3.500 3.500 0 1 0-2.800-1.600L2.500 11.600v1.900h2.300v-1.700h1.700v-1.600l.900-.900c.600.300 1.300.500 2.100.500Zm.800-3.800h.010",
  left: "M10 3.500 5.500 8l4.500 4.500",
  light: "M8 5a3 3 0 1 0 0 6 3 3 0 0 0 0-6ZM8 1.500v1.300m0 10.400v1.300M1.500 8h1.300m10.400 0h1.300M3.400 3.400l.9.9m7.400 7.400.9.9m0-9.200-.9.9m-7.400 7.400-.9.9",
  menu: "M2.500 4.500h11m-11 3.500h11m-11 3.500h7",
  plus: "M8 3v10M3 8h10",
  retry: "M13 8a5 5 0 1 1-1.600-3.700L13 5.800M13 2.500v3.300H9.700",
  right: "M6 3.500 10.500 8 6 12.500",
  send: "M8 13V3.500M3.800 7.500 8 3.300l4.200 4.200",
  settings: "M2.500 5h6m4 0h1m-11 6h1m4 0h6M10.500 3.500a1.500 1.500 0 1 0 0 3 1.500 1.500 0 0 0 0-3Zm-5 6a1.500 1.500 0 1 0 0 3 1.500 1.500 0 0 0 0-3Z",
  stop: "M4.500 4.500h7v7h-7z",
  tool: "M10 2.600a3.400 3.400 0 0 0-3.500 4.600L2.600 11.100a1.300 1.300 0 0 0 1.800 1.800l3.900-3.900a3.400 3.400 0 0 0 4.600-3.500l-1.900 1.400-1.700-.500-.500-1.700L10 2.600Z",
  trash: "M3 4.500h10m-6.500 0v-2h3v2m-5 0 .500 9h6l.500-9M6.800 7v4.500M9.200 7v4.500",
};

/** @param {{name: keyof typeof PATHS}} props */
export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;
}

/** A button that shows only an icon; `label` is what it is called. */
export function IconButton({ icon, label, ...rest }) {
  return html`<button type="button" class="icon-button" title=${label} aria-label=${label} ...${rest}>
    <${Icon} name=${icon} />
  </button>`;
}
