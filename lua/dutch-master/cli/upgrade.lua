--- dutch-master upgrade: the master that runs becomes another version of the program, in place.

local client = require 'dutch-master.cli.client'
local format = require 'dutch-master.cli.format'
local shell = require 'dutch-master.shell'
local State = require 'dutch-master.keeper.estate'
local wire = require 'dutch-master.control.wire'

local M = {
    name = 'upgrade',
    talks = true,
    summary = 'run this version of the program in place of the one that runs',
    description = 'The master and its keeper become the program that is called, or that of\n'
        .. '--binary; the workers notice nothing, and no connection is refused. It is asked\n'
        .. 'first whether it can go on from the state of the one that runs. One that does\n'
        .. 'not take over within ten seconds, or dies in its first two, is left again, and\n'
        .. 'the former program goes on, even if its file is gone. Not for a master that\n'
        .. 'was started with --no-keeper. Always waits for the verdict.',
    options = {
        { long = 'binary', value = 'PATH', doc = 'the program to be; without it the one that is called' },
        { long = 'wait', short = 'w', doc = 'as without it: until it is decided' },
        { long = 'timeout', short = 't', value = 'SECONDS', number = true, doc = 'wait, but no longer than this' },
        { long = 'json', short = 'j', doc = 'JSON lines' },
    },
    examples = {
        'dutch-master upgrade',
        'dutch-master upgrade --binary /opt/next/bin/dutch-master app/master.lua',
    },
    codes = '0 the new program runs, 10 the former one goes on,\n'
        .. '3 not running, 124 timed out (it goes on), 1 anything else',
}

local OLD_GOES_ON = 10
--- Of a program that does not take over, and the way back.
local VERDICT_MS = 60000

--- What a program says of itself, for the one that is to become it.
function M.describe(platform)
    return ('state: %d\nversion: %s\nimage: %s\nreads: %s\n'):format(State.VERSION, platform.version,
        platform.executable(), table.concat(State.READS, ' '))
end

-- Asks the program. -> {binary, version, reads}, or nil, message
local function ask_program(path)
    local pipe = io.popen(('%s --state 2>&1'):format(shell.quote(path)))
    local text = pipe and pipe:read(4096) or ''
    if pipe then
        pipe:close()
    end
    local state, version = text:match '^state: (%d+)\nversion: ([^\n]+)\n'
    local image = text:match '\nimage: (/[^\n]+)\n'
    if not state then
        local first = text:match '^[^\n]+'
        return nil, ('%s is no program that this master can become%s'):format(path,
            first and (': ' .. format.visible(first)) or '')
    end
    local reads = { tonumber(state) }
    for number in (text:match '\nreads: ([%d ]+)\n' or ''):gmatch '%d+' do
        reads[#reads + 1] = tonumber(number)
    end
    return { binary = image, version = version, reads = reads }
end

local function told(ctx, answer)
    local verdict = answer.verdict
    local done = verdict.result == 'done'
    if ctx.options.json then
        ctx.out(wire.encode(answer) .. '\n')
    elseif done then
        ctx.out(('Upgraded from %s to %s (%s)\n'):format(format.visible(verdict.from), format.visible(verdict.to),
            format.visible(verdict.image)))
    else
        client.fail(ctx, ('upgrade: %s; version %s goes on'):format(format.visible(verdict.message),
            format.visible(verdict.from)))
    end
    return done and 0 or OLD_GOES_ON
end

function M.run(ctx)
    local program, message = ask_program(ctx.options.binary or ctx.platform.executable())
    if not program then
        return client.fail(ctx, 'upgrade: ' .. message, OLD_GOES_ON)
    end
    local request = { verb = 'upgrade', key = client.key(ctx), binary = program.binary, version = program.version,
        reads = program.reads }
    return (client.ask(ctx, request, {
        again_ms = VERDICT_MS, -- a program that hangs is waited for before the former one is called back
        timeout_ms = ctx.options.timeout and ctx.options.timeout * 1000 or VERDICT_MS,
        event = function(answer)
            if ctx.options.json then
                ctx.out(wire.encode(answer) .. '\n')
            elseif not request.again then
                ctx.out(('Upgrading to %s ...\n'):format(format.visible(program.version)))
            end
            request.again = true -- the next master knows of it
        end,
        timed_out = function()
            return client.fail(ctx, ('not decided within %gs; the upgrade goes on (dutch-master status)'):format(
                ctx.options.timeout or VERDICT_MS / 1000), 124)
        end,
        failed = function(error)
            return client.fail(ctx, 'upgrade: ' .. format.visible(error.message),
                error.code == 'EREFUSED' and OLD_GOES_ON or nil)
        end,
        done = function(answer)
            return told(ctx, answer)
        end,
    }))
end

return M
