--- hub.lua: all masters of this user, watched, and the browsers that want to hear of them. Bounded: a browser that does
-- not take what it is sent is dropped, and comes again by itself.

local cqueues = require 'cqueues'
local condition = require 'cqueues.condition'

local claim = require 'dutch-master.control.claim'
local wire = require 'dutch-master.control.wire'
local masters = require 'dutch-master.cli.masters'
local Watcher = require 'dutch-master.web.watcher'

local Hub = {}
Hub.__index = Hub

local DISCOVER_S = 2
local CLIENTS = 64
local QUEUE = 2000 -- messages that wait for one browser
local HEARTBEAT_S = 15
-- A master that went away is shown this long.
local FORGET_S = 600

--- { platform, loop = a controller of cqueues, scripts = set of absolute paths or nil for all }
function Hub.new(options)
    local self = setmetatable(options, Hub)
    self.watchers, self.clients, self.count = {}, {}, 0
    self.seen_at = {} -- path of a watcher -> when its socket was there last
    return self
end

local function wanted(self, path)
    if not self.scripts then
        return true
    end
    local name = path:match '([^/]+)%.sock$'
    for script in pairs(self.scripts) do
        if claim.name_for(script) == name then
            return true
        end
    end
    return false
end

local function discover(self)
    local there = {}
    for _, socket in ipairs(masters.sockets(self.platform)) do
        there[socket.path] = true
        if not self.watchers[socket.path] and wanted(self, socket.path) then
            local watcher = Watcher.new { path = socket.path, owner = socket.owner, tell = function(kind, data)
                self:tell(kind, data)
            end }
            self.watchers[socket.path] = watcher
            watcher:start(self.loop)
        end
    end
    local now = cqueues.monotime()
    for path, watcher in pairs(self.watchers) do
        self.seen_at[path] = there[path] and now or self.seen_at[path] or now
        if now - self.seen_at[path] > FORGET_S then
            watcher:close()
            self.watchers[path], self.seen_at[path] = nil, nil
            self:tell('gone', { id = watcher.id })
        end
    end
end

function Hub:start()
    self.loop:wrap(function()
        while true do
            discover(self)
            cqueues.sleep(DISCOVER_S)
        end
    end)
end

local function message(kind, data)
    return ('event: %s\ndata: %s\n\n'):format(kind, wire.encode(data) or '{}')
end

--- To every browser.
function Hub:tell(kind, data)
    if self.count == 0 then
        return
    end
    local text = message(kind, data)
    for client in pairs(self.clients) do
        if #client.queue >= QUEUE then
            client.closed = true
        else
            table.insert(client.queue, text)
        end
        client.wake:signal()
    end
end

--- Serves one browser: write(text) -> true or nil. Returns when it has gone. @return false if there are too many
function Hub:serve(write)
    if self.count >= CLIENTS then
        return false
    end
    local client = { queue = {}, wake = condition.new() }
    self.clients[client], self.count = true, self.count + 1
    local all = {}
    for _, watcher in pairs(self.watchers) do
        all[#all + 1] = watcher:whole()
    end
    local ok = write('retry: 1000\n\n' .. message('init', { masters = wire.list(all),
        hostname = self.platform.hostname(), version = self.platform.version }))
    while ok and not client.closed do
        if #client.queue == 0 and not client.wake:wait(HEARTBEAT_S) then
            ok = write ': still here\n\n'
        end
        local text = table.concat(client.queue)
        client.queue = {}
        ok = ok and (text == '' or write(text))
    end
    self.clients[client], self.count = nil, self.count - 1
    return true
end

--- What masters.ask gives, of the last look.
function Hub:found()
    local found = {}
    for path, watcher in pairs(self.watchers) do
        found[#found + 1] = { path = path, status = watcher.status, problem = watcher.problem or 'hangs' }
    end
    table.sort(found, function(a, b)
        return a.path < b.path
    end)
    return found
end

return Hub
