--- page.lua: the one page of `dutch-master web`. No build step, nothing from elsewhere; whatever a master or a worker
-- said is put in by textContent alone, so that it stays text.
-- Longer than 400 lines: one page, which is text.

local M = {}

M.html = [==[
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>dutch-master</title>
<link rel="stylesheet" href="/app.css">
<script src="/app.js" defer></script>
</head>
<body>
<a class="skip" href="#main">Skip to the workers</a>
<header>
  <h1><span class="mark" aria-hidden="true"><i></i><i></i><i></i></span>dutch-master</h1>
  <span id="host"></span>
  <span id="link" role="status" data-state="off">connecting</span>
</header>
<div id="shell">
  <nav aria-label="Masters"><ul id="masters"></ul></nav>
  <main id="main" tabindex="-1">
    <section id="empty"><h2>Looking for masters</h2><p>They appear here as soon as they are started.</p></section>
    <div id="detail" hidden>
      <section class="head">
        <div><h2 id="name"></h2><p id="script"></p></div>
        <p id="state" class="pill"></p>
      </section>
      <section id="restart" aria-live="polite" hidden>
        <p id="restart-text"></p><div class="bar"><i id="restart-bar"></i></div>
      </section>
      <dl id="facts"></dl>
      <section id="plots" aria-label="The last minutes"></section>
      <section aria-labelledby="workers-title">
        <h3 id="workers-title">Workers</h3>
        <div class="scroll" tabindex="0" aria-labelledby="workers-title">
        <table><thead><tr id="columns"></tr></thead><tbody id="workers"></tbody></table></div>
      </section>
      <div class="two">
      <section aria-labelledby="exits-title">
        <h3 id="exits-title">Last exits</h3><div id="exits"></div>
      </section>
      <section aria-labelledby="log-title" class="log">
        <div class="tools">
          <h3 id="log-title">Log</h3>
          <div role="tablist" aria-label="Which log">
            <button role="tab" id="tab-output" aria-controls="lines">Workers</button>
            <button role="tab" id="tab-events" aria-controls="lines">Master</button>
          </div>
          <input id="filter" type="search" placeholder="Filter  /" aria-label="Filter the log" autocomplete="off">
          <button id="pause" aria-pressed="false">Pause</button>
        </div>
        <div id="lines" role="tabpanel" tabindex="0"></div>
      </section>
      </div>
    </div>
  </main>
</div>
<footer><kbd>1</kbd>-<kbd>9</kbd> master <kbd>/</kbd> filter <kbd>p</kbd> pause <kbd>l</kbd> other log
<span>Looks only; <code>dutch-master restart --wait</code> does.</span></footer>
</body>
</html>
]==]

