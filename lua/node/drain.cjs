// Loaded into a Node worker before its app (node --require drain.cjs app.js). What it does:
//
// - From the moment the master says that the worker is to leave, HTTP connections leave by themselves: answers carry
//   `Connection: close`, idle ones are ended after a moment in which a request already on its way is still served, http2
//   sessions get GOAWAY. Node alone keeps a busy keep-alive connection for ever, and so the process.
// - When its connections are served, the app's own SIGTERM handlers run before the emptied loop ends. Without handlers
//   the loop ends by itself, and SIGTERM takes what still holds it: in a second, or where the app cleans up when it is
//   disconnected, when the time for that is over.
// - A connection for which maxConnections leaves no room goes back to the master, which knows who has room: once more, if
//   that dies with it.
// - It reports how many connections the worker holds, when that changes.
// - It says when its Node is an older one that sets the modes of unix paths in another way: the master makes these paths.
//
// It is in nobody's way: no module is loaded, no function of the app or of Node runs below one of ours (what must be
// noticed is noticed when a property is looked up, so stack traces stay as they are), nothing here keeps the process
// alive but a SIGTERM that is due. Upgraded and plain net connections have the master's deadline.
// Longer than 400 lines: it is loaded as one file, without any other.
'use strict';

// The cluster set-up listens here before any preload runs; threads and processes forked by the app have none.
if (process.listenerCount('internalMessage') === 0) return;

// fork() passes execArgv on. What the app forks is no worker.
const flag = process.execArgv.indexOf(__filename) - 1;
if (flag >= 0) process.execArgv.splice(flag, 2);
delete require.cache[__filename];

// How long it may clean up: see kinds.lua.
const PATIENCE_MS = Number(process.env.DUTCH_MASTER_PATIENCE) || 0;
delete process.env.DUTCH_MASTER_PATIENCE;
const OTHERS = process.listenerCount('disconnect'); // Node's own

const { Server } = require('net');

const SWEEP_MS = 100;
const IDLE_MS = 1000; // nothing arrived for this long: a client that wanted to send has sent
const PARTIAL_MS = 2000; // for the rest of a request line and headers that have begun
const GOAWAY_MS = 500; // between the notice to an http2 client and the end of new streams; many round trips
const READ_MS = 150; // between a connection's acceptance and the reading of its request, and plenty
const MAJOR = parseInt(process.versions.node, 10);
const REPORT_MS = 20; // between two reports of how many connections there are
const BRIEF_REPORT_MS = 200; // the same while more come than stay: there the number says little
const WINDOW_MS = 500; // shorter ones say little: one request fills them
const TERM_DUE_MS = 5000; // the master sends SIGTERM when the channel closes: it comes within milliseconds, or not at all
const EMPTY_MS = 1000; // a loop that nothing but a clean-up holds ends within this

// libuv before 1.51 adds readableAll and writableAll to the mode that the umask leaves; since then they are all of it.
const [uvMajor, uvMinor] = process.versions.uv.split('.').map(Number);
if (uvMajor === 1 && uvMinor < 51) process.send({ cmd: 'NODE_DUTCH_ADDS_MODES' }, () => {});
// It knows NODE_DUTCH_AGAIN. A Node that keeps what waits for an ack elsewhere cannot begin again.
if ('_handleQueue' in process) process.send({ cmd: 'NODE_DUTCH_HERE' }, () => {});

const servers = new Set(); // those that listen, or have connections left
const keyOf = new WeakMap(); // listening handle -> the key that the master knows it by
const tlsOf = new WeakMap(); // TCP socket -> TLSSocket around it
const sessions = new Set(); // of http2
const seen = new WeakMap(); // socket or session -> { since, bytesRead } of its idleness, or of its notice

let draining = false;

// Calls fn(server) whenever `name` is looked up on a server.
function onLookup(name, fn) {
  let value = Server.prototype[name];
  if (typeof value !== 'function') return;
  Object.defineProperty(Server.prototype, name, {
    configurable: true,
    enumerable: true,
    get() {
      if (this !== Server.prototype) fn(this);
      return value;
    },
    set(other) {
      if (this === Server.prototype) value = other;
      else Object.defineProperty(this, name, { value: other, configurable: true, enumerable: true, writable: true });
    },
  });
}

// ---- how many connections there are ----

