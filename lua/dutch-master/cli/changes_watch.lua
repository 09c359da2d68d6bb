--- changes_watch.lua: `dutch-master master.lua --watch PATH...`, for development: a restart when something below
-- the paths has changed, and its verdict on stderr. It runs in the process of the master and is its client all the
-- same: it asks over the control socket, as anybody would.

local client = require 'dutch-master.cli.client'
local restart = require 'dutch-master.cli.restart'

local M = {}

--- How often it is looked whether all is quiet.
local LOOK_MS = 100
--- An editor or a compiler writes several files: what is quiet this long is done.
local QUIET_MS = 300
local MAX_DIRECTORIES = 4000

--- What no app is made of, and what a restart itself writes.
local function is_ignored(name)
    return name:find '^%.' or name == 'node_modules' or name == '__pycache__' or name:find '~$' or name == '4913'
        or name:find '%.swp$' or name:find '%.log$' or name:find '%.pid$' or name:find '%.sock$' or name:find '%.pyc$'
end

local Watch = {}
Watch.__index = Watch

local function say(self, text)
    self.ctx.err('dutch-master: ' .. text .. '\n')
end

-- Watches a directory and those below it, or a file.
local function add(self, path)
    if self.watches[path] or self.count >= MAX_DIRECTORIES then
        return
    end
    local there = self.platform.stat(path)
    if not there then
        return
    end
    local event = self.uv.new_fs_event()
    local ok = event:start(path, {}, function(_, name)
        if not is_ignored(name or '') then
            self.changed, self.name = self.platform.now(), name or path:match '[^/]+$'
        end
    end)
    if not ok then
        return event:close()
    end
    self.watches[path], self.count = event, self.count + 1
    for _, name in ipairs(there.type == 'directory' and self.platform.list(path) or {}) do
        local below = path .. '/' .. name
        local entry = not is_ignored(name) and self.platform.stat(below)
        if entry and entry.type == 'directory' then
            add(self, below)
        end
    end
end

local function watch_all(self)
    for path, event in pairs(self.watches) do
        if not self.platform.stat(path) then
            event:close()
            self.watches[path], self.count = nil, self.count - 1
        end
    end
    for _, path in ipairs(self.paths) do
        add(self, path)
    end
end

local function on_verdict(self, answer, err)
    self.asking = false
    if answer then
        restart.tell(self.ctx, answer.verdict)
    else
        say(self, 'restart: ' .. tostring(err and err.message))
    end
end

local function ask(self)
    say(self, ('%s has changed, restarting'):format(self.name))
    self.changed, self.asking = nil, true
    watch_all(self) -- new directories
    local peer
    peer = client.peer(self.ctx, 'restart', function()
        self.asking = false
    end)
    if not peer then
        self.asking = false
        return
    end
    peer:ask({ verb = 'restart', wait = true }, {
        done = function(answer, err)
            peer:close()
            on_verdict(self, answer, err)
        end,
        silent = function()
            peer:close()
            self.asking = false
        end,
    })
end

--- Begins to watch.
-- @param ctx of the command line, with script
-- @param paths absolute, of what is there
function M.start(ctx, paths)
    local uv = require 'luv'
    -- Whatever goes wrong with one restart, the master goes on.
    local own = setmetatable({ options = {}, script_name = ctx.script, finished = true, names_script = true,
        out = ctx.err }, { __index = ctx })
    local self = setmetatable({ ctx = own, platform = ctx.platform, uv = uv, paths = paths, watches = {}, count = 0 },
        Watch)
    watch_all(self)
    self.timer = ctx.platform.timer(function()
        if self.changed and not self.asking and ctx.platform.now() - self.changed >= QUIET_MS then
            ask(self)
        end
        self.timer:start(LOOK_MS)
    end)
    self.timer:start(LOOK_MS)
end

return M
