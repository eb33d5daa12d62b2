// The page of `grit serve`. It speaks to the same endpoints as every other client; text from the
// server is only ever set as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const stages = { encode_query: "encode", search: "search", load: "load", queue: "queue", prefill: "prefill", decode: "decode" };
let key = sessionStorage.getItem("grit-key") || "";
let model = "";
let turns = []; // {role, content} of the conversation, as the API takes them
let running = null; // AbortController of the answer that is being streamed

function element(tag, { text, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
}

async function request(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, {
    method: body === undefined ? "GET" : "POST", headers, signal,
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (response.ok) return response;
  if (response.status === 401) $("login").hidden = false;
  let message = `${response.status} ${response.statusText}`;
  try { message = (await response.json()).error.message; } catch { /* not an error of the API */ }
  throw new Error(message);
}

async function* events(response) {
  // Server-sent events: each `data:` line holds a JSON object, the last one [DONE].
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

const seconds = (x) => (x < 1 ? `${(1000 * x).toFixed(0)} ms` : `${x.toFixed(2)} s`);

function bars(...measured) {
  // One bar for each stage and way of reading: [label, timings, class].
  const longest = Math.max(...measured.flatMap(([, timings]) => Object.keys(stages).map((s) => timings[s] || 0)), 1e-9);
  const chart = element("div", { class: "bars", role: "group", "aria-label": "Seconds by stage" });
  for (const [stage, name] of Object.entries(stages)) {
    for (const [label, timings, kind] of measured) {
      const value = timings[stage] || 0;
      const bar = element("div", { class: `bar ${kind}` });
      bar.style.width = `${(100 * value) / longest}%`;
      chart.append(
        element("span", { text: measured.length > 1 ? `${name}, ${label}` : name }),
        element("div", {}, bar),
        element("span", { class: "num", text: seconds(value) }),
      );
    }
  }
  return chart;
}

function show(role) {
  const said = element("p", { class: "said" });
  const turn = element("div", { class: "turn" }, element("div", { class: "who", text: role }), said);
  $("turns").append(turn);
  turn.scrollIntoView({ block: "end" });
  return { turn, said };
}

function documents(found) {
  const list = element("details", { open: "" }, element("summary", { text: found.length === 1 ? "1 document" : `${found.length} documents` }));
  for (const { id, score, title, text } of found) {
    list.append(element("div", { class: "document" },
      element("div", { class: "soft", text: `${id}  ·  score ${Number(score).toFixed(3)}` }),
      ...(title ? [element("b", { text: title })] : []),
      element("div", { text: text || "" })));
  }
  return list;
}

async function answer(messages, mode, onText, signal) {
  const body = {
    model, messages, stream: true, stream_options: { include_usage: true },
    temperature: Number($("temperature").value), max_tokens: Number($("tokens").value),
  };
  if ($("store").value) Object.assign(body, { store: $("store").value, mode, k: Number($("k").value) });
  const result = { text: "", grit: {}, usage: null };
  for await (const event of events(await request("/v1/chat/completions", body, signal))) {
    if (event.error) throw new Error(event.error.message);
    Object.assign(result.grit, event.grit || {});
    if (event.usage) result.usage = event.usage;
    const delta = event.choices?.[0]?.delta?.content;
    if (delta) onText((result.text += delta));
  }
  return result;
}

function facts({ grit, usage }) {
  const parts = [];
  if (grit.mode) parts.push(["mode", grit.mode]);
  if (grit.cache) parts.push(["cache", grit.cache]);
  if (usage) {
    parts.push(["prompt", `${usage.prompt_tokens} tokens`]);
    const cached = usage.prompt_tokens_details?.cached_tokens;
    if (cached) parts.push(["from caches", `${cached} tokens`]);
    const made = usage.completion_tokens;
    parts.push(["answer", made === 1 ? "1 token" : `${made} tokens`]);
  }
  const line = element("p", { class: "facts" });
  parts.forEach(([name, value], i) => line.append(i ? "  ·  " : "", `${name} `, element("b", { text: value })));
  return line;
}

async function send() {
  const question = $("question").value.trim();
  if (!question || running) return;
  $("question").value = "";
  turns.push({ role: "user", content: question });
  show("you").said.textContent = question;
  const { turn, said } = show("model");
  const mode = $("mode").value;
  // These layouts read the question from a record of its own.
  const alone = $("store").value && ["query", "query-doc", "doc-query"].includes(mode);
  // The messages of this turn, kept for a comparison later on.
  const messages = alone ? [{ role: "user", content: question }] : [...turns];
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  try {
    const result = await answer(messages, mode, (text) => {
      said.textContent = text;
      turn.scrollIntoView({ block: "end" });
    }, running.signal);
    turns.push({ role: "assistant", content: result.text });
    turn.append(facts(result));
    if (result.grit.documents) turn.append(documents(result.grit.documents));
    if (result.grit.timings) {
      const times = element("details", {}, element("summary", { text: `Time: ${seconds(result.grit.timings.total)}` }), bars([mode, result.grit.timings, ""]));
      turn.append(times);
      if (!result.grit.mode?.includes("then")) times.append(comparison(messages, result, times));
    }
  } catch (error) {
    if (error.name === "AbortError") {
      turn.append(element("p", { class: "facts", text: "stopped" }));
      turns.push({ role: "assistant", content: said.textContent });
    } else {
      turn.append(element("p", { class: "error", role: "alert", text: error.message }));
      turns.pop();
    }
  } finally {
    running = null;
    $("send").hidden = false;
    $("stop").hidden = true;
    $("question").focus();
    turn.scrollIntoView({ block: "end" });
  }
}

function comparison(messages, cached, times) {
  // The same question with the documents read as text: what the cache saves.
  const button = element("button", { type: "button", text: "Compare with reading the documents" });
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const read = await answer(messages, "doc-then-query", () => {});
      times.querySelector(".bars").replaceWith(bars(["cached", cached.grit.timings, ""], ["read", read.grit.timings, "read"]));
      button.replaceWith(element("p", { class: "said", text: `Answer from reading: ${read.text}` }));
    } catch (error) {
      button.replaceWith(element("p", { class: "error", role: "alert", text: error.message }));
    }
  });
  return button;
}

