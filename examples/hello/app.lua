-- A worker: HTTP by lua-http, in as many processes as master.lua says. It can also be run alone:
-- dutch-master --lua-worker app.lua

local cqueues = require 'cqueues'
local http = require 'dutch-master.http'
local worker = require 'dutch-master.worker'

assert(http.serve(':' .. (os.getenv 'PORT' or '8000'), function(request, response)
    if request.path == '/slow' then
        -- Others are served meanwhile, and a restart waits for it.
        cqueues.sleep(5)
    elseif request.path == '/replace' then
        worker.send { event = 'request-restart' }
    elseif request.path ~= '/' then
        response.status = 404
    end
    response:send(('%s from worker %s, generation %s\n'):format(os.getenv 'GREETING' or 'Hello', worker.id or '-',
        worker.generation or '-'))
end))
