-- A stand-in for the application: says which release answers.

local http = require 'dutch-master.http'

local file = assert(io.open 'REVISION') -- written by Capistrano, into each release
local revision = file:read '*l'
file:close()

http.serve(tonumber(os.getenv 'PORT') or 8000, function(_, response)
    response:send(('release %s\n'):format(revision))
end)
