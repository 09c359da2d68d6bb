--- dutch-master reload: the script read anew, and what needs no restart applied.

local changes = require 'dutch-master.cli.changes'

return {
    name = 'reload',
    talks = true,
    summary = 'read the script again, apply what needs no restart',
    description = 'Evaluates the script, says what changed, and applies what can be without replacing a worker (such\n'
        .. 'as numWorkers). The rest waits for a restart. A script with errors changes nothing.',
    options = { { long = 'json', short = 'j', doc = 'one line of JSON' } },
    examples = { 'dutch-master plan && dutch-master reload' },
    codes = '0, 3 not running, 78 the script has errors and the last good one stays in force',
    run = function(ctx)
        return changes.run(ctx, 'reload', true)
    end,
}
