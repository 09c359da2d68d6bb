// The usual script around Node's own cluster, for comparison: SIGUSR2 forks as many workers as there are, each old one gets
// disconnect() once a new one listens, and is killed if it has not gone a few seconds later. Node leaves kept-alive
// connections that are in use open, so that under load they all stay to the end of these seconds.
//   node node_cluster.cjs APP WORKERS [SECONDS = 4]
'use strict';
const cluster = require('cluster');

cluster.setupPrimary({ exec: process.argv[2] });
const count = Number(process.argv[3] || 2);
const killMs = 1000 * Number(process.argv[4] || 4);
let left = count;
for (let i = 0; i < count; i += 1) cluster.fork().once('listening', () => { left -= 1; if (left === 0) console.log('ready'); });

async function replace(old) {
  const fresh = cluster.fork();
  await new Promise((resolve) => fresh.once('listening', resolve));
  old.disconnect();
  const timer = setTimeout(() => old.kill('SIGKILL'), killMs);
  await new Promise((resolve) => old.once('exit', resolve));
  clearTimeout(timer);
}

let rolling = false;
process.on('SIGUSR2', async () => {
  if (rolling) return;
  rolling = true;
  await Promise.all(Object.values(cluster.workers).map(replace));
  rolling = false;
  console.log('rolled');
});
cluster.on('exit', (worker) => { if (!worker.exitedAfterDisconnect) cluster.fork(); });
process.on('SIGTERM', () => process.exit(0));
