-- The script of a deployed application. The master is started once, as
--     dutch-master /srv/my-app/current/master.lua
-- and finds this file again at each fork, in whatever release `current` points to by then.

local dutch = require 'dutch-master'

dutch.start {
    worker = 'app.lua',
    numWorkers = 2,
    -- The directory of the next worker. The master itself stays where it was started.
    beforeFork = function()
        dutch.chdir '/srv/my-app/current'
    end,
    -- A master started by `bundle exec` has these of the release it was started in, which will be pruned one day. Each
    -- worker finds its own.
    workerEnvironment = {
        BUNDLE_GEMFILE = false, BUNDLE_BIN_PATH = false, BUNDLER_VERSION = false, RUBYOPT = false, RUBYLIB = false,
    },
    -- A worker that crashes is replaced from the release it came from, not from one that was never rolled out.
    pinRelease = true,
    -- A deploy tool waits for it: three bad starts of one worker are a verdict.
    restartAttempts = 3,
    readyTimeout = 30,
    logger = dutch.logger { name = 'my-app' },
    -- Tell whoever should know; the deploy itself learns it from `dutch-master restart --wait`.
    onRestart = function(verdict)
        dutch.log.info({ result = verdict.result, reason = verdict.message }, 'Deploy decided')
    end,
}
