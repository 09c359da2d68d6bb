-- Counts each client's visits in its own memory: right only if each client comes back to the same worker.
local visits = 0

require('dutch-master.http').serve(tonumber(os.getenv 'PORT') or 8000, function(_, response)
    visits = visits + 1
    response:send(('worker %d, visit %d\n'):format(require('dutch-master.worker').id, visits))
end)
