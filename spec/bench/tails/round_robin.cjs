// app.cjs under Node's own cluster: N workers, round robin.
const cluster = require('cluster');
const path = require('path');

const workers = Number(process.env.N);
let listening = 0;
cluster.schedulingPolicy = cluster.SCHED_RR;
cluster.setupPrimary({ exec: path.join(__dirname, 'app.cjs') });
for (let i = 0; i < workers; i++) {
  cluster.fork().on('listening', () => {
    if (++listening === workers) console.log('READY');
  });
}
