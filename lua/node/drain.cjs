// Loaded into a Node worker before its app (node --require drain.cjs app.js). From the moment the master says that the
// worker is to leave, HTTP connections leave by themselves: answers carry `Connection: close`, idle ones are ended
// after a moment in which a request already on its way is still served, http2 sessions get GOAWAY. Node alone keeps a busy
// keep-alive connection for ever, and so the process.
//
// Until that moment it only notes which TLS socket belongs to which TCP socket: no server, no module and no listener of
// the app is touched or loaded. Upgraded and plain net connections are nobody's business here: they have the master's
// deadline. It never keeps the process alive.
'use strict';

// The cluster set-up listens here before any preload runs; threads and processes forked by the app have none.
if (process.listenerCount('internalMessage') === 0) return;

const { Server } = require('net');

const SWEEP_MS = 100;
const IDLE_MS = 1000; // nothing arrived for so long: a client that wanted to send has sent
const PARTIAL_MS = 2000; // so long to complete a request line and headers that have begun
const GOAWAY_MS = 500; // between the notice to an http2 client and the end of new streams; many round trips

const tlsOf = new WeakMap(); // TCP socket -> TLSSocket around it
const sessionOf = new WeakMap(); // socket that http2 talks on -> its session
const seen = new WeakMap(); // socket or session -> { since, bytesRead } of its idleness, or of its notice

let talking = null; // the socket whose connection event is being handled; an http2 session is born in it
let draining = false;

const emit = Server.prototype.emit;

Server.prototype.emit = function (type, subject) {
  if (type === 'session') {
    if (talking) sessionOf.set(talking, subject);
  } else if (type === 'connection' || type === 'secureConnection') {
    if (type === 'secureConnection' && subject && subject._parent) tlsOf.set(subject._parent, subject);
    const outer = talking;
    talking = subject;
    try {
      return emit.apply(this, arguments);
    } finally {
      talking = outer;
    }
  }
  return emit.apply(this, arguments);
};

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
  if (typeof server.closeIdleConnections === 'function' && !Object.hasOwnProperty.call(server, 'closeIdleConnections')) {
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
  const session = sessionOf.get(socket);
  if (session) {
    sweepHttp2(session, now);
  } else if (socket.parser) {
    sweepHttp1(socket, now);
  } else if (socket === tcp && typeof tcp.server.setSecureContext === 'function') {
    if (idleFor(tcp, now) >= PARTIAL_MS) tcp.destroy(); // TLS was never agreed on
  }
}

function sweep() {
  const now = performance.now();
  for (const handle of process._getActiveHandles()) {
    try {
      if (handle instanceof Server) keepIdleForNow(handle);
      else if (handle && handle.server instanceof Server && !handle.destroyed) {
        keepIdleForNow(handle.server);
        sweepSocket(handle, now);
      }
    } catch { /* what a socket of some other make does here must not harm the app */ }
  }
}

function begin() {
  if (draining || typeof process._getActiveHandles !== 'function') return;
  draining = true;
  closeAfterAnswers();
  sweep();
  // Judged after the loop has read what had arrived, so that a loop that was busy does not count as a silent client.
  setInterval(() => setImmediate(sweep), SWEEP_MS).unref();
}

// Before cluster's own listener, which closes the servers.
process.prependListener('internalMessage', (message) => {
  if (message && (message.cmd === 'NODE_DUTCH_DRAIN'
    || (message.cmd === 'NODE_CLUSTER' && message.act === 'disconnect'))) begin();
});
