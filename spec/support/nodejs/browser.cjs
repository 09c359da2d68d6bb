// A headless Chromium, driven over its DevTools protocol: node browser.cjs URL < steps.json > results.json
// Steps: { width, height, scheme } | { wait: 'expression', ms } | { eval: 'expression' } | { shot: 'file.png' } |
// { key: 'p' }. Results: one value for each eval, and what the page complained of. Ends by itself.
'use strict';
const { spawn } = require('child_process');
const fs = require('fs');
const os = require('os');
const path = require('path');

const SCALE = Number(process.env.DM_TIME_SCALE) || 1;
const LIMIT_MS = 50000 * SCALE;
const steps = JSON.parse(fs.readFileSync(0, 'utf8'));
const profile = fs.mkdtempSync(path.join(os.tmpdir(), 'dm-chromium-'));
const chromium = spawn(process.env.CHROMIUM || 'chromium', [
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--remote-debugging-port=0',
  `--user-data-dir=${profile}`, 'about:blank',
], { stdio: ['ignore', 'ignore', 'pipe'] });

function end(code) {
  chromium.once('exit', () => {
    // Its helpers are on their way out, and write their last.
    const until = Date.now() + 5000;
    const remove = () => {
      try {
        fs.rmSync(profile, { recursive: true, force: true });
        process.exit(code);
      } catch (error) {
        if (Date.now() > until) throw error;
        setTimeout(remove, 50);
      }
    };
    remove();
  });
  chromium.kill(code === 0 ? 'SIGTERM' : 'SIGKILL');
}
setTimeout(() => { console.error('browser.cjs: too slow'); end(1); }, LIMIT_MS).unref();

let said = '';
const endpoint = new Promise((resolve, reject) => {
  chromium.stderr.on('data', (data) => {
    said += data;
    const found = said.match(/DevTools listening on (ws:\S+)/);
    if (found) resolve(found[1]);
  });
  chromium.once('exit', () => reject(new Error(`chromium ended: ${said}`)));
});

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
  await new Promise((resolve, reject) => { socket.onopen = resolve; socket.onerror = reject; });
  const send = (method, params = {}, sessionId = undefined) => new Promise((resolve, reject) => {
    open.set(next, { resolve, reject });
    socket.send(JSON.stringify({ id: next, method, params, sessionId }));
    next += 1;
  });
  return { send, listen: (fn) => listeners.push(fn) };
}

async function main() {
  const browser = await connect(await endpoint);
  const { targetInfos } = await browser.send('Target.getTargets');
  const { targetId } = targetInfos.find((t) => t.type === 'page');
  const { sessionId } = await browser.send('Target.attachToTarget', { targetId, flatten: true });
  const page = (method, params) => browser.send(method, params, sessionId);
  const complaints = [];
  browser.listen(({ method, params }) => {
    if (method === 'Runtime.exceptionThrown') complaints.push(params.exceptionDetails.exception?.description || params.exceptionDetails.text);
    if (method === 'Log.entryAdded' && params.entry.level === 'error') complaints.push(params.entry.text);
    if (method === 'Page.javascriptDialogOpening') complaints.push(`dialog: ${params.message}`);
  });
  await Promise.all(['Page.enable', 'Runtime.enable', 'Log.enable'].map((m) => page(m)));
  const evaluate = async (expression) => {
    const { result, exceptionDetails } = await page('Runtime.evaluate', { expression, returnByValue: true, awaitPromise: true });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.text}`);
    return result.value;
  };
  const results = [];
  if (process.argv[2]) await page('Page.navigate', { url: process.argv[2] });
  for (const step of steps) {
    if (step.url) await page('Page.navigate', { url: step.url });
    if (step.scheme) await page('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: step.scheme }] });
    if (step.width) await page('Emulation.setDeviceMetricsOverride', { width: step.width, height: step.height || 900, deviceScaleFactor: 1, mobile: false });
    if (step.wait) {
      const until = Date.now() + (step.ms || 20000) * SCALE;
      while (!(await evaluate(step.wait).catch(() => false))) { // not even loaded yet
        if (Date.now() > until) throw new Error(`waited in vain for ${step.wait}\n${await evaluate('document.body.innerText')}`);
        await new Promise((resolve) => { setTimeout(resolve, 50); });
      }
    }
    if (step.key) {
      await page('Input.dispatchKeyEvent', { type: 'keyDown', key: step.key, text: step.key });
      await page('Input.dispatchKeyEvent', { type: 'keyUp', key: step.key });
    }
    if (step.eval) results.push((await evaluate(step.eval)) ?? null);
    if (step.shot) {
      const { data } = await page('Page.captureScreenshot', { format: 'png', captureBeyondViewport: step.full === true });
      fs.writeFileSync(step.shot, Buffer.from(data, 'base64'));
    }
  }
  process.stdout.write(JSON.stringify({ results, complaints }));
}

main().then(() => end(0), (error) => { console.error(error.message); end(1); });