M.css = [==[
:root {
  --bg: #f5f6f8; --card: #fff; --ink: #17202c; --soft: #5a6675; --line: #e1e5ea; --accent: #0b62d6; --hover: #eef2f7;
  --good: #0f7a3d; --good-bg: #def3e5; --warn: #8a5200; --warn-bg: #fdeccb; --bad: #b3202a; --bad-bg: #fbe0e1;
  --calm: #175fa8; --calm-bg: #dfecfa; --grid: #edf0f3; --shadow: 0 1px 2px rgba(20, 30, 45, .07);
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Consolas, monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #10141a; --card: #181e26; --ink: #e4e9f0; --soft: #97a4b4; --line: #29323d; --accent: #6cb0ff;
    --hover: #202833; --good: #66d493; --good-bg: #15341f; --warn: #f2bd62; --warn-bg: #3a2c10; --bad: #ff8d90;
    --bad-bg: #431c20; --calm: #86bfff; --calm-bg: #16304d; --grid: #222a34; --shadow: none;
  }
}
* { box-sizing: border-box; scrollbar-color: var(--line) transparent; scrollbar-width: thin; }
[hidden] { display: none !important; }
html { font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
body { margin: 0; background: var(--bg); color: var(--ink); min-height: 100vh; display: flex; flex-direction: column; }
h1, h2, h3, p, ul, dl, dd { margin: 0; padding: 0; }
.skip { position: absolute; left: -99em; }
.skip:focus { left: 1rem; top: .5rem; background: var(--card); padding: .5rem 1rem; z-index: 2; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
header { display: flex; align-items: center; gap: .9rem; padding: .7rem 1.25rem; background: var(--card);
  border-bottom: 1px solid var(--line); }
h1 { font-size: 1.05rem; font-weight: 650; display: flex; align-items: center; gap: .55rem; letter-spacing: -.01em; }
.mark { display: inline-grid; gap: 3px; width: 1.15rem; }
.mark i { height: 4px; border-radius: 2px; background: #ae1c28; }
.mark i:nth-child(2) { background: var(--soft); opacity: .45; }
.mark i:nth-child(3) { background: #21468b; }
@media (prefers-color-scheme: dark) { .mark i:nth-child(3) { background: #5a86d8; } .mark i { background: #d8505b; } }
#host { color: var(--soft); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; min-width: 0; }
#link { margin-left: auto; color: var(--soft); font-size: .87rem; white-space: nowrap; }
#link::before { content: ""; display: inline-block; width: .55rem; height: .55rem; border-radius: 50%;
  background: var(--warn); margin-right: .45rem; }
#link[data-state=on]::before { background: var(--good); }
#link[data-state=off]::before { background: var(--bad); }
#shell { display: grid; grid-template-columns: 17rem minmax(0, 1fr); flex: 1; max-width: 110rem; width: 100%; margin: 0 auto; }
nav { padding: 1rem 0 1rem 1.25rem; }
nav ul { list-style: none; display: grid; gap: .5rem; position: sticky; top: 1rem; }
nav button { all: unset; box-sizing: border-box; width: 100%; cursor: pointer; padding: .6rem .8rem; border-radius: 9px;
  border: 1px solid transparent; display: grid; grid-template-columns: auto 1fr auto; gap: 0 .6rem; align-items: center; }
nav button:hover { background: var(--hover); }
nav button[aria-current=true] { background: var(--card); border-color: var(--line); box-shadow: var(--shadow); }
nav button:focus-visible { outline: 2px solid var(--accent); }
nav b { font-weight: 600; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
nav small { grid-column: 2 / -1; color: var(--soft); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
nav .count { color: var(--soft); font-variant-numeric: tabular-nums; }
.dot { width: .6rem; height: .6rem; border-radius: 50%; background: var(--soft); }
.dot.good { background: var(--good); } .dot.calm { background: var(--calm); }
.dot.warn { background: var(--warn); } .dot.bad { background: var(--bad); }
main { padding: 1rem 1.25rem 2rem; min-width: 0; outline: none; }
#empty { text-align: center; padding: 18vh 1rem; color: var(--soft); }
#empty h2 { color: var(--ink); font-size: 1.2rem; margin-bottom: .3rem; }
#detail { display: grid; gap: 1rem; grid-template-columns: minmax(0, 1fr); }
.head { display: flex; align-items: flex-start; gap: 1rem; justify-content: space-between; }
.head div { min-width: 0; }
.head h2 { font-size: 1.45rem; letter-spacing: -.02em; line-height: 1.2; overflow-wrap: anywhere; }
#script { color: var(--soft); font-size: .87rem; font-family: var(--mono); overflow-wrap: anywhere; }
.pill { display: inline-block; padding: .12rem .6rem; border-radius: 99px; font-size: .8rem; font-weight: 600;
  white-space: nowrap; background: var(--hover); color: var(--soft); }
.pill.good { background: var(--good-bg); color: var(--good); } .pill.warn { background: var(--warn-bg); color: var(--warn); }
.pill.bad { background: var(--bad-bg); color: var(--bad); } .pill.calm { background: var(--calm-bg); color: var(--calm); }
#restart { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem;
  box-shadow: var(--shadow); border-left: 4px solid var(--calm); }
#restart.good { border-left-color: var(--good); } #restart.bad { border-left-color: var(--bad); }
#restart.warn { border-left-color: var(--warn); }
#restart-text { white-space: pre-wrap; overflow-wrap: anywhere; }
.bar { height: 6px; border-radius: 3px; background: var(--grid); margin-top: .55rem; overflow: hidden; }
.bar i { display: block; height: 100%; width: 100%; background: var(--calm); transform-origin: left;
  transition: transform .4s; }
@media (prefers-reduced-motion: reduce) { .bar i { transition: none; } }
#facts { display: flex; flex-wrap: wrap; gap: .6rem 2rem; }
#facts dt { color: var(--soft); font-size: .8rem; }
#facts dd { font-variant-numeric: tabular-nums; font-weight: 600; overflow-wrap: anywhere; }
#plots { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: 1rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem .9rem .5rem;
  box-shadow: var(--shadow); }
figcaption { display: flex; justify-content: space-between; align-items: baseline; gap: .5rem; color: var(--soft);
  font-size: .82rem; white-space: nowrap; }
figcaption b { color: var(--ink); font-size: 1rem; font-variant-numeric: tabular-nums; }
figure svg { display: block; width: 100%; height: 64px; margin-top: .35rem; overflow: visible; }
figure .area { fill: var(--calm); opacity: .14; } figure .stroke { fill: none; stroke: var(--calm); stroke-width: 1.6;
  vector-effect: non-scaling-stroke; stroke-linejoin: round; }
figure .base { stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke; }
figure .axis { display: flex; justify-content: space-between; color: var(--soft); font-size: .72rem; }
h3 { font-size: .95rem; margin-bottom: .5rem; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  box-shadow: var(--shadow); max-height: 34rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: .8rem; position: sticky; top: 0;
  background: var(--card); z-index: 1; box-shadow: inset 0 -1px var(--line); }
th, td { padding: .42rem .75rem; white-space: nowrap; }
td { border-top: 1px solid var(--grid); } tbody tr:first-child td { border-top: 0; }
tbody tr:hover { background: var(--hover); }
.num { text-align: right; }
td.path { font-family: var(--mono); font-size: .82rem; color: var(--soft); max-width: min(26rem, 30vw); overflow: hidden;
  text-overflow: ellipsis; direction: rtl; text-align: left; }
tr.new td { animation: arrive 1.6s; }
@keyframes arrive { from { background: var(--calm-bg); } }
@media (prefers-reduced-motion: reduce) { tr.new td { animation: none; } }
.two { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 7fr); gap: 1rem; align-items: start; }
#exits { display: grid; gap: .5rem; max-height: 26rem; overflow-y: auto; }
#exits details { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--line);
  border-radius: 10px; padding: .55rem .8rem; }
#exits details.bad { border-left-color: var(--bad); }
#exits summary { cursor: pointer; overflow-wrap: anywhere; }
#exits pre { margin: .5rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; font: .82rem/1.5 var(--mono); color: var(--soft); }
#exits p { color: var(--soft); }
.tools { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin-bottom: .5rem; }
.tools h3 { margin: 0 .4rem 0 0; }
.tools [role=tablist] { display: flex; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.tools button, .tools input { font: inherit; font-size: .86rem; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; padding: .25rem .7rem; }
.tools [role=tab] { border: 0; border-radius: 0; cursor: pointer; color: var(--soft); }
.tools [role=tab][aria-selected=true] { background: var(--calm-bg); color: var(--calm); font-weight: 600; }
.tools input { flex: 1 1 8rem; min-width: 6rem; }
#pause { cursor: pointer; } #pause[aria-pressed=true] { background: var(--warn-bg); color: var(--warn); }
#lines { background: var(--card); border: 1px solid var(--line); border-radius: 10px; height: 26rem; overflow: auto;
  font: .82rem/1.55 var(--mono); padding: .5rem 0; overflow-anchor: none; }
#lines div { padding: 0 .9rem; white-space: pre-wrap; overflow-wrap: anywhere; }
#lines div:hover { background: var(--hover); }
#lines time { color: var(--soft); margin-right: .8em; }
#lines .who { margin-right: .8em; color: var(--calm); } #lines .err { color: var(--bad); }
#lines .warn { color: var(--warn); } #lines .dim { color: var(--soft); }
#lines .none { color: var(--soft); font-family: system-ui, sans-serif; padding: .4rem .9rem; }
footer { padding: .7rem 1.25rem; border-top: 1px solid var(--line); color: var(--soft); font-size: .8rem; display: flex;
  gap: .35rem; flex-wrap: wrap; align-items: baseline; }
footer span { margin-left: auto; }
kbd, code { font-family: var(--mono); font-size: .92em; background: var(--hover); border: 1px solid var(--line);
  border-radius: 4px; padding: 0 .3em; }
@media (max-width: 62rem) {
  #shell { grid-template-columns: minmax(0, 1fr); }
  nav { padding: .8rem 1.25rem 0; }
  nav ul { display: flex; overflow-x: auto; position: static; padding-bottom: .2rem; }
  nav li { flex: 0 0 auto; max-width: 16rem; } nav button { background: var(--card); border-color: var(--line); }
  nav button[aria-current=true] { border-color: var(--accent); }
  .two { grid-template-columns: minmax(0, 1fr); }
  #plots { grid-auto-flow: row; grid-template-columns: repeat(2, minmax(0, 1fr)); }
  [data-name=Pid], [data-name=Restarts], [data-name=Gen] { display: none; }
}
@media (max-width: 34rem) {
  header, main, nav, footer { padding-left: .9rem; padding-right: .9rem; }
  nav small { display: none; }
  #plots { gap: .6rem; } figure .axis span:first-child { display: none; } figure .axis { justify-content: flex-end; }
  figure { padding: .5rem .6rem .35rem; }
  figure svg { height: 44px; } #facts { gap: .5rem 1.4rem; }
  thead { display: none; } table, tbody { display: block; }
  [data-name=Lag] { display: none; }
  .scroll { max-height: 42rem; } tbody tr { display: grid; grid-template-columns: repeat(4, auto); gap: .35rem .6rem; padding: .6rem .8rem;
    border-top: 1px solid var(--grid); }
  tbody tr:first-child { border-top: 0; }
  td { border: 0; padding: 0; text-align: left !important; }
  td::before { content: attr(data-name); display: block; color: var(--soft); font-size: .72rem; }
  td.path { grid-column: 1 / -1; max-width: none; } footer span { margin-left: 0; }
}
]==]

M.js = [==[
'use strict';
(() => {
const SAMPLES = 300, RECORDS = 300, LINES = 500;
const $ = (id) => document.getElementById(id);
const masters = new Map(); // id -> { master, samples, records, lines, exits, gone }
let chosen = null, log = 'output', paused = false, dirty = false, known = new Set();

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = text;
  return node;
}
function set(node, text) { if (node.textContent !== text) node.textContent = text; }

function duration(ms) {
  if (typeof ms !== 'number') return '-';
  const s = ms / 1000;
  if (s < 10) return s.toFixed(1) + 's';
  if (s < 60) return Math.floor(s) + 's';
  if (s < 3600) return Math.floor(s / 60) + 'm' + String(Math.floor(s % 60)).padStart(2, '0') + 's';
  if (s < 86400) return Math.floor(s / 3600) + 'h' + String(Math.floor(s % 3600 / 60)).padStart(2, '0') + 'm';
  return Math.floor(s / 86400) + 'd' + String(Math.floor(s % 86400 / 3600)).padStart(2, '0') + 'h';
}
function memory(kb) {
  if (typeof kb !== 'number') return '-';
  if (kb < 1024) return Math.round(kb) + ' K';
  return kb < 1048576 ? (kb / 1024).toFixed(1) + ' M' : (kb / 1048576).toFixed(2) + ' G';
}
function seconds(s) { return typeof s === 'number' ? (s < 1 ? Math.round(s * 1000) + ' ms' : s.toFixed(2) + ' s') : '-'; }
const number = (n, digits) => typeof n === 'number' ? n.toFixed(digits || 0) : '-';

const TONE = { running: 'good', steady: 'good', starting: 'warn', preparing: 'warn', booting: 'warn', rolling: 'calm',
  retiring: 'calm', settling: 'calm', stopping: 'warn', disconnected: 'warn', terminating: 'warn', killing: 'bad',
  waiting: 'bad' };
const AWAY = { dead: 'not running', hangs: 'does not answer', foreign: "another user's", failed: 'refuses' };

function toneOf(entry) {
  const m = entry.master;
  if (m.up === false) return 'bad';
  if (m.state === 'steady' && m.serving < m.wanted) return 'warn';
  return TONE[m.state] || 'warn';
}

// -- the list of masters
function drawMasters() {
  const list = $('masters');
  const ids = [...masters.keys()].sort((a, b) => {
    const x = masters.get(a).master.script || a, y = masters.get(b).master.script || b;
    return x < y ? -1 : x > y ? 1 : 0;
  });
  if ((!chosen || !masters.has(chosen)) && ids.length) chosen = ids[0];
  ids.forEach((id, i) => {
    let item = list.children[i];
    if (!item) {
      item = make('li');
      const button = make('button');
      button.append(make('span', 'dot'), make('b'), make('span', 'count'), make('small'));
      button.addEventListener('click', () => choose(button.dataset.id));
      item.append(button);
      list.append(item);
    }
    const button = item.firstChild, entry = masters.get(id), m = entry.master;
    button.dataset.id = id;
    button.setAttribute('aria-current', String(id === chosen));
    button.children[0].className = 'dot ' + toneOf(entry);
    set(button.children[1], m.name || id);
    set(button.children[2], m.up === false ? '' : m.serving + '/' + m.wanted);
    set(button.children[3], m.up === false ? AWAY[m.problem] || 'away' : m.roll ? 'restarting' : m.state);
    button.title = m.script || '';
  });
  while (list.children.length > ids.length) list.lastChild.remove();
  $('empty').hidden = ids.length > 0;
  $('detail').hidden = ids.length === 0;
  if (!ids.length && $('link').dataset.state === 'on') {
    set($('empty').firstElementChild, 'No master runs here');
  }
  return ids;
}

function choose(id) {
  if (!masters.has(id)) return;
  chosen = id;
  known = new Set();
  drawAll();
}

// -- facts, restart
function drawHead(m) {
  set($('name'), m.name || chosen);
  set($('script'), m.script || '');
  const state = $('state');
  set(state, m.up === false ? AWAY[m.problem] || 'away' : m.roll ? 'restarting' : m.state);
  state.className = 'pill ' + toneOf({ master: m });
  document.title = (m.name || 'dutch-master') + ' · ' + state.textContent;
}

const RESULT = { done: ['good', 'The last restart is done'], aborted: ['bad', 'The last restart was aborted: the old release serves'],
  rolled_back: ['bad', 'The last restart was rolled back: the old release serves'],
  superseded: ['calm', 'The last restart was superseded by a later one'], stopped: ['warn', 'The last restart was cut short by a stop'] };

function drawRestart(m) {
  const box = $('restart'), v = m.last_verdict;
  box.hidden = m.up === false || !(m.roll || v);
  if (box.hidden) return;
  const bar = $('restart-bar');
  if (m.roll) {
    box.className = '';
    set($('restart-text'), 'Restarting: ' + m.roll.done + ' of ' + m.roll.total + (m.roll.back ? ' rolled back' : ' replaced') +
      ', ' + duration(m.roll.elapsed_ms) + ', generation ' + m.roll.generation);
    bar.parentNode.hidden = false;
    bar.style.transform = 'scaleX(' + (m.roll.total ? m.roll.done / m.roll.total : 0) + ')';
    return;
  }
  const [tone, words] = RESULT[v.result] || ['warn', 'The last restart: ' + v.result];
  box.className = tone;
  bar.parentNode.hidden = true;
  let text = words + ' (generation ' + v.generation + ', ' + v.done + ' of ' + v.total + ' replaced, ' + duration(v.duration_ms) + ').';
  if (v.message && v.result !== 'done') text += '\n' + v.message;
  set($('restart-text'), text);
}

function drawFacts(m) {
  const facts = m.up === false ? [] : [['Serving', m.serving + ' of ' + m.wanted], ['Generation', m.generation],
    ['Up', duration(m.uptime_ms)], ['Restarts of workers', m.restarts], ['Master', 'pid ' + m.pid + ', ' + memory(m.master_rss_kb)],
    ['Version', m.version]];
  const list = $('facts');
  while (list.children.length > facts.length) list.lastChild.remove();
  facts.forEach(([name, value], i) => {
    let item = list.children[i];
    if (!item) { item = make('div'); item.append(make('dt'), make('dd')); list.append(item); }
    set(item.children[0], name);
    set(item.children[1], String(value));
  });
}

// -- plots
const SVG = 'http://www.w3.org/2000/svg';
const PLOTS = [
  { key: 'rate', name: 'Requests/s', show: (v) => v.toFixed(v < 10 ? 1 : 0), least: 1 },
  { key: 'cpu', name: 'CPU', show: (v) => v.toFixed(0) + ' %', least: 10 },
  { key: 'rss', name: 'Memory', show: memory, least: 1024 },
  { key: 'queue', name: 'Waiting', show: (v) => v.toFixed(0), least: 4 },
];
for (const plot of PLOTS) {
  const figure = make('figure'), caption = make('figcaption'), svg = document.createElementNS(SVG, 'svg');
  plot.value = make('b');
  caption.append(make('span', '', plot.name), plot.value);
  svg.setAttribute('viewBox', '0 0 300 64');
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('aria-hidden', 'true');
  plot.area = document.createElementNS(SVG, 'path'); plot.area.setAttribute('class', 'area');
  plot.stroke = document.createElementNS(SVG, 'path'); plot.stroke.setAttribute('class', 'stroke');
  const base = document.createElementNS(SVG, 'path');
  base.setAttribute('class', 'base'); base.setAttribute('d', 'M0 63.5H300');
  svg.append(base, plot.area, plot.stroke);
  const axis = make('div', 'axis');
  plot.since = make('span'); plot.most = make('span');
  axis.append(plot.since, plot.most);
  figure.append(caption, svg, axis);
  plot.figure = figure;
  $('plots').append(figure);
}

function drawPlots(entry) {
  for (const plot of PLOTS) {
    const values = entry.samples.map((s) => s[plot.key]).filter((v) => typeof v === 'number');
    plot.figure.hidden = values.length === 0 || entry.master.up === false;
    if (plot.figure.hidden) continue;
    const most = Math.max(plot.least, ...values), last = values[values.length - 1];
    const x = (i) => 300 - (values.length - 1 - i) * 300 / (SAMPLES - 1);
    const y = (v) => 62 - v / most * 58;
    const line = values.map((v, i) => (i ? 'L' : 'M') + x(i).toFixed(1) + ' ' + y(v).toFixed(1)).join('');
    plot.stroke.setAttribute('d', line);
    plot.area.setAttribute('d', line + 'V63.5H' + x(0).toFixed(1) + 'Z');
    set(plot.value, plot.show(last));
    set(plot.since, '5 min ago');
    set(plot.most, 'highest ' + plot.show(Math.max(...values)));
    plot.figure.setAttribute('aria-label', plot.name + ': ' + plot.show(last) + ' now');
  }
}

// -- workers
const COLUMNS = [
  ['Slot', 1, (w) => w.slot], ['Worker', 1, (w) => w.id || '-'], ['Pid', 1, (w) => w.pid || '-'], ['State', 0, (w) => w.state],
  ['Gen', 1, (w) => w.generation || '-'], ['Up', 1, (w) => duration(w.uptime_ms)], ['Restarts', 1, (w) => w.restarts || 0],
  ['Memory', 1, (w) => memory(w.rss_kb)], ['CPU', 1, (w) => typeof w.cpu === 'number' ? w.cpu.toFixed(0) + ' %' : '-'],
  ['Queue', 1, (w) => number(w.queue)], ['Req/s', 1, (w) => number(w.rate, 1), 'rate'], ['p95', 1, (w) => seconds(w.p95), 'rate'],
  ['Errors/s', 1, (w) => number(w.errors, 1), 'rate'], ['Lag', 1, (w) => seconds(w.lag), 'rate'], ['Release', 0, (w) => w.release || '-'],
];

function drawWorkers(m) {
  const workers = m.up === false ? [] : m.workers.slice();
  const held = new Set(workers.map((w) => w.slot));
  for (const s of m.up === false ? [] : m.slots) {
    if (!held.has(s.slot) && s.state !== 'drained') workers.push({ slot: s.slot, state: 'waiting', restarts: s.restarts });
  }
  workers.sort((a, b) => a.slot - b.slot || (a.id || 0) - (b.id || 0));
  const measured = workers.some((w) => typeof w.rate === 'number');
  const columns = COLUMNS.filter((c) => c[3] !== 'rate' || measured);
  const head = $('columns'), body = $('workers');
  if (head.children.length !== columns.length) {
    head.replaceChildren(...columns.map((c) => {
      const th = make('th', c[1] ? 'num' : '', c[0]);
      th.scope = 'col';
      th.dataset.name = c[0];
      return th;
    }));
    body.replaceChildren();
  }
  const rows = new Map([...body.children].map((row) => [row.dataset.key, row]));
  let place = body.firstChild;
  for (const w of workers) {
    const key = chosen + ' ' + w.slot + ' ' + (w.id || '');
    let row = rows.get(key);
    if (!row) {
      row = make('tr', known.size && w.id && !known.has(key) ? 'new' : '');
      row.dataset.key = key;
      for (const c of columns) {
        const cell = make('td', c[1] ? 'num' : c[0] === 'Release' ? 'path' : '');
        cell.dataset.name = c[0];
        if (c[0] === 'State') cell.append(make('span', 'pill'));
        if (c[0] === 'Release') cell.append(make('bdi'));
        row.append(cell);
      }
    }
    rows.delete(key);
    columns.forEach((c, i) => {
      const cell = row.children[i], target = cell.firstElementChild || cell;
      set(target, String(c[2](w)));
      if (c[0] === 'State') target.className = 'pill ' + (TONE[w.state] || 'warn');
      if (c[0] === 'Release') cell.title = w.release || '';
    });
    if (row === place) place = place.nextSibling;
    else body.insertBefore(row, place);
  }
  for (const row of rows.values()) row.remove();
  known = new Set(workers.map((w) => chosen + ' ' + w.slot + ' ' + (w.id || '')));
  if (!known.size) known.add('');
}

// -- exits
function drawExits(entry) {
  const box = $('exits');
  const text = JSON.stringify([chosen, entry.exits]);
  if (box.shown === text) return;
  box.shown = text;
  if (!entry.exits.length) return box.replaceChildren(make('p', '', 'No worker has ended yet.'));
  // Those that are there already stay as they are: somebody may be reading one.
  const before = new Map([...box.children].map((item) => [item.report, item]));
  box.replaceChildren(...entry.exits.map((exit, i) => {
    if (before.has(exit.text)) return before.get(exit.text);
    const [first, ...rest] = exit.text.split('\n');
    const item = make('details', exit.unexpected ? 'bad' : '');
    item.report = exit.text;
    item.open = i === 0 && exit.unexpected;
    item.append(make('summary', '', first), make('pre', '', rest.map((l) => l.replace(/^ {2}/, '')).join('\n')));
    return item;
  }));
}

// -- log
const LEVELS = { 10: 'trace', 20: 'debug', 30: 'info', 40: 'warn', 50: 'error', 60: 'fatal' };
const HIDDEN = new Set(['name', 'hostname', 'pid', 'level', 'msg', 'time', 'v']);
const clock = (date) => isNaN(date) ? '' : date.toTimeString().slice(0, 8) + '.' + String(date.getMilliseconds()).padStart(3, '0');

function lineNode(line) {
  const node = make('div');
  node.append(make('time', '', clock(new Date(line.time * 1000))), make('span', 'who', 'worker ' + line.worker),
    make('span', line.stream === 'stderr' ? 'err' : '', line.text.replace(/\u001b\[[\d;]*m/g, '')));
  return node;
}
function recordNode(record) {
  const node = make('div'), level = LEVELS[record.level] || '';
  const facts = Object.keys(record).filter((k) => !HIDDEN.has(k)).sort()
    .map((k) => k + '=' + (typeof record[k] === 'object' ? JSON.stringify(record[k]) : record[k])).join(' ');
  node.append(make('time', '', clock(new Date(record.time))),
    make('span', record.level >= 50 ? 'err' : record.level === 40 ? 'warn' : '', (level + '     ').slice(0, 6) + record.msg),
    make('span', 'dim', facts ? '  ' + facts : ''));
  return node;
}

function fitsFilter(node) {
  const wish = $('filter').value.trim().toLowerCase();
  node.hidden = wish !== '' && !node.textContent.toLowerCase().includes(wish);
}

function drawLog(entry) {
  const box = $('lines'), output = log === 'output';
  $('tab-output').setAttribute('aria-selected', String(output));
  $('tab-events').setAttribute('aria-selected', String(!output));
  $('tab-output').tabIndex = output ? 0 : -1;
  $('tab-events').tabIndex = output ? -1 : 0;
  const nodes = output ? entry.lines.map(lineNode) : entry.records.map(recordNode);
  nodes.forEach(fitsFilter);
  box.replaceChildren(...nodes);
  if (!nodes.length) {
    const kept = entry.master.kept || {};
    box.append(make('div', 'none', !output ? 'Nothing yet.' : kept.limit === 0 ? 'The master keeps nothing (keepOutput = 0).'
      : 'The workers have written nothing yet. Without keepOutput in the script only stderr is kept.'));
  }
  box.scrollTop = box.scrollHeight;
}

function append(node, most) {
  const box = $('lines'), end = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  const none = box.querySelector('.none');
  if (none) none.remove();
  fitsFilter(node);
  box.append(node);
  while (box.children.length > most) box.firstChild.remove();
  if (end) box.scrollTop = box.scrollHeight;
}

// -- drawing
function drawState() {
  dirty = false;
  drawMasters();
  const entry = masters.get(chosen);
  if (!entry) return;
  drawHead(entry.master);
  drawRestart(entry.master);
  drawFacts(entry.master);
  drawPlots(entry);
  drawWorkers(entry.master);
  drawExits(entry);
}
function drawAll() {
  drawState();
  const entry = masters.get(chosen);
  if (entry) drawLog(entry);
}
function soon() {
  if (dirty || paused || document.hidden) return;
  dirty = true;
  requestAnimationFrame(drawState);
}
document.addEventListener('visibilitychange', () => { if (!document.hidden && !paused) drawAll(); });

// -- what comes
function keep(list, item, most) { list.push(item); if (list.length > most) list.shift(); }
function entryOf(id) {
  let entry = masters.get(id);
  if (!entry) {
    entry = { master: { up: false, name: id }, samples: [], records: [], lines: [], exits: [] };
    masters.set(id, entry);
  }
  return entry;
}

const source = new EventSource('/events');
function link(state, text) { $('link').dataset.state = state; set($('link'), text); }
source.onopen = () => link('on', 'live');
source.onerror = () => link('off', source.readyState === EventSource.CLOSED ? 'refused, reload the page' : 'connection lost, trying again');
const on = (kind, fn) => source.addEventListener(kind, (event) => fn(JSON.parse(event.data)));

on('init', (data) => {
  masters.clear();
  set($('host'), data.hostname + ' · ' + data.version);
  for (const item of data.masters) masters.set(item.id, item);
  if (!paused) drawAll();
});
on('status', ({ master, sample }) => {
  const entry = entryOf(master.id);
  entry.master = master;
  keep(entry.samples, sample, SAMPLES);
  soon();
});
on('away', (master) => { entryOf(master.id).master = master; soon(); });
on('gone', ({ id }) => { masters.delete(id); soon(); });
on('exits', ({ id, exits }) => { entryOf(id).exits = exits; soon(); });
on('record', ({ id, record }) => {
  keep(entryOf(id).records, record, RECORDS);
  if (id === chosen && log === 'events' && !paused) append(recordNode(record), RECORDS);
});
on('line', ({ id, line }) => {
  keep(entryOf(id).lines, line, LINES);
  if (id === chosen && log === 'output' && !paused) append(lineNode(line), LINES);
});

// -- keys
function showLog(which) { log = which; drawAll(); }
function pause() {
  paused = !paused;
  $('pause').setAttribute('aria-pressed', String(paused));
  set($('pause'), paused ? 'Paused' : 'Pause');
  if (!paused) drawAll();
}
$('tab-output').addEventListener('click', () => showLog('output'));
$('tab-events').addEventListener('click', () => showLog('events'));
for (const tab of [$('tab-output'), $('tab-events')]) {
  tab.addEventListener('keydown', (event) => {
    if (event.key !== 'ArrowLeft' && event.key !== 'ArrowRight') return;
    showLog(log === 'output' ? 'events' : 'output');
    $('tab-' + log).focus();
  });
}
$('pause').addEventListener('click', pause);
$('filter').addEventListener('input', () => [...$('lines').children].forEach(fitsFilter));
document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === $('filter')) {
    if (event.key === 'Escape') { $('filter').value = ''; $('filter').blur(); [...$('lines').children].forEach(fitsFilter); }
    return;
  }
  if (event.key === '/') { event.preventDefault(); $('filter').focus(); }
  else if (event.key === 'p') pause();
  else if (event.key === 'l') showLog(log === 'output' ? 'events' : 'output');
  else if (/^[1-9]$/.test(event.key)) { const id = drawMasters()[event.key - 1]; if (id) choose(id); }
});
})();
]==]

return M
