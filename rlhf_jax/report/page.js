"use strict";

const read = id => JSON.parse(document.getElementById(id).textContent);

// ------------------------------------------------------------------- charts

const COLOURS = ["#2f7fc1", "#d9771f", "#2c9f73", "#c0508f", "#8a6fd1",
                 "#8c8c3a", "#7a7a7a"];
const DASHES = ["solid", "dash", "dot", "dashdot"];

async function loadPlotly() {
  const packed = atob(document.getElementById("plotly").textContent);
  const bytes = Uint8Array.from(packed, character => character.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(
      new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
}

// Of one run, a colour is a metric; of several it is a run.
function toTrace(line, metrics, runs) {
  const metric = metrics.indexOf(line.metric);
  const isAlone = runs.length === 1;
  const colour = isAlone ? metric : line.run;
  const names = [];
  if (!isAlone) names.push(runs[line.run]);
  if (isAlone || metrics.length > 1) names.push(line.metric);
  return {
    x: line.x, y: line.y, name: names.join(", "), type: "scatter",
    mode: line.x.length > 40 ? "lines" : "lines+markers",
    line: {width: 1.5, color: COLOURS[colour % COLOURS.length],
           dash: isAlone ? "solid" : DASHES[metric % DASHES.length]},
    marker: {size: 5},
  };
}

function draw(chart, runs) {
  const plot = document.querySelector(`#${CSS.escape(chart.id)} .plot`);
  const metrics = [...new Set(chart.lines.map(line => line.metric))];
  const axis = {fixedrange: true};
  plot.style.height = `${240 + 17 * Math.max(0, chart.lines.length - 2)}px`;
  Plotly.newPlot(
      plot, chart.lines.map(line => toTrace(line, metrics, runs)),
      {margin: {l: 45, r: 10, t: 8, b: 25}, hovermode: "x unified",
       showlegend: true, legend: {orientation: "h", y: -.2},
       font: {size: 11, family: "inherit"},
       paper_bgcolor: "transparent", plot_bgcolor: "transparent",
       xaxis: axis, yaxis: axis},
      {displayModeBar: false, responsive: true});
  // With a viewBox the style sheet can size a chart for print.
  const scale = () => plot.querySelectorAll(".main-svg").forEach(
      svg => svg.setAttribute(
          "viewBox",
          `0 0 ${svg.getAttribute("width")} ${svg.getAttribute("height")}`));
  plot.on("plotly_afterplot", scale);
  scale();
}

async function drawAll() {
  const {runs, charts} = read("chart-data");
  if (charts.length && typeof DecompressionStream === "undefined") {
    document.getElementById("no-charts").hidden = false;
  } else if (charts.length) {
    await loadPlotly();
    for (const chart of charts) {
      draw(chart, runs);
      await new Promise(done => setTimeout(done));  // the page stays usable
    }
  }
  document.body.dataset.charts = "drawn";
}

// ------------------------------------------------------------------ samples

const PAGE = 10;
const MEASURES = {gold: "gold", score: "score", judge_score: "judge",
                  kl: "KL"};

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function fill(select, values, texts = values) {
  select.replaceChildren(...values.map(
      (value, i) => new Option(texts[i], value)));
}

function change(row, measure, from, to) {
  const [before, after] = [from, to].map(
      policy => row.responses[policy]?.[measure]);
  return before === undefined || after === undefined ? NaN : after - before;
}

function chosenRows(rows, form) {
  const text = form.text.value.trim().toLowerCase();
  const has = row => [row.prompt, ...Object.values(row.responses).map(
      response => response.text)].some(
          part => part.toLowerCase().includes(text));
  const found = rows.filter(
      row => (!form.category.value || row.category === form.category.value)
          && has(row));
  if (form.order.value === "file") return found;
  const sign = form.order.value === "rise" ? -1 : 1;
  const by = row => sign * change(
      row, form.measure.value, form.from.value, form.to.value);
  return found.filter(row => !isNaN(by(row))).sort((a, b) => by(a) - by(b));
}

function showResponse(policy, response) {
  const section = make("section");
  section.append(make("h4", "", policy));
  if (!response) {
    section.append(make("p", "figures", "was not shown this prompt"));
    return section;
  }
  const figures = Object.entries(MEASURES)
      .filter(([name]) => response[name] !== undefined)
      .map(([name, label]) => `${label}\u00a0${response[name].toFixed(2)}`);
  section.append(make("p", "texts", response.text),
                 make("p", "figures", figures.join(" · ")));
  return section;
}

function showRow(row, form, policies) {
  const article = make("article");
  article.append(make("p", "texts prompt", row.prompt));
  if (row.category) article.append(make("span", "tag", row.category));
  const found = change(
      row, form.measure.value, form.from.value, form.to.value);
  if (form.order.value !== "file") {
    article.append(make("span", "figures", ` ${MEASURES[form.measure.value]} ${
        found < 0 ? "−" : "+"}${Math.abs(found).toFixed(2)}`));
  }
  const responses = make("div", "responses");
  responses.append(...policies.map(
      policy => showResponse(policy, row.responses[policy])));
  article.append(responses);
  return article;
}

function startBrowser() {
  const {rows, policies, shown: checked} = read("sample-data");
  const form = document.getElementById("browser").elements;
  const list = document.getElementById("list");
  const more = document.getElementById("more");
  const measures = Object.keys(MEASURES).filter(name => rows.some(
      row => Object.values(row.responses).some(of => of[name] !== undefined)));
  const counts = new Map();
  rows.forEach(row => counts.set(
      row.category, (counts.get(row.category) ?? 0) + 1));
  const categories = [...counts.keys()].filter(Boolean).sort();
  fill(form.category, ["", ...categories], [
      `all (${rows.length})`,
      ...categories.map(name => `${name} (${counts.get(name)})`)]);
  fill(form.measure, measures, measures.map(name => MEASURES[name]));
  fill(form.from, policies);
  fill(form.to, policies);
  form.from.value = policies.find(name => /\bsft/.test(name)) ?? policies[0];
  form.to.value = policies.at(-1);
  const boxes = policies.map(policy => {
    const label = make("label"), box = make("input");
    box.type = "checkbox";
    box.checked = checked.includes(policy);
    box.value = policy;
    label.append(box, ` ${policy}`);
    document.querySelector("#browser fieldset").append(label);
    return box;
  });

  let shown = PAGE;
  const show = () => {
    const found = chosenRows(rows, form);
    const names = boxes.filter(box => box.checked).map(box => box.value);
    list.replaceChildren(...found.slice(0, shown).map(
        row => showRow(row, form, names)));
    more.hidden = found.length <= shown;
    document.getElementById("count").textContent =
        `${Math.min(shown, found.length)} of ${found.length} prompts`;
  };
  document.getElementById("browser").addEventListener("input", () => {
    shown = PAGE;
    show();
  });
  document.getElementById("browser").addEventListener(
      "submit", event => event.preventDefault());
  more.addEventListener("click", () => {
    shown += PAGE;
    show();
  });
  show();
}

if (document.getElementById("browser")) startBrowser();
drawAll();
