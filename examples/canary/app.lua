-- What can be wrong with a release, release.lua says.
local cqueues = require 'cqueues'
local release = dofile 'release.lua'

require('dutch-master.http').serve(tonumber(os.getenv 'PORT') or 8000, function(_, response)
    if release.slow then
        cqueues.sleep(0.2)
    end
    response.status = release.broken and math.random() < 0.2 and 500 or 200
    response:send('release ' .. release.name .. '\n')
end)
