// Runs the program in the variable APP: specs keep their small apps beside what they expect of them.
'use strict';
const vm = require('vm');
const path = require('path');

Object.assign(globalThis, { require, say: (value, handle) => process.send(value, handle) });
process.on('message', () => {}); // the set-up of the app is over by the time messages come
vm.runInThisContext(process.env.APP, { filename: path.join(process.cwd(), 'app.js') });
