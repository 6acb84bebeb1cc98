"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const neurons = data.neurons;
const overview = document.getElementById("top"), page = document.getElementById("neuron");
const language = document.getElementById("language");
const dark = window.matchMedia("(prefers-color-scheme: dark)"), narrow = window.matchMedia("(max-width: 600px)");
const COLOURS = ["#0b6e75", "#d1603d", "#5b7fd4", "#b8952d", "#7a5aa6", "#3f9b5f", "#c44d80", "#7d8590", "#8a6d3b", "#2aa1c0"];
const wanted = () => (language ? language.value : "");
const named = code => (Object.hasOwn(neurons.names, code) ? neurons.names[code] : code);

// Figures

function themed(figure) {
  const style = getComputedStyle(document.body);
  const [ink, line, card] = ["--ink", "--line", "--card"].map(name => style.getPropertyValue(name).trim());
  const {template, title, ...layout} = structuredClone(figure.layout);
  Object.assign(layout, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true, colorway: COLOURS,
    font: {color: ink, family: style.fontFamily, size: narrow.matches ? 11 : 13},
    margin: narrow.matches ? {l: 44, r: 8, t: 12, b: 44} : {l: 64, r: 24, t: layout.annotations ? 56 : 34, b: 56},
    hoverlabel: {bgcolor: card, bordercolor: line, font: {color: ink}, align: "left"},
    modebar: {bgcolor: "rgba(0,0,0,0)", color: line, activecolor: ink},
  });
  if (narrow.matches) layout.legend = {...layout.legend, orientation: "h", y: -0.22, x: 0};
  for (const axis of new Set(["xaxis", "yaxis", ...Object.keys(layout).filter(name => /^[xy]axis\d/.test(name))])) {
    Object.assign(layout[axis] ??= {}, {gridcolor: line, zerolinecolor: line, automargin: true});
    if (layout[axis].title?.text) layout[axis].title.standoff ??= 10;
  }
  const traces = structuredClone(figure.data);
  for (const trace of traces) {
    for (const bar of ["error_x", "error_y"]) if (trace[bar]) trace[bar].color ??= ink;
    if (wanted() && neurons.languages.includes(trace.name)) trace.visible = trace.name === wanted() || "legendonly";
    if (narrow.matches && trace.type === "heatmap") {
      delete trace.texttemplate;
      trace.colorbar = {...trace.colorbar, thickness: 10, title: undefined};
    }
  }
  return {traces, layout};
}

function draw(id, figure) {
  const {traces, layout} = themed(figure), place = document.getElementById(id);
  if (layout.height) place.style.height = `${layout.height}px`;
  Plotly.react(place, traces, layout, {responsive: true, displaylogo: false, displayModeBar: narrow.matches ? false : "hover", toImageButtonOptions: {filename: id}});
  if (!place.clickable) {
    place.clickable = true;
    place.on("plotly_click", event => {
      const point = event.points[0];
      if (point.data.meta === "neuron") location.hash = `neuron-${point.text}`;
    });
  }
}

function drawAll() {
  if (overview.hidden) return shownKey && drawNeuron(shownKey);
  for (const [id, figure] of Object.entries(data.figures)) draw(id, figure);
}

// Tables: sorted by a click on a heading, saved as CSV

const valuesOf = cell => JSON.parse(cell.dataset.values);

function order(left, right) {
  for (let i = 0; i < left.length; i++) {
    const [a, b] = [left[i], right[i]];
    if (a === b) continue;
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, {numeric: true});
  }
  return 0;
}

/** Text goes by what is shown, such as a language's name, numbers by their values. */
function sortedBy(cell) {
  const values = valuesOf(cell);
  return values.every(value => typeof value === "string") ? [cell.textContent] : values;
}

function sortBy(heading) {
  const body = heading.closest("table").tBodies[0], sign = heading.ariaSort === "ascending" ? -1 : 1;
  const rows = [...body.rows].map(row => [row, sortedBy(row.cells[heading.cellIndex])]);
  const missing = values => values.includes(null);
  rows.sort(([, a], [, b]) => missing(a) - missing(b) || sign * order(a, b));
  body.append(...rows.map(([row]) => row));
  for (const other of heading.parentNode.cells) other.ariaSort = "none";
  heading.ariaSort = sign > 0 ? "ascending" : "descending";
}