let reported = 0;
let reportedAt = -REPORT_MS;
let came = 0; // connections, since the last look
let pause = REPORT_MS; // until the next
let share = 0; // of its time that it works, in the last whole window
let utilization = null; // at the window's begin
let windowAt = 0;
let pending = false;

function report() {
  pending = false;
  let held = 0;
  for (const server of servers) {
    held += server._connections;
    if (!server._handle && server._connections === 0) servers.delete(server);
  }
  pause = came > held ? BRIEF_REPORT_MS : REPORT_MS;
  came = 0;
  reportedAt = performance.now();
  if (held === reported || !process.connected || draining) return;
  reported = held;
  if (reportedAt - windowAt >= WINDOW_MS) {
    const now = performance.eventLoopUtilization();
    share = performance.eventLoopUtilization(now, utilization).utilization;
    utilization = now;
    windowAt = reportedAt;
  }
  process.send({ cmd: 'NODE_DUTCH_LOAD', held, busy: Math.round(share * 1000) || 0 }, () => {});
}

function connectionsChange() {
  if (pending) return;
  pending = true;
  if (!utilization) {
    utilization = performance.eventLoopUtilization(); // not counting its start
    windowAt = performance.now();
  }
  const wait = reportedAt + pause - performance.now();
  if (wait <= 0) setImmediate(report).unref();
  else setTimeout(report, wait).unref();
}

// ---- maxConnections ----

function isFull(server) {
  return server.maxConnections != null && server.maxConnections !== 0 && server._connections >= server.maxConnections
    && !server.dropMaxConnection;
}

// { client, key } of connections that go back, in their order. Each is ours too until the master says that it is placed:
// if it dies before that, the next one is sent it again. Node sends a message with a handle when that before it is acked.
const returning = [];

function isOnItsWay(entry) {
  const queue = process._handleQueue;
  return Boolean(entry) && !(queue && queue.some((waiting) => waiting.handle === entry.client));
}

function end(entry) {
  const at = returning.indexOf(entry);
  if (at >= 0) returning.splice(at, 1);
  entry.client.close();
}

// Also where the channel is to be closed, as it is when the last handle is acked.
function send(message, handle, done) {
  if (process.connected || typeof process._send !== 'function') process.send(message, handle, done);
  else process._send(message, handle, {}, done);
}

function sendBack(entry, again) {
  const { key, client } = entry;
  send({ cmd: 'NODE_DUTCH_RETURN', key, again }, client, (error) => { if (error) end(entry); });
}

// In place of Node's onconnection when there is no room. A connection that the master brings never comes here: Node
// refuses that itself.
function giveBack(accept) {
  return function (error, client) {
    const key = keyOf.get(this);
    if (error || !client || !key || !process.connected) return accept.call(this, error, client);
    const entry = { key, client };
    returning.push(entry);
    sendBack(entry);
  };
}

// Before Node sends the next one.
function handleAcked() {
  if (isOnItsWay(returning[0])) end(returning[0]);
}

// The master died, and what it had read of us may be lost. The next one acks no handle before our answer, of which it may
// lose the first line: what came of it may be the rest of another one.
function sayAgain(by) {
  if (!process.connected && !process.channel) return;
  const queue = process._handleQueue;
  const lost = isOnItsWay(returning[0]) ? returning[0] : null;
  process._handleQueue = null; // what waits there waits for an ack that will not come
  for (let i = 0; i < 2; i++) send({ cmd: 'NODE_DUTCH_HERE', by }, undefined, () => {});
  if (lost) {
    sendBack(lost, true);
    if (process._handleQueue && queue) process._handleQueue.push(...queue);
  } else if (queue) {
    process._handleQueue = queue;
    process.emit('internalMessage', { cmd: 'NODE_HANDLE_ACK' });
  }
}

// A socket that the master knows nothing of: exclusive, reusePort, or one that was passed on to the worker.
function reportOwn(address) {
  if (!address || !process.connected) return;
  const where = typeof address === 'string' ? { path: address } : { address: address.address, port: address.port };
  process.send({ cmd: 'NODE_DUTCH_OWN', ...where }, () => {});
}

function watchHandle(server) {
  const handle = server._handle;
  if (!handle || typeof handle.onconnection !== 'function') return;
  servers.add(server);
  if (!keyOf.has(handle)) reportOwn(server.address());
  const accept = handle.onconnection;
  const back = giveBack(accept);
  Object.defineProperty(handle, 'onconnection', {
    configurable: true,
    enumerable: true,
    get() {
      came++;
      connectionsChange();
      return isFull(server) ? back : accept;
    },
  });
}

