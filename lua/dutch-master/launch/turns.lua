--- turns.lua: whose event is next. The events of one worker keep their order; the workers take turns. Each worker has
--- one event in the lane at a time, and what more it has waits behind that: a worker that floods the master with
--- messages delays another's by one call, and loses messages of its own alone.

local Turns = {}
Turns.__index = Turns

-- Messages of one worker that may wait for onMessage, and how many bytes of them beside the first.
local MESSAGES_MAX, MESSAGE_BYTES_MAX = 256, 256 * 1024

--- @param options {enter = function(event): its turn has come; it must end by turns:ended(worker_id),
--   lost = function(worker_id, count): messages that were skipped; 0 with the first of them,
--   and their number when the queue is empty again}
function Turns.new(options)
    local self = setmetatable(options, Turns)
    self.queues = {} -- worker id -> {first, last, [n] = event, messages, bytes, skipped}
    return self
end

--- Adds what happened to a worker. It is never refused: a worker begins and ends once.
function Turns:add(worker_id, event)
    local queue = self.queues[worker_id]
    if queue then
        queue.last = queue.last + 1
        queue[queue.last] = event
        return
    end
    self.queues[worker_id] = { first = 1, last = 0, messages = 0, bytes = 0, skipped = 0 }
    self.enter(event)
end

--- Whether one more message of this worker, of so many bytes, may wait. If not it is counted.
function Turns:admits(worker_id, bytes)
    local queue = self.queues[worker_id]
    if not queue or queue.messages == 0
        or queue.messages < MESSAGES_MAX and queue.bytes + bytes <= MESSAGE_BYTES_MAX then
        return true
    end
    queue.skipped = queue.skipped + 1
    if queue.skipped == 1 then
        self.lost(worker_id, 0)
    end
    return false
end

--- Adds a message that was admitted. event.bytes is kept here.
function Turns:add_message(worker_id, bytes, event)
    self:add(worker_id, event)
    local queue = self.queues[worker_id]
    if queue and queue[queue.last] == event then
        event.bytes = bytes
        queue.messages, queue.bytes = queue.messages + 1, queue.bytes + bytes
    end
end

--- The event of this worker that had its turn is over: its next one has it.
function Turns:ended(worker_id)
    local queue = self.queues[worker_id]
    local event = queue[queue.first]
    if event then
        queue[queue.first] = nil
        queue.first = queue.first + 1
        if event.bytes then
            queue.messages, queue.bytes = queue.messages - 1, queue.bytes - event.bytes
        end
        return self.enter(event)
    end
    self.queues[worker_id] = nil
    if queue.skipped > 0 then
        self.lost(worker_id, queue.skipped)
    end
end

--- Takes the messages out that wait. fn(event) is called for each.
-- @param worker_id of whom, or nil: of all
function Turns:drop_messages(worker_id, fn)
    for id, queue in pairs(self.queues) do
        if worker_id == nil or id == worker_id then
            local kept = {}
            for i = queue.first, queue.last do
                local event = queue[i]
                if event.bytes then
                    fn(event)
                else
                    kept[#kept + 1] = event
                end
                queue[i] = nil
            end
            for i, event in ipairs(kept) do
                queue[i] = event
            end
            queue.first, queue.last, queue.messages, queue.bytes = 1, #kept, 0, 0
        end
    end
end

return Turns
