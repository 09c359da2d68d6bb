// Twenty socket.io clients that begin with HTTP polling, each from an address of its own, each saying something thrice. Prints
// `ok N`, N = how many were answered every time, and by how many different workers all in all.
//   node socket_clients.cjs PORT MODULES
'use strict';
const http = require('http');
const path = require('path');
const { io } = require(path.join(process.argv[3], 'socket.io-client'));

const url = `http://127.0.0.1:${process.argv[2]}`;
const workers = new Set();

async function client(i) {
  const agent = new http.Agent({ keepAlive: false, localAddress: `127.0.0.${i + 10}` });
  const socket = io(url, { transports: ['polling'], agent, forceNew: true, reconnection: false, timeout: 5000 });
  const answers = [];
  for (let n = 0; n < 3; n += 1) {
    answers.push(await new Promise((resolve) => {
      socket.on('connect_error', () => resolve(null));
      socket.on('disconnect', () => resolve(null));
      socket.emit('who', n, (pid) => resolve(pid));
    }));
  }
  socket.close();
  for (const pid of answers) if (pid) workers.add(pid);
  return answers.every((pid) => pid && pid === answers[0]);
}

(async () => {
  const results = await Promise.all(Array.from({ length: 20 }, (_, i) => client(i)));
  console.log(`ok ${results.filter(Boolean).length} workers ${workers.size}`);
  process.exit(0);
})();
