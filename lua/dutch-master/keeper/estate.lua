--- estate.lua: what of a master outlives it: plain values in a snapshot, and the names of descriptors in the keeper's
-- store (src/keeper/keeper.h). Who has something to keep says it by `keep(book)`, and is made again from that by its
-- `resume`. A snapshot never names a descriptor that is not in the store by then, and one leaves the store only when no
-- snapshot names it any more. Objects that have not changed are not written again: see book.lua. Where the program is
-- built to be checked (DM_CHECK_STATE) each snapshot is made a second time, of all objects, and one that is different
-- is an internal error.

local books = require 'dutch-master.keeper.book'

-- What each version of a state has that the one before has not is made by the function of the former one.
local M = { VERSION = 2, READS = { 1, 2 } }

local json = books.json

-- ---------------------------------------------------------------------------------------------------------------------
-- Writing

local Writer = {}
Writer.__index = Writer

--- @param options {platform, log, checks = each snapshot is compared with one that is made anew,
--   collect = function(book) -> the state as a table of plain values, parts and what is made of them; nil: not yet}
function M.writer(options)
    return setmetatable({ platform = options.platform, log = options.log, collect = options.collect,
        checks = options.checks,
        round = 0, -- the number of the last snapshot
        kept = {}, -- name -> the descriptor, as the store has it
        owner = {}, -- name -> the newest part that names it; has_others: some have none
        has_others = false,
        parts = {}, -- of the last snapshot: a list
        shared = books.shared(),
    }, Writer)
end

-- What a part names is in the store before the part is in a snapshot.
local function put(self, part)
    for _, held in ipairs(part.fds) do
        if self.kept[held.name] ~= held.fd then
            local ok, message, code = self.platform.keep_fd(held.name, held.fd, held.pid)
            if not ok then
                return nil, message, code
            end
            self.kept[held.name] = held.fd
        end
        self.owner[held.name] = part
    end
    return true
end

-- It is in no snapshot yet: what is in the store for it goes, unless it is there next time.
local function disown(self, part)
    for _, held in ipairs(part.fds) do
        self.owner[held.name] = nil
    end
    self.has_others = true
end

local function take_in(self, parts)
    for _, part in ipairs(parts) do
        local ok, message, code = put(self, part)
        if not ok then
            disown(self, part)
            return nil, message, code
        end
    end
    return true
end

local function drop(self, name)
    self.platform.drop_fd(name)
    self.kept[name], self.owner[name] = nil, nil
end

local function count_users(part, difference)
    for _, entry in ipairs(part.shared or {}) do
        entry.users = entry.users + difference
    end
end

-- These are the parts of the newest snapshot: others have no meaning any more.
local function adopt(self, parts, fresh)
    self.round = self.round + 1
    local former, round = self.parts, self.round
    for _, part in ipairs(fresh) do
        count_users(part, 1)
    end
    for i = 1, #parts do
        parts[i].round = round
    end
    self.parts = parts
    for i = 1, #former do
        local part = former[i]
        if part.round ~= round then
            for _, held in ipairs(part.fds) do
                if self.owner[held.name] == part then
                    drop(self, held.name)
                end
            end
            count_users(part, -1)
        end
    end
    self.shared:sweep()
    if self.has_others then
        self.has_others = false
        for name in pairs(self.kept) do
            if not self.owner[name] then
                drop(self, name)
            end
        end
    end
end

-- @param code of what the keeper did not take, nil of all else. EAGAIN: on_write comes again as soon as it takes that
local function complain(self, message, code)
    if code == 'EAGAIN' then
        return nil, message, code
    elseif code == 'ETIMEDOUT' then
        message = ('the keeper does not move: if somebody has stopped it, kill -CONT %d'):format(self.platform.pid())
    end
    if self.complaint ~= message then
        self.complaint = message
        self.log():error({ reason = message }, 'State could not be kept, the keeper has an older one')
    end
    return nil, message
end

-- @return the whole as a list of texts and lists, and its book; or nil, message
local function compose(self, anew)
    local book = books.new(self.shared, self.round, anew)
    local state = self.collect(book)
    if not state then
        return nil, 'there is nothing to go on from yet'
    end
    state.version, state.shared = M.VERSION, self.shared:texts()
    local texts, message = book:close(state)
    if not texts then
        return complain(self, message)
    end
    return texts, book
end

-- Where two plain values differ, in words; nil: nowhere.
local function difference(one, other, path)
    if type(one) ~= 'table' or type(other) ~= 'table' then
        return one ~= other and ('%s is %s, and was kept as %s'):format(path, tostring(other), tostring(one)) or nil
    end
    for key in pairs(one) do
        local found = difference(one[key], other[key], path .. '.' .. tostring(key))
        if found then
            return found
        end
    end
    for key in pairs(other) do
        if one[key] == nil then
            return ('%s.%s is %s, and was not kept'):format(path, tostring(key), tostring(other[key]))
        end
    end
end

-- That no object has changed and kept its text.
local function check(self, whole)
    local anew = assert(compose(self, true))
    local found = difference(json.decode(books.text(whole)), json.decode(books.text(anew)), 'state')
    if found then
        error('a change was not noted: ' .. found)
    end
end

