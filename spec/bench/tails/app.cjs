// Quick and slow requests in one process: FAST ms, one in twenty SLOW ms. A request holds the event loop without using
// the CPU, so that many workers can be measured on few cores. The answer says what the request itself took.
const http = require('http');

const cell = new Int32Array(new SharedArrayBuffer(4));
const FAST = 2;
const SLOW = 100;
const SLOW_SHARE = 0.05;

http
  .createServer((request, response) => {
    if (request.url === '/pid') return response.end(String(process.pid)); // kept, at once
    const ms = Math.random() < SLOW_SHARE ? SLOW : FAST;
    Atomics.wait(cell, 0, 0, ms);
    response.setHeader('Connection', 'close');
    response.end(String(ms));
  })
  .listen({ port: Number(process.env.PORT), host: '127.0.0.1' });
