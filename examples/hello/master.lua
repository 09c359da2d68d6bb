-- Two workers on port 8000 (or $PORT). Edit this file or app.lua while they serve and send the master
-- SIGUSR2, or say `dutch-master restart`: new workers come first, then the old ones leave.

local dutch = require 'dutch-master'

dutch.start {
    worker = 'app.lua',
    numWorkers = 2,
    -- Called before each fork. In a deployment this would be '/deploys/app/current'.
    beforeFork = function()
        dutch.chdir(dutch.directory)
    end,
    workerEnvironment = { PORT = dutch.environ 'PORT' or '8000', GREETING = 'Hello world' },
    logger = dutch.logger { name = 'hello' },
}
