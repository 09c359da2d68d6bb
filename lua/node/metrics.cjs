// Loaded into a Node worker before its app, and only with `metrics = true` in the script. Counts HTTP requests (by class
// of status, and those broken off), their latency, open connections, the delay and utilisation of the event loop and
// the heap, and tells the master once a second what has changed. Node itself says when a request begins and when its
// answer is done (diagnostics_channel): no function of the app or of Node is wrapped, nothing is written anywhere, and
// it never keeps the process alive. Shape and units: lua/dutch-master/channel/measured.lua.
'use strict';

// The cluster set-up listens here before any preload runs; threads and processes forked by the app have none.
if (process.listenerCount('internalMessage') === 0 || typeof process.send !== 'function') return;

const { channel } = require('diagnostics_channel');
const { performance, monitorEventLoopDelay } = require('perf_hooks');

const EVERY_MS = 1000;
const RESOLUTION_MS = 20; // of the delay of the event loop
const BOUNDS_MS = [1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000];

const send = process.send.bind(process);
const answers = [0, 0, 0, 0, 0];
const buckets = new Array(BOUNDS_MS.length + 1).fill(0);
const servers = new Set(); // those that have had a connection
const asked = Symbol('dutch-master.asked'); // of a socket: when its open requests began, the oldest first
let broken = 0;
let totalMs = 0;

// status: 0 if the client went away before the answer was complete, or was left without one
function count(begun, status) {
  const took = performance.now() - begun;
  const kind = Math.floor(status / 100) - 1;
  if (kind < 0) broken += 1;
  else if (kind < 5) answers[kind] += 1;
  totalMs += took;
  let i = 0;
  while (i < BOUNDS_MS.length && took > BOUNDS_MS[i]) i += 1;
  buckets[i] += 1;
}

function socketCloses() {
  for (const begun of this[asked].splice(0)) count(begun, 0);
}

channel('http.server.request.start').subscribe(({ socket }) => {
  let begun = socket[asked];
  if (begun === undefined) {
    begun = [];
    socket[asked] = begun;
    socket.on('close', socketCloses);
  }
  begun.push(performance.now());
});

// The answers of a connection go out in the order of its requests. (shift takes much longer than pop, even of one.)
channel('http.server.response.finish').subscribe(({ socket, response }) => {
  const begun = socket[asked];
  if (begun === undefined || begun.length === 0) return;
  count(begun.length === 1 ? begun.pop() : begun.shift(), response.statusCode);
});

// http2 has no such channels in the versions before 24.
function streamBegins(stream) {
  const begun = performance.now();
  stream.on('close', () => {
    const head = stream.sentHeaders;
    count(begun, head && stream.writableFinished ? head[':status'] : 0);
  });
}

channel('net.server.socket').subscribe(({ socket }) => {
  const { server } = socket;
  if (!server || servers.has(server)) return;
  servers.add(server);
  if (typeof server.updateSettings === 'function') server.on('stream', streamBegins);
});

function countOpen() {
  let open = 0;
  for (const server of servers) {
    open += server._connections;
    if (!server._handle && server._connections === 0) servers.delete(server);
  }
  return open;
}

const delay = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
delay.enable();
// The histogram counts the interval itself too.
const late = (ns) => Math.max(ns / 1e9 - RESOLUTION_MS / 1000, 0) || 0;
let utilization = performance.eventLoopUtilization ? performance.eventLoopUtilization() : null;
let told = '';

function tell() {
  if (!process.connected) return;
  const { heapUsed, heapTotal } = process.memoryUsage();
  const now = utilization && performance.eventLoopUtilization();
  const open = countOpen();
  const counted = JSON.stringify([answers, broken, open]);
  const busy = now ? performance.eventLoopUtilization(now, utilization).utilization : 0;
  const lag = [late(delay.percentile(50)), late(delay.percentile(99)), late(delay.max)];
  utilization = now;
  delay.reset();
  // A worker with nothing to do says so once.
  const state = `${counted} ${Math.round(busy * 20)} ${Math.round(heapUsed / 2 ** 22)} ${Math.round(lag[1] * 50)}`;
  if (state === told) return;
  told = state;
  send({
    cmd: 'NODE_DUTCH_METRICS', answers, broken, seconds: totalMs / 1000, buckets, open, lag, utilization: busy,
    heap: [heapUsed, heapTotal],
  }, undefined, undefined, () => {});
}

setInterval(tell, EVERY_MS).unref();
