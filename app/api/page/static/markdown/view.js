import { Component, html } from "../html.js";
import { CopyButton } from "../copy.js";
import { parseBlocks } from "./blocks.js";
import { parseInline } from "./inline.js";

/** Text of a model. It becomes elements by its tree alone; addresses are followed only with a click. */
export function Markdown({ text }) {
  return html`<div class="markdown">${parseBlocks(text).map((block, index) => html`<${Block} key=${index} block=${block} />`)}</div>`;
}

/** A block, which is made anew only if it has changed: while text streams in, that is the last one. */
class Block extends Component {
  shouldComponentUpdate({ block }) {
    return JSON.stringify(block) !== JSON.stringify(this.props.block);
  }

  render({ block }) {
    return blockView(block);
  }
}

function blockView(block) {
  switch (block.type) {
    case "heading":
      return html`<${`h${Math.min(6, block.level + 2)}`} class=${`h${block.level}`}>${inline(block.text)}<//>`;
    case "code":
      return html`<${Code} ...${block} />`;
    case "quote":
      return html`<blockquote>${block.blocks.map(blockView)}</blockquote>`;
    case "list":
      return listView(block);
    case "table":
      return tableView(block);
    case "rule":
      return html`<hr />`;
    default:
      return html`<p>${inline(block.text)}</p>`;
  }
}

function listView({ start, isTight, items }) {
  const tag = start === null ? "ul" : "ol";
  const inner = (block) => (isTight && block.type === "paragraph" ? html`<span>${inline(block.text)}</span>` : blockView(block));
  return html`<${tag} start=${start ?? undefined}>
    ${items.map(({ checked, blocks }) => html`<li class=${checked === null ? "" : "task"}>
      ${checked !== null && html`<input type="checkbox" checked=${checked} disabled aria-label=${checked ? "done" : "open"} />`}
      ${blocks.map(inner)}
    </li>`)}
  <//>`;
}

function tableView({ align, header, rows }) {
  const place = (column) => (align[column] ? `align-${align[column]}` : "");
  return html`<div class="table" tabindex="0" role="region" aria-label="table"><table>
    <thead><tr>${header.map((cell, column) => html`<th class=${place(column)}>${inline(cell)}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr>${row.map((cell, column) => html`<td class=${place(column)}>${inline(cell)}</td>`)}</tr>`)}</tbody>
  </table></div>`;
}

function Code({ language, text }) {
  return html`<figure class="code">
    <figcaption><span>${language || "text"}</span><${CopyButton} text=${text} label="Copy code" /></figcaption>
    <pre tabindex="0"><code>${text}</code></pre>
  </figure>`;
}

const inline = (text) => parseInline(text).map(inlineView);

function inlineView(node) {
  if (typeof node === "string") return node;
  switch (node.type) {
    case "strong":
      return html`<strong>${node.children.map(inlineView)}</strong>`;
    case "em":
      return html`<em>${node.children.map(inlineView)}</em>`;
    case "del":
      return html`<del>${node.children.map(inlineView)}</del>`;
    case "code":
      return html`<code>${node.text}</code>`;
    case "break":
      return html`<br />`;
    case "image": // it is not loaded: that would tell another server who reads this
      return anchor(node.href, [node.alt || "image"]);
    default:
      return anchor(node.href, node.children.map(inlineView));
  }
}

function anchor(href, children) {
  return href ? html`<a href=${href} target="_blank" rel="noopener noreferrer nofollow">${children}</a>` : html`<span>${children}</span>`;
}
