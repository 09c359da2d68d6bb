// Node's own cluster: APP COUNT [again: a worker that ends is replaced].
'use strict';
const cluster = require('cluster');

const [app, count, again] = process.argv.slice(2);
(cluster.setupPrimary || cluster.setupMaster)({ exec: app });
for (let i = 0; i < Number(count); i++) cluster.fork();
cluster.on('exit', () => { if (again) cluster.fork(); });
