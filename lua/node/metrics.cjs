// Loaded into a Node worker before its app, and only with `metrics = true` in the script. Counts HTTP requests (by class
// of status, and those broken off), their latency, open connections, the delay and utilisation of the event loop and
// the heap, and tells the master once a second what has changed. No module of the app is loaded for it, nothing is
// written anywhere, and it never keeps the process alive. Shape and units: lua/dutch-master/channel/measured.lua.
'use strict';

// The cluster set-up listens here before any preload runs; threads and processes forked by the app have none.
if (process.listenerCount('internalMessage') === 0 || typeof process.send !== 'function') return;

const { Server } = require('net');
const { performance, monitorEventLoopDelay } = require('perf_hooks');

const EVERY_MS = 1000;
const RESOLUTION_MS = 20; // of the delay of the event loop
const BOUNDS_MS = [1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000];

const send = process.send.bind(process);
const answers = [0, 0, 0, 0, 0];
const buckets = new Array(BOUNDS_MS.length + 1).fill(0);
let broken = 0;
let totalMs = 0;
let open = 0;

const began = Symbol('dutch-master.began');

// One listener for all answers: `this` is the answer.
function ended() {
  const took = performance.now() - this[began];
  // A client that went away before the answer was complete got none.
  if (!this.writableFinished) broken += 1;
  else {
    const kind = Math.floor(this.statusCode / 100) - 1;
    if (kind >= 0 && kind < 5) answers[kind] += 1;
  }
  totalMs += took;
  let i = 0;
  while (i < BOUNDS_MS.length && took > BOUNDS_MS[i]) i += 1;
  buckets[i] += 1;
}

function closed() {
  open -= 1;
}

const emit = Server.prototype.emit;

Server.prototype.emit = function (type, subject, response) {
  if (type === 'request') {
    if (response && response[began] === undefined && typeof response.once === 'function') {
      response[began] = performance.now();
      response.once('close', ended);
    }
  } else if (type === 'connection' && subject && typeof subject.once === 'function') {
    open += 1;
    subject.once('close', closed);
  }
  return emit.apply(this, arguments);
};

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
