--- Where a verb writes to: what a terminal is good for, and what is used when there is none.

local format = require 'dutch-master.cli.format'

local M = {}

local CODES = {
    bold = '1', dim = '2', red = '31', green = '32', yellow = '33', blue = '34', magenta = '35', cyan = '36',
}

--- A reader that has gone (`| head -n 1`) is the end: nobody would hear the rest, nor stop what goes on for ever.
local FAILED = 1

local function writer(ctx, write)
    return function(text)
        local ok, message, code = write(text)
        if ok == nil and not ctx.mute then
            ctx.mute, ctx.finished = true, true
            if code ~= 'EPIPE' then
                ctx.err(('dutch-master: %s\n'):format(tostring(message)))
            end
            ctx.platform.stop(FAILED)
        end
        return ok, message, code
    end
end

local function speaks_utf8(environment)
    for _, name in ipairs { 'LC_ALL', 'LC_CTYPE', 'LANG' } do
        local value = environment[name]
        if value and value ~= '' then
            return value:lower():find 'utf%-?8' ~= nil
        end
    end
    return false
end

--- The context a verb runs in: { platform, out(text), err(text), tty, color, utf8, columns() }
function M.context(platform)
    local environment = platform.environ and platform.environ() or {}
    local ctx = {
        platform = platform,
        environment = environment,
        err = function(text)
            return platform.write_stderr(format.said(text))
        end,
        tty = platform.isatty ~= nil and platform.isatty(1) and environment.TERM ~= 'dumb',
        utf8 = speaks_utf8(environment),
    }
    ctx.out = writer(ctx, platform.write_stdout)
    ctx.color = ctx.tty and (environment.NO_COLOR or '') == ''
    --- Width of the terminal; lines are cut to it, and never when they go to a file.
    function ctx.columns()
        local columns = ctx.tty and platform.tty_size and platform.tty_size(1)
        return columns and columns > 0 and columns or nil
    end
    --- paint('red', 'text'); plain where colours are not wanted.
    function ctx.paint(color, text)
        if not ctx.color or not CODES[color] then
            return text
        end
        return ('\27[%sm%s\27[0m'):format(CODES[color], text)
    end
    return ctx
end

return M
