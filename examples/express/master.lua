local dutch = require 'dutch-master'

dutch.start {
    worker = 'app.js',

    -- Where a deploy puts releases, `current` is a symlink that it moves: each fork finds the newest one. Without
    -- releases the app beside this script runs.
    beforeFork = function()
        local releases = dutch.environ 'RELEASES'
        if releases then
            dutch.chdir(releases .. '/current')
        end
    end,

    numWorkers = function()
        return math.max(dutch.cpus(), 2)
    end,

    logger = dutch.logger { name = 'express-example' },

    workerEnvironment = { NODE_ENV = 'production' },
}
