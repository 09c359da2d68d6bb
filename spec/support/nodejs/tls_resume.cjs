// One TLS session over all ports given as a JSON list, begun with the session of an earlier run if one is given. Says over
// its channel what each server said about its reuse, and the session.
'use strict';
const https = require('https');

async function ask(port, session) {
  return new Promise((resolve, reject) => {
    let kept;
    const agent = new https.Agent({ maxCachedSessions: 0 });
    const request = https.get({ port, host: '127.0.0.1', rejectUnauthorized: false, agent, session }, (response) => {
      let body = '';
      response.on('data', (data) => { body += data; });
      response.on('end', () => resolve({ body, session: kept }));
    });
    request.on('socket', (socket) => socket.on('session', (each) => { kept = each; }));
    request.on('error', reject);
  });
}

(async () => {
  const answers = [];
  let session = process.argv[3] ? Buffer.from(process.argv[3], 'base64') : undefined;
  for (const port of JSON.parse(process.argv[2])) {
    const answer = await ask(port, session);
    answers.push(answer.body);
    session = answer.session || session;
  }
  process.send([...answers, session.toString('base64')], () => process.exit(0));
})();