function csvField(value) {
  if (value === null) return "";
  if (typeof value === "number") return String(value);
  // A spreadsheet would run text that begins like a formula.
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv(table) {
  const names = [...table.tHead.rows[0].cells].flatMap(cell => JSON.parse(cell.dataset.names));
  const rows = [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => [...row.cells].flatMap(valuesOf));
  return [names, ...rows].map(row => row.map(csvField).join(",") + "\r\n").join("");
}

function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/csv;charset=utf-8"}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

document.addEventListener("click", event => {
  const heading = event.target.closest("th button"), button = event.target.closest("button.csv");
  if (heading) sortBy(heading.parentNode);
  if (button) save(button.dataset.file, csv(document.getElementById(button.dataset.table)));
});

function filterRows() {
  for (const row of document.querySelectorAll("tr[data-language]")) row.hidden = Boolean(wanted()) && row.dataset.language !== wanted();
}

// The page of one neuron

let shownKey = "";

function make(tag, properties = {}, ...children) {
  const {dataset, style, ...rest} = properties, element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.dataset, dataset);
  for (const [name, value] of Object.entries(style ?? {})) element.style.setProperty(name, value);
  element.append(...children);
  return element;
}

/** `columns` are [names, title, is text], rows {language, cells: [[text, values], ...]}. */
function tableOf(id, file, columns, rows) {
  const head = make("tr", {}, ...columns.map(([names, title, isText]) =>
    make("th", {scope: "col", ariaSort: "none", className: isText ? "text" : "", dataset: {names: JSON.stringify(names)}}, make("button", {type: "button"}, title))));
  const body = rows.map(({language, cells}) => make("tr", {dataset: language === undefined ? {} : {language}},
    ...cells.map(([text, values], i) => make("td", {className: columns[i][2] ? "text" : "", dir: columns[i][2] ? "auto" : "", dataset: {values: JSON.stringify(values)}}, text))));
  const tools = make("div", {className: "tools"}, make("button", {type: "button", className: "csv", dataset: {table: id, file}}, "CSV"));
  return [tools, make("div", {className: "scroll"}, make("table", {id}, make("thead", {}, head), make("tbody", {}, ...body)))];
}

/** 95 % interval by E. B. Wilson (1927). */
function wilson(hits, n) {
  const z2 = 1.96 ** 2, p = hits / n, centre = (p + z2 / (2 * n)) / (1 + z2 / n);
  const half = 1.96 * Math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n);
  return [Math.max(centre - half, 0), Math.min(centre + half, 1)];
}

function statistics(key) {
  const [layer, j] = key.split(".").map(Number), n = neurons.languages.length;
  const at = neurons.index ? neurons.index.indexOf(key) : layer * neurons.neurons + j;
  if (at < 0) return null;
  const rows = neurons.languages.map((name, k) => {
    const hits = neurons.active[at * n + k], tokens = neurons.tokens[k], [low, high] = wilson(hits, tokens);
    return {name, hits, tokens, p: hits / tokens, low, high, mean: neurons.mean[at * n + k], maximum: neurons.maximum[at * n + k]};
  });
  return {rows, entropy: neurons.entropy[at]};
}

const shortened = x => (x === null ? "–" : x !== 0 && Math.abs(x) < 1000 ? x.toPrecision(3) : String(x));

function profile(rows) {
  return {
    data: [{
      type: "bar", x: rows.map(r => r.name), y: rows.map(r => r.p), marker: {color: COLOURS[0]}, customdata: rows.map(r => [r.hits, r.tokens]),
      error_y: {type: "data", symmetric: false, array: rows.map(r => r.high - r.p), arrayminus: rows.map(r => r.p - r.low)},
      hovertemplate: "%{x}: %{y:.4f}<br>%{customdata[0]:,} of %{customdata[1]:,} tokens<extra></extra>",
    }],
    layout: {xaxis: {type: "category"}, yaxis: {title: {text: "activation probability"}, rangemode: "tozero"}},
  };
}

function example([peak, texts, values], name, highest) {
  const pieces = texts.map((text, i) => {
    if (!(values[i] > 0) && i !== peak) return text;
    const share = Math.round(12 + 68 * Math.max(values[i], 0) / highest);
    return make("mark", {className: i === peak ? "peak" : "", title: `activation ${values[i]}`, style: {"--share": share}}, text || "▯");
  });
  return make("div", {className: "example"}, make("span", {className: "height"}, shortened(values[peak])), make("span", {className: "text", lang: name, dir: "auto"}, ...pieces));
}

function examplesOf(key) {
  const found = neurons.examples[key];
  if (!found) return [make("p", {className: "note"}, "No examples are kept for this neuron; they are for neurons that belong to a language.")];
  const peak = name => found[name][0][2][found[name][0][0]];
  const names = Object.keys(found).sort((a, b) => peak(b) - peak(a)), highest = peak(names[0]);
  const chosen = names.filter(name => !wanted() || name === wanted());
  if (!chosen.length) return [make("p", {className: "note"}, `It is above zero nowhere in ${named(wanted())}.`)];
  return chosen.flatMap(name => [make("h3", {}, named(name)), make("div", {className: "examples"}, ...found[name].map(e => example(e, name, highest)))]);
}

