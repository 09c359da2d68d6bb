--- dutch-master plan: what a reload or restart would change, without doing it.

local changes = require 'dutch-master.cli.changes'

return {
    name = 'plan',
    talks = true,
    summary = 'what a reload or restart would change',
    description = 'The running master evaluates the script and compares it with what is in force. Nothing is changed.',
    options = { { long = 'json', short = 'j', doc = 'one line of JSON' } },
    examples = { 'dutch-master plan' },
    codes = '0, 3 not running, 78 the script has errors',
    run = function(ctx)
        return changes.run(ctx, 'plan', false)
    end,
}
