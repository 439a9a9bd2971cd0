import { number } from "../chat/stats.js";
import { Component, html } from "../html.js";
import { prefersCalm } from "../theme.js";
import { BlockMap } from "./blocks.js";
import { Canvas } from "./canvas.js";
import { Feed } from "./feed.js";
import { Figures } from "./figures.js";
import { Road } from "./road.js";
import { RowTable } from "./table.js";

const REDRAW_MS = 250;
const LEGEND = [["prompt", "reads its prompt"], ["decode", "writes"], ["draft", "drafts that were right"], ["join", "joins"], ["leave", "leaves"], ["preempt", "is preempted"]];
const STATES = [["used", "used"], ["shared", "shared"], ["cached", "cached"], ["free", "free"]];

/** The running batch. Pictures are painted each frame, words four times a second: faster, nobody reads. */
export class BatchView extends Component {
  feed = new Feed(this.props.api, this.props.model);
  road = new Road();
  maps = [];

  componentDidMount() {
    this.feed.start();
    this.stopWatching = this.feed.subscribe(() => {
      this.timer ??= setTimeout(() => {
        this.timer = null;
        this.forceUpdate();
      }, REDRAW_MS);
    });
  }

  componentWillUnmount() {
    this.feed.stop();
    this.stopWatching();
    clearTimeout(this.timer);
  }

  drawRoad = (context, frame) => this.road.draw(context, frame, this.feed.history);

  drawMap = (index) => {
    this.maps[index] ??= new BlockMap();
    return (context, frame) => this.maps[index].draw(context, frame, this.feed.history.latest?.kv[index], prefersCalm());
  };

  render() {
    const { history, problem } = this.feed;
    const { latest } = history;
    const running = latest?.rows.length ?? 0;
    return html`<main class="batch">
      <div class="page-width">
        <h1 class="hidden-visually">The running batch</h1>
        ${problem && html`<p class="error" role="alert">${problem}</p>`}
        <${Figures} history=${history} />
        <section class="card road" aria-labelledby="road-title">
          <header>
            <h2 id="road-title">The line</h2>
            <ul class="legend">${LEGEND.map(([kind, says]) => html`<li key=${kind}><i class=${`mark-${kind}`}></i>${says}</li>`)}</ul>
          </header>
          <${Canvas} class="road-canvas" draw=${this.drawRoad} label=${`Requests over time, ${running} running now; the table below has them in words`} />
          ${latest && !running && !history.riders.length && html`<p class="idle">The road is empty. Requests appear here as they join.</p>`}
          ${!latest && !problem && html`<p class="idle">Waiting for the engine …</p>`}
        </section>
        <div class="pair">
          <section class="card" aria-labelledby="queue-title">
            <header><h2 id="queue-title">Tenants</h2><ul class="legend"><li><i class="mark-running"></i>running</li><li><i class="mark-waiting"></i>waiting</li></ul></header>
            <${Queue} tenants=${latest?.tenants ?? []} />
          </section>
          ${(latest?.kv ?? []).map((group, index) => html`<section key=${index} class="card" aria-label="KV blocks">
            <header><h2>KV blocks${latest.kv.length > 1 ? ` ${index + 1}` : ""}</h2>
              <ul class="legend">${STATES.map(([state, says]) => html`<li key=${state}><i class=${`mark-${state}`}></i>${says}</li>`)}</ul></header>
            <${Canvas} class="map-canvas" draw=${this.drawMap(index)} label=${`${group.num_used} of ${group.num_blocks} blocks used, ${group.num_cached} cached`} />
            <p class="note">${number(group.num_used)} used, ${number(group.num_cached)} cached of ${number(group.num_blocks)} blocks
              with ${latest.block_size} tokens each${group.stride > 1 ? `; one in ${group.stride} is shown` : ""}</p>
          </section>`)}
        </div>
        <${RowTable} latest=${latest} />
      </div>
    </main>`;
  }
}

function Queue({ tenants }) {
  const most = Math.max(1, ...tenants.map((tenant) => tenant.running + tenant.waiting));
  if (!tenants.length) return html`<p class="note">Nobody has requests now.</p>`;
  return html`<ul class="queue">${tenants.map(({ name, running, waiting, waitingTokens }) => html`<li key=${name}>
    <span class="name">${name}</span>
    <span class="bar" aria-hidden="true"><i class="running" style=${{ width: `${(100 * running) / most}%` }}></i><i class="waiting" style=${{ width: `${(100 * waiting) / most}%` }}></i></span>
    <span class="count">${number(running)} running${waiting > 0 ? `, ${number(waiting)} waiting with ${number(waitingTokens)} tokens` : ""}</span>
  </li>`)}</ul>`;
}
