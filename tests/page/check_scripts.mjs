// The page's scripts that need no browser: streams, trees of turns, and the history of the batch.
import assert from "node:assert/strict";
import { History, readReport } from "../../app/api/page/static/batch/history.js";
import { bodyOf } from "../../app/api/page/static/chat/fields.js";
import { Meter, describe } from "../../app/api/page/static/chat/stats.js";
import { addTurn, newConversation, showTurn, shownTurns, siblings, turnsUpTo } from "../../app/api/page/static/chat/tree.js";
import { EventParser } from "../../app/api/page/static/sse.js";

const STREAM = 'data: {"a": 1}\n\n: keep-alive\n\nevent: x\r\nid: 3\r\ndata:one\r\ndata: two\r\n\r\ndata: é\r\rdata: cut off\n';

const checks = {
  "events are the same, however the stream is cut"() {
    const whole = new EventParser().push(STREAM);
    assert.deepEqual(whole, ['{"a": 1}', "one\ntwo", "é"]);
    for (let first = 0; first < STREAM.length; first++) {
      for (let second = first; second < STREAM.length; second++) {
        const parser = new EventParser();
        const pieces = [STREAM.slice(0, first), STREAM.slice(first, second), STREAM.slice(second)];
        assert.deepEqual(pieces.flatMap((piece) => parser.push(piece)), whole);
      }
    }
  },

  "a branch that is shown is what a request has"() {
    const chat = newConversation({ system: "Be brief.", settings: { temperature: "0", top_k: "", stop: "a\nb", tools: "not JSON" } });
    const first = addTurn(chat, "", { role: "user", content: "one" });
    const answer = addTurn(chat, first.id, { role: "assistant", content: "1" });
    const again = addTurn(chat, first.id, { role: "assistant", content: "uno" });
    const second = addTurn(chat, again.id, { role: "user", content: "two", images: ["data:image/png;base64,AA"] });
    assert.deepEqual(shownTurns(chat), [first, again, second]);
    showTurn(chat, answer);
    assert.deepEqual(shownTurns(chat), [first, answer]);
    assert.deepEqual(siblings(chat, again), [answer, again]);
    const body = bodyOf(chat, turnsUpTo(chat, second.id), "m");
    assert.deepEqual(body.messages.map((message) => message.content), [
      "Be brief.", "one", "uno",
      [{ type: "image_url", image_url: { url: "data:image/png;base64,AA" } }, { type: "text", text: "two" }],
    ]);
    assert.deepEqual([body.temperature, body.stop, "top_k" in body, "tools" in body], [0, ["a", "b"], false, false]);
  },

  "rates count from the first token on, and the engine's clock wins"() {
    const meter = new Meter(1000);
    const usage = (tokens) => ({ usage: { prompt_tokens: 9, completion_tokens: tokens, prompt_tokens_details: { cached_tokens: 8 } } });
    meter.take({ choices: [] }, 1100);
    meter.take(usage(1), 1250);
    meter.take(usage(21), 2250);
    assert.deepEqual(describe(meter.stats), ["20 tokens/s", "first after 250 ms", "21 tokens", "8 of 9 prompt tokens cached"]);
    meter.take({ ...usage(21), timings: { predicted_per_second: 25 } }, 9000);
    assert.equal(describe(meter.stats)[0], "25 tokens/s");
  },

  "the history tells prompts, decodes, preemptions and departures apart"() {
    const history = new History();
    const counts = { steps: 1, seconds: 0.1, prompt_tokens: 0, output_tokens: 0, joined: 0, left: 0, preempted: 0, drafted: 0, accepted: 0 };
    const kv = [{ num_blocks: 3, num_used: 2, num_cached: 0, stride: 1, states: "AgMA" }];
    const report = (at, rows, preempted = [], changes = {}) =>
      history.take(readReport({ at, counts: { ...counts, ...changes }, tenants: [["alice", 2, 0, 0]], rows, preempted, kv }), at + 50);
    //          number, row, tenant, prompt, cached, computed, output, step, accepted
    report(1.0, [[1, 0, 0, 100, 0, 60, 0, 60, 0]]);
    report(1.1, [[1, 0, 0, 100, 0, 100, 0, 40, 0], [2, 1, 0, 5, 0, 6, 1, 5, 0]]);
    report(1.2, [[1, 0, 0, 100, 0, 101, 1, 1, 0], [2, 1, 0, 5, 0, 9, 4, 3, 2]]);
    report(1.3, [[1, 0, 0, 100, 0, 101, 1, 1, 0], [2, 1, 0, 5, 0, 9, 4, 0, 0]], [], { steps: 0 });
    report(1.4, [[1, 0, 0, 100, 0, 102, 2, 1, 0]], [2]);
    report(1.5, [[2, 0, 0, 5, 0, 9, 4, 9, 0]]);
    const [first, second, back] = history.riders;
    assert.deepEqual(first.parts.map((part) => part.kind), ["prompt", "decode"]);
    assert.deepEqual([first.wasPreempted, second.wasPreempted, back.isAgain, second.isAgain], [false, true, true, false]);
    assert.deepEqual(second.drafts, [{ at: 1.2, count: 2 }]);
    assert.ok(first.endedAt > 1.4 && first.endedAt < back.joinedAt && back.joinedAt < 1.5);
    assert.deepEqual([...history.running.keys()], [2]);
    assert.deepEqual([...history.latest.kv[0].states], [2, 3, 0]);
    report(60, []);
    assert.deepEqual(history.riders, []);
  },
};

for (const [name, check] of Object.entries(checks)) {
  check();
  console.log(name);
}
