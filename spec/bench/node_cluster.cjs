// The usual script around Node's own cluster, for comparison: one worker per slot, SIGUSR2 replaces them one after the other, the
// old one by disconnect() once the new one listens, and by force after ten seconds.
'use strict';
const cluster = require('cluster');

cluster.setupPrimary({ exec: process.argv[2] });
const count = Number(process.argv[3] || 2);
let left = count;
for (let i = 0; i < count; i += 1) cluster.fork().once('listening', () => { left -= 1; if (left === 0) console.log('ready'); });

let rolling = false;
process.on('SIGUSR2', async () => {
  if (rolling) return;
  rolling = true;
  for (const old of Object.values(cluster.workers)) {
    const fresh = cluster.fork();
    await new Promise((resolve) => fresh.once('listening', resolve));
    old.disconnect();
    const timer = setTimeout(() => old.kill('SIGKILL'), 10000);
    await new Promise((resolve) => old.once('exit', resolve));
    clearTimeout(timer);
  }
  rolling = false;
  console.log('rolled');
});
cluster.on('exit', (worker) => { if (!worker.exitedAfterDisconnect) cluster.fork(); });
process.on('SIGTERM', () => process.exit(0));
