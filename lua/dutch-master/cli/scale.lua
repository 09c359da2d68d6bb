--- dutch-master scale: more or fewer workers, by the difference only.

local client = require 'dutch-master.cli.client'
local format = require 'dutch-master.cli.format'

--- As numWorkers of the script.
local MOST = 4096

local M = {
    name = 'scale',
    talks = true,
    summary = 'set the number of workers (4), or change it (+1, -1)',
    description = 'Starts or gracefully stops the difference; the workers that stay are not touched. The number holds\n'
        .. 'over restarts, until one (or a reload) finds another numWorkers in the script than before.',
    argument = {
        name = 'N', pattern = '^[+-]?%d+$', required = true,
        expects = 'a number of workers from 1 to 4096 (4), or a change of it (+1, -1)',
        -- 0 workers are no cluster (`stop` is meant), and no change is no request.
        valid = function(word)
            local count = tonumber((word:gsub('^[+-]', '')))
            return count >= 1 and count <= MOST
        end,
    },
    options = { { long = 'json', short = 'j', doc = 'one line of JSON' } },
    examples = { 'dutch-master scale 4', 'dutch-master scale +1', 'dutch-master scale -1 /srv/app/master.lua' },
    codes = '0 done, 1 refused, 2 a number that is not possible, 3 not running',
}

function M.run(ctx)
    local number = tonumber((ctx.argument:gsub('^%+', '')))
    local request = { verb = 'scale', key = client.key(ctx) }
    if ctx.argument:find '^[+-]' then
        request.by = number
    else
        request.workers = number
    end
    return (client.ask(ctx, request, {
        failed = function(error)
            return error.code == 'EINVAL' and ctx.usage(format.visible(error.message)) or nil
        end,
        done = function(answer)
            return client.tell(ctx, { ok = true, from = answer.from, to = answer.to },
                ('%s, were %d\n'):format(format.plural(answer.to, 'worker'), answer.from))
        end,
    }))
end

return M
