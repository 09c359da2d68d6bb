--- peer.lua: one connection to a master, and many questions over it, each with a deadline of its own.
-- Who the master is, and whether its answers count, is its caller's business: see client.lua.

local cjson = require 'cjson.safe'
local wire = require 'dutch-master.control.wire'

local Peer = {}
Peer.__index = Peer

--- A master answers in milliseconds; one that does not within this is stuck.
local ANSWER_MS = 5000

--- conn: as platform.connect gives it. on_lost(reason): the master hung up; no question is answered any more.
function Peer.new(platform, conn, on_lost)
    local self = setmetatable({ platform = platform, conn = conn, next_id = 1, open = {} }, Peer)
    conn:on_line(function(line)
        self:line(line)
    end)
    conn:on_close(function(reason)
        if not self.closed then
            self:close()
            on_lost(reason)
        end
    end)
    return self
end

function Peer:line(line)
    local answer = cjson.decode(line)
    if type(answer) ~= 'table' then
        return
    end
    -- Who may not ask at all is told so without a question's number.
    local id = answer.id or type(answer.error) == 'table' and next(self.open)
    local question = self.open[id]
    if not question then
        return
    end
    question.timer:stop()
    if answer.event then
        return question.event and question.event(answer)
    end
    self.open[id] = nil
    question.timer:close()
    if answer.ok then
        return question.done(answer)
    end
    question.done(nil, type(answer.error) == 'table' and answer.error or {})
end

--- Asks. on = { done(answer) or done(nil, error) once; event(answer) before that; silent(): nothing came in time,
--- timeout_ms until the first word }
function Peer:ask(request, on)
    local id = self.next_id
    self.next_id = id + 1
    request.v, request.id = wire.VERSION, id
    local question = { event = on.event, done = on.done }
    question.timer = self.platform.timer(function()
        self.open[id] = nil
        question.timer:close()
        on.silent()
    end)
    question.timer:start(on.timeout_ms or ANSWER_MS)
    self.open[id] = question
    self.conn:write(wire.encode(request) .. '\n')
end

function Peer:close()
    if self.closed then
        return
    end
    self.closed = true
    for _, question in pairs(self.open) do
        question.timer:stop()
        question.timer:close()
    end
    self.open = {}
    self.conn:close()
end

return Peer
