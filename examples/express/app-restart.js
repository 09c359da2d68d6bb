// The same app, which asks to be replaced when it has met an error it did not expect: what state it is in then,
// nobody knows. The answer is sent, the master starts a successor, and only then is this worker told to leave.
var domain = require('domain')
var express = require('express')

// Errors thrown later, in a callback of this request, come to the same error handler as those thrown at once.
function catchLater (req, res, next) {
  var d = domain.create()
  d.add(req)
  d.add(res)
  d.on('error', next)
  d.run(next)
}

function askForReplacement (err, req, res, next) {
  console.error(err.stack)
  if (process.send) process.send({ event: 'request-restart' })
  if (res.headersSent) return res.socket.destroy()
  res.status(500).send('Something broke, sorry')
}

var app = express()
app.use(catchLater)
app.get('/', function (req, res) { res.send('Hello world') })
app.get('/now', function (req, res) { throw new Error('thrown at once') })
app.get('/later', function (req, res) {
  setTimeout(function () { throw new Error('thrown later') }, 10)
})
app.use(askForReplacement)
app.listen(process.env.PORT || 8000)
