import { number } from "../chat/stats.js";
import { Component, html } from "../html.js";

const MOST = 64;

/** The running requests in words, for whoever cannot see the picture or wants numbers. Made only while it is open. */
export class RowTable extends Component {
  state = { isOpen: false };

  render({ latest }, { isOpen }) {
    const rows = isOpen && latest ? latest.rows.slice(0, MOST) : [];
    return html`<details class="card rows" onToggle=${(event) => this.setState({ isOpen: event.target.open })}>
      <summary>Requests as a table</summary>
      <div class="table" tabindex="0" role="region" aria-label="Running requests"><table>
        <thead><tr><th scope="col">Request</th><th scope="col">Tenant</th><th scope="col">Prompt</th><th scope="col">Cached</th><th scope="col">Generated</th><th scope="col">Last step</th></tr></thead>
        <tbody>${rows.map((row) => html`<tr key=${row.number}>
          <th scope="row">${row.number}</th><td>${latest.tenants[row.tenant].name}</td><td>${number(row.promptTokens)}</td>
          <td>${number(row.cachedTokens)}</td><td>${number(row.outputTokens)}</td><td>${number(row.stepTokens)}</td>
        </tr>`)}</tbody>
      </table></div>
      ${latest && latest.rows.length > MOST && html`<p class="note">and ${latest.rows.length - MOST} more</p>`}
    </details>`;
  }
}