function logitsOf(key) {
  const found = neurons.logits[key];
  if (!found) return [];
  const lists = [["promoted", "Raises", found[0]], ["suppressed", "Lowers", found[1]]].map(([id, title, tokens]) => make("div", {}, make("h3", {}, title),
    ...tableOf(`table-${id}`, `neuron-${key}-${id}.csv`, [[["token"], "token", true], [["effect"], "logits", false]],
      tokens.map(([token, effect]) => ({cells: [[token.replace(/^ /, "␣"), [token]], [shortened(effect), [effect]]]})))));
  return [make("h2", {}, "What it writes"), make("div", {className: "grid"}, ...lists), make("p", {className: "note"},
    "Direct effect of an activation of 1 on the logits: output row times unembedding, with the weight of the final norm folded in and its scale left at 1, less the mean over the vocabulary. What later layers make of it is not counted.")];
}

function steps(key) {
  const known = Object.keys(neurons.members).filter(k => !wanted() || neurons.members[k].includes(wanted()));
  const at = known.indexOf(key), link = (k, text) => make("a", {href: `#neuron-${k}`}, text);
  const around = at < 0 ? [] : [at > 0 && link(known[at - 1], `← ${known[at - 1]}`), at + 1 < known.length && link(known[at + 1], `${known[at + 1]} →`)];
  return make("div", {className: "steps"}, make("a", {href: "#section-neurons"}, "Overview"), ...around.filter(Boolean));
}

function problem(key) {
  const [layer, j] = key.split(".").map(Number);
  if (/^\d+\.\d+$/.test(key) && layer < neurons.layers && j < neurons.neurons) return "";
  return `There is no neuron “${key}”: give layer.neuron, with a layer of 0 to ${neurons.layers - 1} and a neuron of 0 to ${neurons.neurons - 1}.`;
}

function drawNeuron(key) {
  shownKey = key;
  const wrong = problem(key);
  if (wrong) return page.replaceChildren(steps(key), make("h1", {}, "Neuron"), make("p", {className: "lead"}, wrong));
  const found = statistics(key), groups = neurons.members[key];
  const lead = groups ? `Belongs to ${groups.map(named).join(", ")}.` : "Belongs to no language.";
  const parts = [steps(key), make("h1", {}, `Neuron ${key}`), make("p", {className: "lead"}, found ? `${lead} Entropy of its activation probabilities: ${shortened(found.entropy)} nats.` : lead)];
  if (found) {
    parts.push(make("figure", {}, make("h3", {}, `Share of tokens with an activation above ${neurons.threshold}, at site “${neurons.site}”`), make("div", {className: "plot", id: "profile"}),
      make("figcaption", {}, "Error bars: 95 % Wilson intervals over tokens.")));
    parts.push(...tableOf("table-neuron", `neuron-${key}.csv`,
      [[["language"], "language", true], [["active"], "active tokens", false], [["tokens"], "tokens", false], [["probability"], "activation probability", false], [["low", "high"], "95 % interval", false], [["mean"], "mean activation", false], [["maximum"], "highest", false]],
      found.rows.map(r => ({language: r.name, cells: [[named(r.name), [r.name]], [r.hits.toLocaleString("en"), [r.hits]], [r.tokens.toLocaleString("en"), [r.tokens]], [r.p.toFixed(4), [r.p]], [`${r.low.toFixed(4)} to ${r.high.toFixed(4)}`, [r.low, r.high]], [shortened(r.mean), [r.mean]], [shortened(r.maximum), [r.maximum]]]}))));
  } else parts.push(make("p", {className: "note"}, "This model has too many neurons for one page: it holds the statistics of language neurons only; those of the others are in stats.safetensors."));
  parts.push(make("h2", {}, "Where it is highest"), ...examplesOf(key), ...logitsOf(key));
  page.replaceChildren(...parts);
  filterRows();
  if (found) draw("profile", profile(found.rows));
}

// Which of the two is shown

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function route() {
  const hash = decoded(location.hash.slice(1)), isNeuron = Boolean(neurons) && hash.startsWith("neuron-");
  const before = overview.hidden;
  [overview.hidden, page.hidden] = [isNeuron, !isNeuron];
  if (isNeuron) {
    drawNeuron(hash.slice("neuron-".length));
    scrollTo(0, 0);
    return;
  }
  if (before || !drawn) drawAll();
  drawn = true;
  document.getElementById(hash)?.scrollIntoView();
}

let drawn = false;
document.getElementById("search")?.addEventListener("submit", event => {
  event.preventDefault();
  location.hash = `neuron-${encodeURIComponent(document.getElementById("wanted").value.trim())}`;
});
language?.addEventListener("change", () => { filterRows(); drawAll(); });
for (const media of [dark, narrow]) media.addEventListener("change", drawAll);
addEventListener("hashchange", route);
for (const [name, on] of [["beforeprint", true], ["afterprint", false]]) addEventListener(name, () => { document.documentElement.classList.toggle("printing", on); drawAll(); });
filterRows();
route();
