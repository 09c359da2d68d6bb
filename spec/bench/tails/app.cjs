// A request for /100 holds the event loop for 100 ms without using the CPU, so that many workers can be measured on few
// cores.
const http = require('http');

const cell = new Int32Array(new SharedArrayBuffer(4));

http
  .createServer((request, response) => {
    if (request.url === '/pid') return response.end(String(process.pid)); // kept, at once
    const ms = Number(request.url.slice(1));
    if (ms > 0) Atomics.wait(cell, 0, 0, ms);
    response.setHeader('Connection', 'close');
    response.end('ok');
  })
  .listen({ port: Number(process.env.PORT), host: '127.0.0.1' });
