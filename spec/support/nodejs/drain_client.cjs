// Client for the specs of drain.cjs: holds a connection of every kind to drain_app.cjs and says 'connected'; told to, it
// sends the requests that shall be on their way and says 'ready'; is told again when the drain begins, and then says
// what became of each. It talks over the channel of a forked process.
//   node drain_client.cjs '{"http":1,"https":2,...}'
'use strict';

const http2 = require('http2');
const net = require('net');
const path = require('path');
const tls = require('tls');
const fs = require('fs');

const ports = JSON.parse(process.argv[2]);
const GIVE_UP_MS = 4000;
const ca = fs.readFileSync(path.join(__dirname, 'cert.pem'));

let started = 0;
const since = () => Math.round(performance.now() - started);
const result = {};
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function connect(name, scheme) {
  const entry = { bytes: '', closed: null, error: null };
  result[name] = entry;
  const options = { port: ports[scheme], host: '127.0.0.1', servername: 'localhost', ca, ALPNProtocols: ['http/1.1'] };
  const socket = scheme === 'https' || scheme === 'h2' ? tls.connect(options) : net.connect(options);
  entry.socket = socket;
  socket.setEncoding('latin1');
  socket.on('data', (data) => { entry.bytes += data; if (entry.onData) entry.onData(); });
  socket.on('error', (error) => { entry.error = error.code; });
  socket.on('close', () => { entry.closed = since(); if (entry.onData) entry.onData(); });
  return new Promise((resolve) => socket.once(scheme === 'https' || scheme === 'h2' ? 'secureConnect' : 'connect', () => resolve(entry)));
}

const get = (url) => `GET ${url} HTTP/1.1\r\nHost: localhost\r\n\r\n`;

// Resolves with the head of the next complete answer, null when the connection ended without one.
function answer(entry) {
  return new Promise((resolve) => {
    const look = () => {
      const end = entry.bytes.indexOf('\r\n\r\n');
      if (end >= 0) {
        const head = entry.bytes.slice(0, end);
        const body = entry.bytes.slice(end + 4);
        const length = /content-length: (\d+)/i.exec(head);
        const done = length ? body.length >= Number(length[1]) : body.endsWith('0\r\n\r\n');
        if (done) {
          entry.onData = null;
          entry.bytes = '';
          return resolve(head);
        }
      }
      if (entry.closed !== null) resolve(null);
    };
    entry.onData = look;
    look();
  });
}

const says = (head) => (head === null ? 'none' : `${head.slice(9, 12)} ${/connection: close/i.test(head) ? 'close' : 'keep'}`);

async function ask(entry, url) {
  entry.socket.write(get(url));
  return says(await answer(entry));
}

// One request after the other for ever: every one must be answered, until an answer says close.
async function loop(entry, pause) {
  entry.answers = 0;
  for (;;) {
    const said = await ask(entry, '/');
    if (said !== '200 keep') { entry.last = said; return; }
    entry.answers += 1;
    await wait(pause);
  }
}

async function session(name, scheme) {
  const entry = { goaways: [], closed: null, error: null, answers: {} };
  result[name] = entry;
  const client = http2.connect(`${scheme === 'h2' ? 'https' : 'http'}://localhost:${ports[scheme]}`, { ca });
  client.on('goaway', (code, last) => entry.goaways.push({ code, last, at: since() }));
  client.on('error', (error) => { entry.error = error.code; });
  client.on('close', () => { entry.closed = since(); });
  entry.client = client;
  await new Promise((resolve) => client.once('connect', resolve));
  entry.ask = (label, url) => new Promise((resolve) => {
    const stream = client.request({ ':path': url });
    stream.on('response', (headers) => { entry.answers[label] = headers[':status']; });
    stream.on('error', (error) => { entry.answers[label] = error.code; });
    stream.on('close', resolve);
    stream.resume();
    stream.end();
  });
  await entry.ask('first', '/');
  return entry;
}

const word = () => new Promise((resolve) => process.once('message', resolve));
let heard;
const told = new Promise((resolve) => { heard = resolve; });

(async () => {
  const run = [];
  const late = []; // requests that the drain must find on their way: sent when all connections stand
  for (const scheme of ['http', 'https', 'h2']) {
    const idle = await connect(`${scheme}_idle`, scheme);
    idle.first = await ask(idle, '/');
    const busy = await connect(`${scheme}_busy`, scheme);
    busy.first = await ask(busy, '/');
    late.push(() => {
      busy.socket.write(get('/?ms=700'));
      run.push(answer(busy).then((head) => { busy.last = says(head); }));
    });
    run.push(loop(await connect(`${scheme}_loop`, scheme), 20));
    await connect(`${scheme}_silent`, scheme);
    const fresh = await connect(`${scheme}_fresh`, scheme);
    run.push(told.then(() => wait(300)).then(() => ask(fresh, '/')).then((said) => { fresh.last = said; }));
  }
  const half = await connect('http_half', 'http');
  half.socket.write('GET / HTTP/1.1\r\nHos');
  const explicit = await connect('http_explicit', 'http');
  explicit.first = await ask(explicit, '/');
  run.push(told.then(() => wait(100)).then(() => ask(explicit, '/explicit')).then((said) => { explicit.last = said; }));
  const stream = await connect('http_stream', 'http');
  late.push(() => {
    const begun = new Promise((resolve) => stream.socket.once('data', resolve));
    stream.socket.write(get('/stream?ms=700'));
    run.push(answer(stream).then((head) => { stream.last = says(head); }));
    return begun;
  });
  const upload = await connect('http_upload', 'http');
  upload.socket.write('POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab');
  run.push(told.then(() => wait(2500)).then(() => upload.socket.write('cd')).then(() => answer(upload))
    .then((head) => { upload.last = says(head); }));
  const slowHead = await connect('http_slow_head', 'http');
  slowHead.socket.write('GET / HTTP/1.1\r\n');
  run.push(told.then(() => wait(1400)).then(() => slowHead.socket.write('Host: x\r\n\r\n')).then(() => answer(slowHead))
    .then((head) => { slowHead.last = says(head); }));
  const upgraded = await connect('upgraded', 'http');
  upgraded.socket.write('GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n');
  await wait(50);
  const raw = await connect('raw', 'net');
  for (const scheme of ['h2', 'h2c']) {
    await session(`${scheme}_session_idle`, scheme);
    const busy = await session(`${scheme}_session_busy`, scheme);
    late.push(() => {
      run.push(busy.ask('slow', '/?ms=900'));
      return new Promise((resolve) => busy.client.ping(resolve)); // the server has the request too
    });
  }
  process.send('connected');
  await word();
  await Promise.all(late.map((send) => send()));
  word().then(heard);
  process.send('ready');
  await told;
  started = performance.now();
  await wait(GIVE_UP_MS);
  result.upgraded.bytes = '';
  upgraded.socket.write('ping');
  await wait(50);
  result.upgraded.echo = result.upgraded.bytes;
  upgraded.socket.destroy();
  raw.socket.destroy();
  await Promise.race([Promise.all(run), wait(500)]);
  for (const entry of Object.values(result)) for (const key of ['socket', 'client', 'ask', 'onData', 'bytes']) delete entry[key];
  process.send(result, () => process.exit(0));
})();
