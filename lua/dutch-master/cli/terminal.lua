--- Where a verb writes to: what a terminal is good for, and what is used when there is none.

local M = {}

local CODES = {
    bold = '1', dim = '2', red = '31', green = '32', yellow = '33', blue = '34', magenta = '35', cyan = '36',
}

local function writer(platform, name, stream)
    local write = platform[name]
    return function(text)
        if write then
            return write(text)
        end
        return stream:write(text)
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
        out = writer(platform, 'write_stdout', io.stdout),
        err = writer(platform, 'write_stderr', io.stderr),
        tty = platform.isatty ~= nil and platform.isatty(1) and environment.TERM ~= 'dumb',
        utf8 = speaks_utf8(environment),
    }
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
