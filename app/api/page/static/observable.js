import { Component } from "./html.js";

/** Something that views show. Changes are told to them once a frame, or now and then while the tab is hidden. */
export class Observable {
  #listeners = new Set();
  #isDue = false;

  /** @param {() => void} listener @returns {() => void} how to stop listening */
  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  changed() {
    if (this.#isDue) return;
    this.#isDue = true;
    const tell = () => {
      this.#isDue = false;
      for (const listener of [...this.#listeners]) listener();
    };
    if (document.hidden) setTimeout(tell, 300);
    else requestAnimationFrame(tell);
  }
}

/** A component that is drawn anew when `props.source`, an Observable, has changed. */
export class Watching extends Component {
  componentDidMount() {
    this.stopWatching = this.props.source.subscribe(() => this.forceUpdate());
  }

  componentWillUnmount() {
    this.stopWatching();
  }
}