const lines = (id) => $(id).value.split("\n").map((line) => line.trim()).filter(Boolean);

async function compare() {
  const [queries, texts] = [lines("queries"), lines("documents")];
  const place = $("matrix");
  if (!queries.length || !texts.length) {
    place.replaceChildren(element("p", { class: "error", role: "alert", text: "Both lists need at least one line." }));
    return;
  }
  const embed = async (input, instruction) => {
    const body = { model, input, encoding_format: "float" };
    if (instruction) body.instruction = instruction;
    return (await (await request("/v1/embeddings", body)).json()).data.map((item) => item.embedding);
  };
  try {
    const [q, d] = await Promise.all([embed(queries, $("instruction").value.trim()), embed(texts)]);
    const table = element("table", {}, element("caption", { class: "hidden", text: "Cosine similarities" }));
    table.append(element("tr", {}, element("th", { text: "" }), ...texts.map((text) => element("th", { scope: "col", text }))));
    q.forEach((x, i) => {
      const row = element("tr", {}, element("th", { scope: "row", text: queries[i] }));
      const scores = d.map((y) => x.reduce((sum, value, j) => sum + value * y[j], 0));
      const best = Math.max(...scores);
      for (const score of scores) {
        const cell = element("td", { text: score.toFixed(3), ...(score === best ? { class: "best" } : {}) });
        cell.style.background = `color-mix(in srgb, var(--main) ${Math.round(40 * Math.max(0, score))}%, var(--ground))`;
        row.append(cell);
      }
      table.append(row);
    });
    place.replaceChildren(element("p", { class: "soft", text: "Cosine similarities; the best document of each query has a frame." }), table);
  } catch (error) {
    place.replaceChildren(element("p", { class: "error", role: "alert", text: error.message }));
  }
}

async function connect() {
  try {
    const models = (await (await request("/v1/models")).json()).data;
    model = models[0].id;
    $("model").textContent = model;
    $("login").hidden = true;
    const stores = (await (await request("/v1/vector_stores")).json()).data;
    $("store").replaceChildren(element("option", { value: "", text: "none" }),
      ...stores.map(({ id, name, file_counts }) => element("option", { value: id, text: `${name || id} (${file_counts.total})` })));
    if (stores.length) $("store").value = stores[0].id;
    documentsChosen();
  } catch (error) {
    $("model").textContent = error.message;
  }
}

function documentsChosen() {
  for (const id of ["mode", "k"]) $(id).disabled = !$("store").value;
}

function choose(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !chosen;
    if (chosen) tab.focus();
  }
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = name === "dark" ? "Light" : "Dark";
}

const dark = matchMedia("(prefers-color-scheme: dark)");
theme(localStorage.getItem("grit-theme") || (dark.matches ? "dark" : "light"));
dark.addEventListener("change", () => localStorage.getItem("grit-theme") || theme(dark.matches ? "dark" : "light"));
$("theme").addEventListener("click", () => {
  theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  localStorage.setItem("grit-theme", document.documentElement.dataset.theme);
});
$("tab-chat").addEventListener("click", () => choose("chat"));
$("tab-compare").addEventListener("click", () => choose("compare"));
document.querySelector("nav").addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight" || event.key === "ArrowLeft") choose($("chat").hidden ? "chat" : "compare");
});
$("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => { running?.abort(); turns = []; $("turns").replaceChildren(); $("question").focus(); });
$("store").addEventListener("change", documentsChosen);
$("texts").addEventListener("submit", (event) => { event.preventDefault(); compare(); });
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  sessionStorage.setItem("grit-key", key);
  connect();
});
connect();
