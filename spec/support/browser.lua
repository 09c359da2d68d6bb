-- A headless Chromium on one page, by spec/support/nodejs/browser.cjs: what its steps are is written there.
--
--     local page = browser.open('http://127.0.0.1:8080/', node)
--     local results = page:run { { wait = "document.title === 'x'" }, { eval = 'document.title' } }
--     page:close()

local uv = require 'luv'
local cjson = require 'cjson'
local wait = require 'spec.support.wait'

local M = {}
local Page = {}
Page.__index = Page

-- browser.cjs has a limit of its own, and says more.
local LIMIT_MS = 120000

local open = {}

local function read(pipe, add, on_end)
    pipe:read_start(function(_, data)
        if data then
            return add(data)
        end
        pipe:close()
        on_end()
    end)
end

--- node: the program, of 22 or later.
function M.open(url, node)
    local self = setmetatable({ stdin = uv.new_pipe(false), out = '', err = '', ended = 0 }, Page)
    local out, err = uv.new_pipe(false), uv.new_pipe(false)
    local function on_end()
        self.ended = self.ended + 1
    end
    local process
    process, self.pid = uv.spawn(node, {
        args = { uv.cwd() .. '/spec/support/nodejs/browser.cjs', url }, stdio = { self.stdin, out, err },
    }, function(code)
        self.code = code
        process:close()
        on_end()
    end)
    assert(process, self.pid)
    read(out, function(data) self.out = self.out .. data end, on_end)
    read(err, function(data) self.err = self.err .. data end, on_end)
    open[self] = true
    return self
end

--- -> list of what the steps gave. Fails if one was in vain, or if the page complained of anything.
function Page:run(steps)
    self.stdin:write(cjson.encode(steps) .. '\n')
    local line
    wait.wait_until(function()
        line = self.out:match '^(.-)\n'
        return line or self.ended == 3
    end, { what = 'the browser\n' .. self.err, timeout = LIMIT_MS })
    assert(line, self.err)
    self.out = self.out:sub(#line + 2)
    local answer = cjson.decode(line)
    assert(not answer.failed, answer.failed)
    assert(#answer.complaints == 0, 'the page complains: ' .. table.concat(answer.complaints, '\n'))
    return answer.results
end

function Page:close()
    if not self.stdin:is_closing() then
        self.stdin:close()
    end
    wait.wait_until(function() return self.ended == 3 end, { what = 'the end of the browser', timeout = LIMIT_MS })
    open[self] = nil
    assert(self.code == 0, self.err)
end

--- For after_each: ends what a failed spec has left.
function M.cleanup()
    for page in pairs(open) do
        pcall(page.close, page)
        open[page] = nil
    end
end

return M
