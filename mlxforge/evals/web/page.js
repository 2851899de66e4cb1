"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const tools = { search: byId("search"), set: byId("set"), model: byId("model"), against: byId("against"), order: byId("order"), show: byId("show"), marks: byId("marks") };
const list = byId("list"), count = byId("count"), more = byId("more");
const has = (object, name) => Object.prototype.hasOwnProperty.call(object, name);
const MANY = 100, LONGEST = 1200;
let shown = MANY;

/* Text becomes text nodes, never markup. */
function element(tag, name, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);
  return made;
}

/* Characters that cannot be seen are shown by their names. */
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
function text(where, content) {
  let last = 0;
  for (const found of content.matchAll(HIDDEN)) {
    where.append(content.slice(last, found.index));
    where.append(element("span", "ctl", "U+" + found[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")));
    last = found.index + 1;
  }
  where.append(content.slice(last));
  return where;
}

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const words = size && size < 1e-3 ? value.toExponential(1) : size < 10 ? value.toFixed(3) : size < 100 ? value.toFixed(2) : size < 1000 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
  return words.replace(/\.?0+$/, (tail) => (words.includes(".") && !words.includes("e") ? "" : tail)).replace("-", "−");
}

/* Positive where the model is better than the other one, weightiest metric first; as evals/regressions.py. */
function gains(row, model, against) {
  const one = row.answers[model], other = row.answers[against];
  if (!one || !other) return [];
  return Object.entries(data.signs[row.set] || {}).filter(([name]) => has(one.scores, name) && has(other.scores, name))
    .map(([name, sign]) => sign * (one.scores[name] - other.scores[name]));
}
function compare(a, b) {
  for (let i = 0; i < Math.max(a.length, b.length); i++) {
    if (i >= a.length) return 1;
    if (i >= b.length) return -1;
    if (a[i] !== b[i]) return a[i] - b[i];
  }
  return 0;
}
const standing = (changes) => { const first = changes.find((one) => one !== 0); return !changes.length ? "" : first === undefined ? "same" : first < 0 ? "worse" : "better"; };

/* A longest common subsequence of words: which tokens of b are new, which of a are gone. */
function words(content) { return content.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) || []; }
function difference(before, after) {
  const a = words(before), b = words(after);
  let start = 0, end = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const x = a.slice(start, a.length - end), y = b.slice(start, b.length - end), width = y.length + 1;
  const parts = [["same", a.slice(0, start)]];
  if (x.length > LONGEST || y.length > LONGEST) parts.push(["gone", x], ["new", y]);
  else {
    const table = new Uint16Array((x.length + 1) * width);
    for (let i = x.length - 1; i >= 0; i--) for (let j = y.length - 1; j >= 0; j--)
      table[i * width + j] = x[i] === y[j] ? table[(i + 1) * width + j + 1] + 1 : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
    let i = 0, j = 0;
    while (i < x.length || j < y.length) {
      if (i < x.length && j < y.length && x[i] === y[j]) { parts.push(["same", [x[i++]]]); j++; }
      else if (j >= y.length || (i < x.length && table[(i + 1) * width + j] >= table[i * width + j + 1])) parts.push(["gone", [x[i++]]]);
      else parts.push(["new", [y[j++]]]);
    }
  }
  parts.push(["same", end ? a.slice(a.length - end) : []]);
  return grouped(parts);
}
/* Changed words that only space parts are one change: all that is gone, then all that is new. */
function grouped(parts) {
  const found = [];
  let gone = [], fresh = [], gap = [];
  const flush = () => {
    found.push(["gone", gone], ["new", fresh], ["same", gap]);
    gone = []; fresh = []; gap = [];
  };
  for (const [what, tokens] of parts) {
    if (what === "same" && (gone.length || fresh.length) && tokens.every((token) => !token.trim())) gap.push(...tokens);
    else if (what === "same") { flush(); found.push(["same", tokens]); }
    else {
      gone.push(...gap);
      fresh.push(...gap);
      gap = [];
      (what === "gone" ? gone : fresh).push(...tokens);
    }
  }
  flush();
  return found.filter(([, tokens]) => tokens.length);
}
/* The same words, and those of the kinds in tags: { new: "ins", gone: "del" }. */
function marked(where, parts, tags) {
  let run = "", state = "same";
  const flush = () => { if (run) where.append(text(element(tags[state] || "span"), run)); run = ""; };
  for (const [what, tokens] of parts) {
    if (what !== "same" && !tags[what]) continue;
    if (what !== state) { flush(); state = what; }
    run += tokens.join("");
  }
  flush();
  return where;
}

function box(content) {
  const made = element("div", "said");
  made.dir = "auto";
  made.tabIndex = 0;
  if (content === null || content === undefined) { made.className += " empty"; made.append("no text"); }
  else if (content === "") { made.className += " empty"; made.append("an empty answer"); }
  else if (Array.isArray(content)) for (const turn of content) {
    made.append(text(element("span", "role"), String(turn.role || "")));
    text(made, typeof turn.content === "string" ? turn.content : JSON.stringify(turn.content));
  }
  else text(made, typeof content === "string" ? content : JSON.stringify(content, null, 1));
  return made;
}
function part(title, body, facts) {
  const head = element("h4");
  text(head, title);
  if (facts) head.append(element("span", "scores", facts));
  return element("section", "part", head, body);
}
function folded(title, body) { return element("details", "", element("summary", "", title), body); }

/* Two texts with little in common are easier to read unmarked. */
function alike(parts) {
  const length = (kind) => parts.filter(([what]) => what === kind).reduce((sum, [, tokens]) => sum + tokens.join("").trim().length, 0);
  return length("same") >= 0.2 * (length("same") + Math.max(length("gone"), length("new")));
}
/* An answer with its difference to the other model's, or to the reference; null where there is nothing to mark. */
function withMarks(row, label, model, against, marks) {
  const own = row.answers[label].text, one = row.answers[model]?.text, other = row.answers[against]?.text;
  if (!own) return null;
  if (marks === "reference" && typeof row.reference === "string") {
    const parts = difference(row.reference, own);
    return alike(parts) ? marked(element("div", "said"), parts, { new: "ins", gone: "del" }) : null;
  }
  if (marks !== "model" || !one || !other || model === against || (label !== model && label !== against)) return null;
  const parts = difference(other, one);
  if (!alike(parts)) return null;
  return marked(element("div", "said"), parts, label === model ? { new: "ins" } : { gone: "del" });
}
function answer(row, label, model, against, marks) {
  const one = row.answers[label], good = data.signs[row.set] || {};
  const facts = Object.keys(good).filter((name) => has(one.scores, name)).map((name) => `${name.replaceAll("_", " ")} ${number(one.scores[name])}`);
  if (one.finish && one.finish !== "stop") facts.push(`ended: ${one.finish}`);
  const body = withMarks(row, label, model, against, marks) || box(one.text);
  body.dir = "auto";
  body.tabIndex = 0;
  const made = part(label, body, facts.join(" · "));
  made.style.setProperty("--c", `var(--c${data.models.indexOf(label) % 8})`);
  if (label === model || label === against) made.className += " chosen";
  if (one.prompt !== undefined) made.append(folded("its own prompt", box(one.prompt)));
  if (one.context) {
    const passages = element("div", "answers");
    for (const passage of one.context) passages.append(part([passage.document, passage.chunk].filter((name) => name !== undefined && name !== null).join(" · "), box(passage.text)));
    made.append(folded(`${one.context.length} passage${one.context.length === 1 ? "" : "s"}`, passages));
  }
  if (one.judge) {
    const said = element("div", "answers");
    for (const [what, found] of Object.entries(one.judge)) said.append(part(what, box(found.reason), found.score ?? found.better));
    made.append(folded("the judge", said));
  }
  return made;
}
function fill(inside, row, model, against, marks) {
  if (row.prompt !== null) inside.append(part("prompt", box(row.prompt)));
  if (row.reference !== null) inside.append(part("reference", box(row.reference)));
  const chosen = [against, model].filter((label, at, all) => has(row.answers, label) && all.indexOf(label) === at);
  const others = data.models.filter((one) => has(row.answers, one) && !chosen.includes(one));
  for (const some of [chosen, others]) if (some.length)
    inside.append(element("div", "answers", ...some.map((label) => answer(row, label, model, against, marks))));
  if (row.source !== null) inside.append(folded("source", box(row.source)));
}

function asked(row) {
  const prompt = row.prompt, last = Array.isArray(prompt) ? prompt[prompt.length - 1] : prompt;
  const content = last && typeof last === "object" ? last.content : last;
  const named = row.source && typeof row.source === "object" ? Object.values(row.source).join(" · ") : row.source;
  return typeof content === "string" ? content : content ? JSON.stringify(content) : Object.values(row.answers)[0]?.text || String(named || "");
}
/* The first metric that changed, else the weightiest one. */
function moved(row, model, against) {
  const after = row.answers[model]?.scores || {}, before = model === against ? {} : row.answers[against]?.scores || {};
  const names = Object.keys(data.signs[row.set] || {}).filter((one) => has(after, one));
  const name = names.find((one) => has(before, one) && before[one] !== after[one]) || names[0];
  return name ? `${name.replaceAll("_", " ")} ${has(before, name) ? `${number(before[name])} → ` : ""}${number(after[name])}` : "";
}
const WORDS = { better: "▲ ", worse: "▼ ", same: "", "": "" };
function card(row, model, against, marks) {
  const change = standing(gains(row, model, against));
  const question = text(element("span", "asked"), asked(row).slice(0, 240).replace(/\s+/g, " "));
  question.dir = "auto";
  const summary = element("summary", "", text(element("span", "where"), `${row.set} ${row.row}`), question,
    element("span", `moved ${change}`, element("span", "hidden", change ? `${change}: ` : ""), (WORDS[change] || "") + moved(row, model, against)));
  const made = element("details", "row", summary);
  made.addEventListener("toggle", () => {
    if (!made.open || made.children.length > 1) return;
    const inside = element("div", "inside");
    fill(inside, row, model, against, marks);
    made.append(inside);
  });
  return made;
}

function haystack(row) {
  if (!row.hay) row.hay = [row.set, row.row, asked(row), JSON.stringify(row.prompt), typeof row.reference === "string" ? row.reference : JSON.stringify(row.reference),
    ...Object.values(row.answers).map((one) => one.text)].join("\n").toLowerCase();
  return row.hay;
}
function draw() {
  const { search, set, model, against, order, show, marks } = tools, needle = search.value.trim().toLowerCase();
  const rows = data.rows.filter((row) => (!set.value || row.set === set.value) && has(row.answers, model.value) && (!needle || haystack(row).includes(needle)))
    .map((row) => ({ row, change: gains(row, model.value, against.value) }))
    .filter((one) => !show.value || standing(one.change) === show.value);
  const none = [Infinity], sign = order.value === "best" ? -1 : 1;
  if (order.value !== "row") rows.sort((a, b) => sign * compare(a.change.length ? a.change : none, b.change.length ? b.change : none) || data.rows.indexOf(a.row) - data.rows.indexOf(b.row));
  else rows.sort((a, b) => data.sets.indexOf(a.row.set) - data.sets.indexOf(b.row.set) || a.row.row - b.row.row);
  list.replaceChildren(...rows.slice(0, shown).map((one) => card(one.row, model.value, against.value, marks.value)));
  if (!rows.length) list.append(element("p", "none", "No row fits."));
  count.textContent = rows.length === data.rows.length ? "" : `${rows.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} rows`;
  more.hidden = rows.length <= shown;
  more.textContent = `Show ${Math.min(MANY, rows.length - shown)} more`;
}
function option(where, value, words) { const made = element("option", "", words ?? value); made.value = value; where.append(made); }

option(tools.set, "", "all sets");
for (const name of data.sets) option(tools.set, name);
for (const label of data.models) { option(tools.model, label); option(tools.against, label); }
tools.model.value = data.models[data.models.length - 1];
tools.against.value = data.models[0];
for (const one of Object.values(tools)) one.addEventListener("input", () => { shown = MANY; draw(); });
more.addEventListener("click", () => {
  const from = shown;
  shown += MANY;
  draw();
  list.children[from]?.querySelector("summary").focus();
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) { event.preventDefault(); tools.search.focus(); }
  if (event.key === "Escape" && typing === tools.search) { tools.search.value = ""; shown = MANY; draw(); }
  const step = { j: 1, k: -1 }[event.key];
  if (step && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const all = [...list.querySelectorAll(".row > summary")], at = all.indexOf(document.activeElement);
    all[Math.max(0, Math.min(all.length - 1, at + step))]?.focus();
  }
});
draw();
