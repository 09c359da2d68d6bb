-- Clients of one TLS session, for the e2e specs: whether the servers of a port know it.

local uv = require 'luv'
local wait = require 'spec.support.wait'

local M = {}

--- Where the keys of such servers are: key.pem, cert.pem.
M.KEYS = uv.cwd() .. '/spec/support/nodejs/'

--- Six connections with one session, the given one or a new one. The server answers whether it was reused.
-- @param binary of Node
-- @return what they say of each, and the session
function M.ask(binary, port, session)
    local program = 'process.send = (values, done) => { console.log(values.join(" ")); done() }; '
        .. 'process.argv = [0, 0, ...process.argv.slice(1)]; require(process.argv.pop())'
    local out, text, ended = uv.new_pipe(false), '', false
    local args = { '-e', program, '--', ('[%s%d]'):format((port .. ','):rep(5), port), M.KEYS .. 'tls_resume.cjs' }
    if session then
        table.insert(args, 5, session)
    end
    local client
    client = uv.spawn(binary, { args = args, stdio = { nil, out, 2 } }, function()
        ended = true
        client:close()
    end)
    out:read_start(function(_, data)
        text = text .. (data or '')
        if not data then
            out:close()
        end
    end)
    wait.wait_until(function() return ended and out:is_closing() end, { what = 'the TLS client' })
    return text:match '^(.*) (%S+)\n$'
end

--- A server for `ask`, the text of an app of Node.
M.app = ([[
    const fs = require('fs')
    const options = { key: fs.readFileSync('%skey.pem'), cert: fs.readFileSync('%scert.pem') }
    require('https').createServer(options, (request, response) => {
        response.setHeader('Connection', 'close')
        response.end(String(request.socket.isSessionReused()))
    }).listen(Number(process.env.PORT))
]]):format(M.KEYS, M.KEYS)

return M
