// The one place that knows the view library.
import { Component, Fragment, createRef, h, render } from "./vendor/preact.js";
import htm from "./vendor/htm.js";

/** Tagged templates that make vnodes: text is always text, never markup. */
export const html = htm.bind(h);
export { Component, Fragment, createRef, render };
