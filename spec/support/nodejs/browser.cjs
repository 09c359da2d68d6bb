// A headless Chromium, driven over its DevTools protocol: node browser.cjs URL. Each line on stdin is a list of steps, and
// is answered by a line { results, complaints } when they are done, or { failed } when one was in vain. Ends when stdin does.
// Steps: { url } | { width, height, scheme } | { wait: 'expression' of the document } | { eval: 'expression' } |
// { shot: 'file.png', full } | { key: 'p' } | { memory: true }. A result for each eval and memory.
'use strict';
const { spawn } = require('child_process');
const fs = require('fs');
const os = require('os');
const path = require('path');
const readline = require('readline');

const LIMIT_MS = 90000 * (Number(process.env.DM_TIME_SCALE) || 1); // of a line of steps; of the start
const profile = fs.mkdtempSync(path.join(os.tmpdir(), 'dm-chromium-'));
const chromium = spawn(process.env.CHROMIUM || 'chromium', [
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--remote-debugging-port=0',
  `--user-data-dir=${profile}`, 'about:blank',
], { stdio: ['ignore', 'ignore', 'pipe'] });

function remove(code, until = Date.now() + 5000) {
  try {
    fs.rmSync(profile, { recursive: true, force: true });
    process.exit(code);
  } catch (error) { // its helpers are on their way out, and write their last
    if (Date.now() > until) throw error;
    setTimeout(remove, 50, code, until);
  }
}

function end(code) {
  if (chromium.exitCode !== null || chromium.signalCode !== null) return remove(code);
  chromium.once('exit', () => remove(code));
  return chromium.kill(code === 0 ? 'SIGTERM' : 'SIGKILL');
}

// What comes too late is a failure: within(promise, what).
function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`too slow: ${what()}`)), LIMIT_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

let said = '';
const endpoint = new Promise((resolve, reject) => {
  chromium.stderr.on('data', (data) => {
    said = (said + data).slice(-20000);
    const found = said.match(/DevTools listening on (ws:\S+)/);
    if (found) resolve(found[1]);
  });
  chromium.once('error', reject);
  chromium.once('exit', () => reject(new Error(`chromium ended: ${said}`)));
});
endpoint.catch(() => {});

async function connect(url) {
  const socket = new WebSocket(url);
  const open = new Map();
  const listeners = [];
  let next = 1;
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.id) {
      const { resolve, reject } = open.get(message.id);
      open.delete(message.id);
      if (message.error) reject(new Error(message.error.message));
      else resolve(message.result);
    } else listeners.forEach((fn) => fn(message));
  };
  socket.onclose = () => open.forEach(({ reject }) => reject(new Error(`chromium is gone: ${said}`)));
  await new Promise((resolve, reject) => { socket.onopen = resolve; socket.onerror = reject; });
  const send = (method, params = {}, sessionId = undefined) => new Promise((resolve, reject) => {
    open.set(next, { resolve, reject });
    socket.send(JSON.stringify({ id: next, method, params, sessionId }));
    next += 1;
  });
  return { send, listen: (fn) => listeners.push(fn) };
}

async function openPage() {
  const browser = await connect(await endpoint);
  const { targetInfos } = await browser.send('Target.getTargets');
  const { targetId } = targetInfos.find((t) => t.type === 'page');
  const { sessionId } = await browser.send('Target.attachToTarget', { targetId, flatten: true });
  const send = (method, params) => browser.send(method, params, sessionId);
  const complaints = [];
  browser.listen(({ method, params }) => {
    if (method === 'Runtime.exceptionThrown') complaints.push(params.exceptionDetails.exception?.description || params.exceptionDetails.text);
    if (method === 'Log.entryAdded' && params.entry.level === 'error') complaints.push(params.entry.text);
    if (method === 'Page.javascriptDialogOpening') complaints.push(`dialog: ${params.message}`);
  });
  await Promise.all(['Page', 'Runtime', 'Log', 'Performance', 'HeapProfiler'].map((name) => send(`${name}.enable`)));
  return { browser, send, complaints };
}

// An expression that becomes true when the document changes, looked at whenever it does.
const watching = (expression) => `new Promise((resolve) => {
  const look = () => {
    try { if (!(${expression})) return; } catch { return; }
    observer.disconnect();
    resolve(true);
  };
  const observer = new MutationObserver(look);
  observer.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
  look();
})`;

function resident(pid) {
  try {
    return Number(fs.readFileSync(`/proc/${pid}/status`, 'utf8').match(/VmRSS:\s+(\d+)/)[1]) / 1024;
  } catch {
    return 0; // it has ended since
  }
}

function steps({ browser, send }) {
  async function evaluate(expression) {
    const { result, exceptionDetails } = await send('Runtime.evaluate', { expression, returnByValue: true, awaitPromise: true });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.text}`);
    return result.value;
  }
  async function open(url) {
    const { errorText } = await send('Page.navigate', { url });
    if (errorText) throw new Error(`${url}: ${errorText}`);
  }
  // MiB of the JavaScript heap after a collection, and of the processes; numbers of what the document has.
  async function memory() {
    await send('HeapProfiler.collectGarbage');
    const { metrics } = await send('Performance.getMetrics');
    const { processInfo } = await browser.send('SystemInfo.getProcessInfo');
    const value = (name) => metrics.find((each) => each.name === name).value;
    const rss = (type) => processInfo.filter((p) => !type || p.type === type).reduce((sum, p) => sum + resident(p.id), 0);
    return { heap: value('JSHeapUsedSize') / 1048576, nodes: value('Nodes'), listeners: value('JSEventListeners'),
      page: rss('renderer'), browser: rss() };
  }
  async function run(step, results) {
    if (step.url) await open(step.url);
    if (step.scheme) await send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: step.scheme }] });
    if (step.width) await send('Emulation.setDeviceMetricsOverride', { width: step.width, height: step.height || 900, deviceScaleFactor: 1, mobile: false });
    if (step.wait) await evaluate(watching(step.wait));
    if (step.key) {
      const key = { key: step.key, code: step.key, windowsVirtualKeyCode: { Tab: 9, Enter: 13, Escape: 27 }[step.key] };
      await send('Input.dispatchKeyEvent', { type: 'keyDown', text: step.key.length === 1 ? step.key : { Enter: '\r' }[step.key], ...key });
      await send('Input.dispatchKeyEvent', { type: 'keyUp', ...key });
    }
    if (step.eval) results.push((await evaluate(step.eval)) ?? null);
    if (step.memory) results.push(await memory());
    if (step.shot) {
      const { data } = await send('Page.captureScreenshot', { format: 'png', captureBeyondViewport: step.full === true });
      fs.writeFileSync(step.shot, Buffer.from(data, 'base64'));
    }
  }
  const text = () => Promise.race([evaluate('document.body.innerText'), new Promise((resolve) => { setTimeout(resolve, 2000, '?'); })]);
  return { open, run, text };
}

async function main() {
  const page = await within(openPage(), () => 'chromium to start');
  const { open, run, text } = steps(page);
  await within(open(process.argv[2]), () => process.argv[2]);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const results = [];
    let now = '';
    const all = async () => {
      for (const step of JSON.parse(line)) {
        now = JSON.stringify(step);
        await run(step, results);
      }
    };
    const failed = await within(all(), () => now).then(() => undefined,
      async (error) => `${error.message}\n${await text().catch(() => '')}`);
    process.stdout.write(`${JSON.stringify({ results, complaints: page.complaints, failed })}\n`);
  }
}

main().then(() => end(0), (error) => { console.error(error.message); end(1); });
