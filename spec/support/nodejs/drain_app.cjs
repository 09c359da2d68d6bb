// Worker for the specs of drain.cjs: every kind of server it has to do with. Says its ports in a message. With
// WITNESS=1 it says first what it can see of the preload.
'use strict';

const loaded = process.moduleLoadList.filter((name) => /^NativeModule (_?https?|http2|tls|_tls_.*)$/.test(name));
const witness = {
  loaded,
  listeners: process.eventNames().map(String).sort().filter((name) => name !== 'internalMessage'),
  globals: Object.getOwnPropertyNames(globalThis).length,
};

const fs = require('fs');
const http = require('http');
const http2 = require('http2');
const https = require('https');
const net = require('net');
const path = require('path');

const read = (name) => fs.readFileSync(path.join(__dirname, name));
const secure = { key: read('key.pem'), cert: read('cert.pem') };

function answer(request, response) {
  const url = new URL(request.url, 'http://x');
  const ms = Number(url.searchParams.get('ms') || 0);
  if (url.pathname === '/explicit') {
    response.writeHead(200, { Connection: 'keep-alive', 'Keep-Alive': 'timeout=60', 'Content-Length': 2 });
    response.end('ok');
  } else if (url.pathname === '/stream') {
    response.write('a');
    setTimeout(() => response.end('b'), ms);
  } else if (url.pathname === '/upload') {
    let bytes = 0;
    request.on('data', (chunk) => { bytes += chunk.length; });
    request.on('end', () => response.end(String(bytes)));
  } else {
    setTimeout(() => response.end('ok'), ms);
  }
}

const servers = {
  http: http.createServer({ keepAliveTimeout: 65000 }, answer),
  https: https.createServer({ ...secure, keepAliveTimeout: 65000 }, answer),
  h2: http2.createSecureServer({ ...secure, allowHTTP1: true }, answer),
  h2c: http2.createServer(answer),
  net: net.createServer((socket) => socket.on('error', () => {}).resume()),
};

servers.http.on('upgrade', (request, socket) => {
  socket.on('error', () => {});
  socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n');
  socket.on('data', (data) => socket.write(data));
  socket.on('end', () => socket.end());
});

let left = Object.keys(servers).length;
for (const name of Object.keys(servers)) {
  if ('keepAliveTimeout' in servers[name]) servers[name].keepAliveTimeout = 65000; // the option came with Node 18
  servers[name].listen(0, () => {
    left -= 1;
    if (left > 0) return;
    const ports = {};
    for (const each of Object.keys(servers)) ports[each] = servers[each].address().port;
    process.send({ ports, witness });
  });
}
process.on('message', () => {});
