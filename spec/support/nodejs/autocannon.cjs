// autocannon's load until SIGTERM, then one line of JSON: how many requests of each outcome.
//   node autocannon.cjs MODULES URL CONNECTIONS
'use strict';
const path = require('path');
const autocannon = require(path.join(process.argv[2], 'autocannon'));

const options = { url: process.argv[3], connections: Number(process.argv[4]), duration: 3600, timeout: 10 };
const run = autocannon(options, (error, result) => {
  if (error) throw error;
  const { errors, timeouts, non2xx } = result;
  console.log(JSON.stringify({ ok: result['2xx'], failed: errors + timeouts + non2xx, errors, timeouts, non2xx }));
  process.exit(0);
});
process.on('SIGTERM', () => run.stop());