--- Writes a snapshot. @return true, or nil, message, code (EAGAIN: it comes soon)
function Writer:write()
    local whole, book = compose(self)
    if not whole then
        return nil, book
    end
    if self.checks then
        check(self, whole)
    end
    local ok, message, code = take_in(self, book.fresh)
    if ok then
        ok, message = self.platform.keep(whole)
    end
    if not ok then
        return complain(self, message, code)
    elseif self.complaint then
        self.complaint = nil
        self.log():info('State is kept again')
    end
    adopt(self, book.parts, book.fresh)
    return true
end

--- The keeper has died: all of it once more, for another one. @return as write
function Writer:again()
    self.kept, self.owner = {}, {}
    local ok, message = take_in(self, self.parts)
    if not ok then
        return complain(self, message)
    end
    return self:write()
end

--- These are in the store already. Connections come and go there without a snapshot: see listen/hand.lua.
function Writer:know(fds)
    self.has_others = true
    for name, fd in pairs(fds) do
        self.kept[name] = not name:find '^conn/' and fd or nil
    end
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Reading

local Former = {}
Former.__index = Former

-- The state of a version -> the same as one of the next version.
local NEXT = {}

-- Of a worker that leaves it was not kept how long it might take, and what it was allowed was its plan's time; nothing
-- of what it said, but when. (Nor what it had asked and was not answered: then there is none.)
NEXT[1] = function(state)
    for _, one in ipairs(state.cluster.workers) do
        local going, plan = one.leaving, state.shared[one.plan]
        one.health = { alive_at = one.alive_at, said = {} }
        if going and going.until_ms then
            going.allowed_ms = plan.stop_timeout_ms
            going.since_ms = going.until_ms - going.allowed_ms
        end
    end
end

local function to_this_version(state)
    while state.version < M.VERSION do
        NEXT[state.version](state)
        state.version = state.version + 1
    end
end

--- What a former master has left.
-- @param kept see platform.kept
-- @return the state, a table with `take` and `close_rest`; or nil, message
function M.read(kept, platform)
    local state, message = json.decode(kept.state)
    if type(state) ~= 'table' then
        return nil, message or 'it is no table'
    elseif state.version ~= M.VERSION and not NEXT[state.version] then
        return nil, ('it is of version %s, this program reads versions %s'):format(tostring(state.version),
            table.concat(M.READS, ', '))
    end
    local ok, why = pcall(to_this_version, state)
    if not ok then
        return nil, ('it is not as one of its version: %s'):format(why)
    end
    return M.former(state, kept, platform)
end

--- The same, where the state is known otherwise: see salvage.lua.
function M.former(state, kept, platform)
    return setmetatable({ state = state, store = kept.store, taken = {}, platform = platform }, Former)
end

--- The descriptor of that name, to be used; nil if it is not there.
function Former:take(name)
    local fd = name and self.store[name]
    if fd then
        self.taken[name] = fd
    end
    return fd
end

--- A value that was noted by book:share.
function Former:shared(number)
    return self.state.shared[number]
end

-- Whether a child of the keeper's was in the middle of its fork: no snapshot knows it. And which worker it was to be,
-- if it knows that already.
local function is_half_made(self, pid, fresh)
    local platform = self.platform
    local origin = platform.origin(pid)
    local id = tonumber(origin.worker)
    if id and origin.master == tostring(platform.pid()) then
        return fresh(id), id
    end
    -- Not yet what it is to be, or a process of the script: nobody talks to it any more. The one that kills workers
    -- with their master (dieWithMaster) is at work.
    local comm = platform.read_file(('/proc/%d/comm'):format(pid), 64) or ''
    return comm == 'dutch-master\n' -- before its exec, of another version too
        or platform.realpath(('/proc/%d/exe'):format(pid)) == platform.realpath '/proc/self/exe'
        and not comm:find '^dutch%-watcher'
end

--- Ends what the former master had begun to fork, and its processes of the script.
-- @param known set of the pids of workers, fresh = function(worker id) -> whether that never had a process by then
-- @return of the workers among them {pid, id}
function Former:end_strangers(known, fresh)
    local platform, ended = self.platform, {}
    local keeper, own = platform.pid(), platform.master_pid()
    local text = platform.read_file(('/proc/%d/task/%d/children'):format(keeper, keeper), 1048576) or ''
    for word in text:gmatch '%d+' do
        local pid = tonumber(word)
        local half_made, id
        if pid ~= own and not known[pid] then
            half_made, id = is_half_made(self, pid, fresh)
        end
        if half_made then
            platform.kill_stranger(pid)
            ended[#ended + 1] = id and { pid = pid, id = id }
        end
    end
    return ended
end

--- The store is newer than the state: what was opened in between is here, and nobody has taken it.
-- @param prefix of its names
-- @return list of the names, in order
function Former:unknown(prefix)
    local names = {}
    for name in pairs(self.store) do
        if not self.taken[name] and name:sub(1, #prefix) == prefix then
            names[#names + 1] = name
        end
    end
    table.sort(names)
    return names
end

--- What nobody has taken.
function Former:close_rest()
    for name, fd in pairs(self.store) do
        if not self.taken[name] then
            self.platform.close_fd(fd)
            self.platform.drop_fd(name)
        end
    end
end

return M