const known = new WeakSet(); // servers that have our listeners

const patient = new WeakSet(); // servers whose idle connections end a moment later than asked

// Node 26 takes a connection whose first request it has not read yet for an idle one. An app that closes its server would
// reset it, so that is done when what was accepted is read. A server that is closed accepts no more.
function closeIdleLater(server) {
  const close = server.closeIdleConnections;
  if (MAJOR < 26 || typeof close !== 'function' || Object.hasOwnProperty.call(server, 'closeIdleConnections')) return;
  patient.add(server);
  Object.defineProperty(server, 'closeIdleConnections', {
    value() { setTimeout(() => close.call(server), READ_MS); },
    configurable: true,
    writable: true,
  });
}

function watchSessions(server) {
  if (known.has(server)) return;
  known.add(server);
  closeIdleLater(server);
  if (typeof server.setSecureContext === 'function') {
    server.prependListener('secureConnection', (socket) => {
      if (socket && socket._parent) tlsOf.set(socket._parent, socket);
    });
  }
  server.prependListener('session', (session) => {
    sessions.add(session);
    session.once('close', () => sessions.delete(session));
  });
}

// It has its handle, and will have set it up by the end of the present function.
onLookup('_listen2', (server) => {
  watchSessions(server);
  process.nextTick(watchHandle, server);
});
onLookup('_emitCloseIfDrained', connectionsChange);

// ---- SIGTERM ----

let guardedAt = 0; // when it began to leave
let patience = EMPTY_MS; // between SIGTERM and the end of what holds the loop
let due; // keeps the loop alive until the SIGTERM is there: it must not come upon a process that ends already

function onTerm() {
  process.removeListener('SIGTERM', onTerm); // others that look see the app's own listeners alone
  clearTimeout(due);
  if (process.listenerCount('SIGTERM') > 0) return; // they follow
  const die = () => process.kill(process.pid, 'SIGTERM');
  if (process.connected) die(); // connections are left, and the time is up
  else setTimeout(die, patience).unref();
}

// The app hears of its end by this as well as by SIGTERM, and may have things to do.
function cleansUp() {
  const { worker } = require('cluster');
  return process.listenerCount('disconnect') > OTHERS || Boolean(worker && worker.listenerCount('disconnect') > 0);
}

function awaitTerm() {
  if (cleansUp()) patience = Math.max(guardedAt + PATIENCE_MS - performance.now(), EMPTY_MS);
  const wanted = process.listeners('SIGTERM').some((listener) => listener !== onTerm);
  if (draining || wanted) due = setTimeout(() => {}, TERM_DUE_MS); // a worker that left by itself may end without
}

// The cluster closes the servers before SIGTERM comes. The app's handler closes them as it does without a cluster, and
// takes an error for a failed shutdown: terminus and http-terminator would clean nothing up.
function closeOnceMore(server) {
  const close = server.close;
  let times = 0;
  Object.defineProperty(server, 'close', {
    value(done) {
      if (++times !== 2 || this._handle || typeof done !== 'function') return close.apply(this, arguments);
      return close.call(this, function () { done.call(this); });
    },
    configurable: true,
    writable: true,
  });
}

let guarded = false;

function guard() {
  if (guarded) return;
  guarded = true;
  guardedAt = performance.now();
  servers.forEach(closeOnceMore);
  process.prependListener('SIGTERM', onTerm);
  process.prependOnceListener('disconnect', awaitTerm);
}

// ---- leaving ----

// Every path to an HTTP/1 answer's head ends in _storeHeader, also with a writeHead that a middleware has replaced.
function closeAfterAnswers() {
  const { ServerResponse } = require('http');
  const store = ServerResponse.prototype._storeHeader;
  ServerResponse.prototype._storeHeader = function (line) {
    if (this.statusCode === 101) return store.apply(this, arguments);
    this.shouldKeepAlive = false;
    const result = store.apply(this, arguments);
    // An app, or a proxy in it, that sets the header itself has promised what cannot be kept.
    if (typeof this._header === 'string' && !this._last) {
      this._header = this._header.replace(/\r\nconnection:[^\r]*/i, '\r\nConnection: close')
        .replace(/\r\nkeep-alive:[^\r]*/i, '');
      this._last = true;
    }
    return result;
  };
}

