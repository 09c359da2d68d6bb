--- handover.lua: connections that wait in a lane which nobody serves, or whose worker is stuck, go to other workers
-- over their channels. Works on a rotation (rotation.lua), whose lanes these are. What is under way is kept there:
-- in_flight (given to a worker that has not said yet whether it takes it), homeless (accepted, and nobody to give it
-- to), turn (whose turn it is).

local M = {}

-- A connection that so many workers refused is closed; one whose worker ended instead was not refused. So many at a
-- time are on their way to workers.
local MAX_TRIES, MAX_IN_FLIGHT = 8, 256

--- The lanes of a kind.
function M.those(self, test)
    local list = {}
    for _, record in ipairs(self.records) do
        if test(record) then
            list[#list + 1] = record
        end
    end
    return list
end

--- Live lanes that move, but for one.
function M.others(self, except, test)
    return M.those(self, function(record)
        return record.state == 'live' and not record.stalled and record ~= except and (not test or test(record))
    end)
end

--- Those of them whose workers can be given a connection: who asked for the socket over a channel, and takes them. What
-- was accepted cannot be put back, so this is asked first.
function M.heirs(self, except)
    return M.others(self, except, function(record)
        return record.request ~= nil and (not self.takes or self.takes(record.worker, record.request))
    end)
end

-- In turn, so that they are spread.
local function next_heir(self, except)
    local list = M.heirs(self, except)
    self.turn = self.turn % math.max(#list, 1) + 1
    return list[self.turn]
end

--- Gives a connection to one live worker after the other until one takes it. The worker may still refuse it later (its
-- server has just closed), then it goes to the next. Nobody at all: it waits, for it cannot be put back.
function M.give(self, fd, except, tries)
    local function done(accepted, ended)
        self.in_flight = self.in_flight - 1
        local refused = not accepted and not ended and tries >= MAX_TRIES
        if refused then
            self.log:warn({ address = self.address.text, tries = tries },
                'Waiting connection closed, no worker takes it')
        end
        if accepted or refused or not self.listener then
            self.platform.close_fd(fd)
        else
            M.give(self, fd, nil, ended and tries or tries + 1)
        end
    end
    for _ = 1, #self.records do
        local record = next_heir(self, except)
        if not record then
            break
        end
        self.in_flight = self.in_flight + 1
        if self.rescue(fd, done, record.worker, record.request) then
            return true
        end
        self.in_flight = self.in_flight - 1
    end
    self.homeless[#self.homeless + 1] = fd
    return false
end

--- Tries again with those that nobody took.
function M.homeless(self)
    local list = self.homeless
    self.homeless = {}
    for _, fd in ipairs(list) do
        M.give(self, fd, nil, 1)
    end
end

--- Accepts a connection that waits in a lane. What its worker is asked must not go unnoticed to others (probes.lua).
function M.take(record)
    local fd = record.lane:accept()
    record.given = record.given + (fd and 1 or 0)
    return fd
end

--- Gives away what waits in a lane. @return how many
function M.lane(self, record)
    local count = 0
    if not self.rescue or self.shared then
        return count
    end
    while #self.homeless == 0 and self.in_flight < MAX_IN_FLIGHT and #M.heirs(self, record) > 0 do
        local fd = M.take(record)
        if not fd then
            break
        end
        if M.give(self, fd, record, 1) then
            count = count + 1
        end
    end
    if count > 0 then
        self.log:info({ address = self.address.text, connections = count, workerId = record.worker },
            'Waiting connections handed to other workers')
    end
    return count
end

--- The same for all lanes without a worker.
function M.free(self)
    M.homeless(self)
    for _, record in ipairs(self.records) do
        if record.state == 'free' then
            M.lane(self, record)
        end
    end
end

return M