// Node 19 and later end all idle connections the moment a server closes, 26 also those that have not sent anything
// yet: requests on their way are lost. The sweep ends them when nothing has come for a moment.
function keepIdleForNow(server) {
  const own = Object.hasOwnProperty.call(server, 'closeIdleConnections');
  if (typeof server.closeIdleConnections === 'function' && (!own || patient.has(server))) {
    Object.defineProperty(server, 'closeIdleConnections', { value() {}, configurable: true, writable: true });
  }
}

function idleFor(socket, now) {
  const entry = seen.get(socket);
  if (!entry) {
    seen.set(socket, { since: now, bytesRead: socket.bytesRead });
    return 0;
  }
  return now - entry.since;
}

function isAnswering(socket) {
  const incoming = socket.parser.incoming;
  return Boolean(socket._httpMessage || (incoming && !incoming.complete));
}

function sweepHttp1(socket, now) {
  if (isAnswering(socket)) {
    seen.delete(socket);
    return;
  }
  const idle = idleFor(socket, now);
  const partial = socket.bytesRead !== seen.get(socket).bytesRead || (socket.bytesRead > 0 && socket.bytesWritten === 0);
  if (idle < (partial ? PARTIAL_MS : IDLE_MS)) return;
  if (partial) socket.write('HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n');
  socket.destroySoon();
}

function sweepHttp2(session, now) {
  if (session.closed || session.destroyed) return;
  if (!seen.has(session)) {
    seen.set(session, { since: now });
    // RFC 9113 6.8: first a notice that refuses nothing, so that streams on their way are served.
    session.goaway(0, 2 ** 31 - 1);
  } else if (now - seen.get(session).since >= GOAWAY_MS) {
    session.close();
  }
}

function sweepSocket(tcp, now) {
  const socket = tlsOf.get(tcp) || tcp;
  if (socket.parser) {
    sweepHttp1(socket, now);
  } else if (socket === tcp && typeof tcp.server.setSecureContext === 'function') {
    if (idleFor(tcp, now) >= PARTIAL_MS) tcp.destroy(); // TLS was never agreed on
  }
}

function sweep() {
  const now = performance.now();
  for (const handle of [...sessions, ...process._getActiveHandles()]) {
    try {
      if (sessions.has(handle)) sweepHttp2(handle, now);
      else if (handle instanceof Server) keepIdleForNow(handle);
      else if (handle && handle.server instanceof Server && !handle.destroyed) {
        keepIdleForNow(handle.server);
        sweepSocket(handle, now);
      }
    } catch { /* what a socket of some other make does here must not harm the app */ }
  }
}

function isAnsweringAnywhere() {
  return process._getActiveHandles().some((handle) => {
    if (!handle || !(handle.server instanceof Server) || handle.destroyed) return false;
    const socket = tlsOf.get(handle) || handle;
    return Boolean(socket.parser) && isAnswering(socket);
  });
}

// Node closes the channel when the servers that it knows are closed with all their connections. One that the app has
// closed before is not among them, but its requests are to be answered as well before SIGTERM comes.
function keepChannel() {
  const disconnect = process.disconnect;
  if (typeof disconnect !== 'function') return;
  process.disconnect = function () {
    if (process.connected && isAnsweringAnywhere()) setTimeout(process.disconnect, SWEEP_MS);
    else disconnect.call(process);
  };
}

function begin() {
  if (draining || typeof process._getActiveHandles !== 'function') return;
  draining = true;
  guard();
  keepChannel();
  closeAfterAnswers();
  sweep();
  // Judged after the loop has read what had arrived, so that a loop that was busy does not count as a silent client.
  setInterval(() => setImmediate(sweep), SWEEP_MS).unref();
}

// Before cluster's own listener, which closes the servers, and uses the handles.
process.prependListener('internalMessage', (message, handle) => {
  if (!message) return;
  if (message.cmd === 'NODE_DUTCH_DRAIN') return begin();
  if (message.cmd === 'NODE_DUTCH_AGAIN') return sayAgain(message.by);
  if (message.cmd === 'NODE_HANDLE_ACK') return handleAcked();
  if (message.cmd !== 'NODE_CLUSTER') return;
  if (message.act === 'disconnect') begin();
  else if (message.ack !== undefined && handle && message.key) keyOf.set(handle, message.key);
  else if (message.ack !== undefined && message.key === undefined) guard(); // it leaves by its own wish
});
