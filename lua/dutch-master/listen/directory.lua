--- directory.lua: the listeners of the cluster: those of the plan, and those that workers asked for. When one is opened
-- or closed, and which one is meant. What happens inside one is rotation.lua's matter.
-- Longer than 400 lines: one list of listeners.

local Rotation = require 'dutch-master.listen.rotation'

-- Addresses that workers may ask for, all together: each costs the master descriptors, and a worker may ask for ever.
local MAX_ASKED = 256

-- More addresses than an app has that none of its workers has at a time.
local MAX_KEPT = 32

local Directory = {}
Directory.__index = Directory

--- @param options {platform, want = the number of workers, balance, inherited = platform.inherited()'s list,
--   borrowed = listening sockets of a former master's workers, see platform.copy_listener,
--   fields = what every listener is opened with: see Rotation.new}
function Directory.new(options)
    return setmetatable({
        platform = options.platform, wanted = options.want, balance = options.balance, fields = options.fields,
        inherited = options.inherited, borrowed = options.borrowed or {}, log = options.fields.log,
        plan = {}, -- listeners of the plan, in its order
        by_key = {}, -- those that workers asked for
        flights = {}, -- key -> list of functions: those that are being bound, and who waits for them
        retired = {}, -- no longer in the plan, still used
        opened = 0, -- listeners, ever
        past = { 0, 0, 0 }, -- what closed ones counted: see count
        rotations = {}, -- all of these: see note_all
    }, Directory)
end

local function in_their_order(by_key)
    local list = {}
    for _, rotation in pairs(by_key) do
        list[#list + 1] = rotation
    end
    table.sort(list, function(a, b)
        return a.number < b.number
    end)
    return list
end

-- One has come or gone: those of the plan in its order, those asked for in theirs, and those no longer in the plan. It
-- is another list each time: who walks along one may close some on the way.
local function note_all(self)
    self.rotations = {}
    for _, part in ipairs { self.plan, in_their_order(self.by_key), self.retired } do
        for _, rotation in ipairs(part) do
            self.rotations[#self.rotations + 1] = rotation
        end
    end
end

--- Whom sockets were borrowed from: see Rotation:lenders. @return list of ids, each once
function Directory:lenders()
    local ids, seen = {}, {}
    for _, rotation in ipairs(self.plan) do
        for _, id in ipairs(rotation:lenders()) do
            ids[#ids + 1] = not seen[id] and id or nil
            seen[id] = true
        end
    end
    return ids
end

-- A socket of that address (and number, if one is said) that came from outside. @return its number, its place
local function inherited_fd(self, address, fd)
    for i, socket in ipairs(self.inherited) do
        if socket.address and socket.address.text == address.text and (fd == nil or socket.fd == fd) then
            return socket.fd, i
        end
    end
end

-- The same, once.
local function take_inherited(self, address, fd)
    local found, place = inherited_fd(self, address, fd)
    if found then
        table.remove(self.inherited, place)
    end
    return found
end

-- Those of an address that a former master's workers have, once; nil if there are none, or they cannot be used as
-- balance wants it.
local function take_borrowed(self, address)
    local found = {}
    for i = #self.borrowed, 1, -1 do
        if self.borrowed[i].address.text == address.text then
            table.insert(found, 1, table.remove(self.borrowed, i))
        end
    end
    return found[1] and (#found == 1 or self.balance ~= 'shared') and found or nil
end

--- What of a former master nobody here asks for.
function Directory:close_borrowed()
    for _, socket in ipairs(self.borrowed) do
        self.platform.close_fd(socket.fd)
    end
    self.borrowed = {}
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Room

-- Whether `count` workers can have a lane each at an address. What the kernel lets us do there is not asked: the same
-- script is refused, or not, on every machine.
-- @param fd of the socket, if it came from outside: such a one is shared
-- @return true, or nil, message, code
local function has_room(self, count, address, fd)
    local lanes = self.balance ~= 'shared' and self.balance ~= 'queue' and not fd and not address.path
        and address.type == 'stream' and address.family ~= 'unix'
    if not lanes or count <= Rotation.MAX_WORKERS then
        return true
    end
    return nil, ("E2BIG: %s: %d workers, and at most %d can have a lane each: fewer workers, or balance = 'shared'")
        :format(address.text, count, Rotation.MAX_WORKERS), 'E2BIG'
end

local function have_room(self, rotations, count)
    for _, rotation in pairs(rotations) do
        local ok, message, code = has_room(self, count, rotation.address, rotation.fd)
        if not ok then
            return nil, message, code
        end
    end
    return true
end

--- Whether so many workers can be wanted.
-- @return true, or nil, message, code
function Directory:has_room(count)
    local ok, message, code = have_room(self, self.plan, count)
    if not ok then
        return nil, message, code
    end
    return have_room(self, self.by_key, count)
end

--- The number of workers wanted: so many lanes are kept.
function Directory:want(count)
    self.wanted = count
    for _, rotation in ipairs(self.rotations) do
        rotation:wants(count)
    end
end

-- ---------------------------------------------------------------------------------------------------------------------
-- The plan's

-- What every listener is made with.
local function add_fields(self, fields)
    for key, value in pairs(self.fields) do
        fields[key] = value
    end
    fields.want = self.wanted
    return fields
end

local function new_rotation(self, given)
    local asked = given.backlog or 0
    local fields = add_fields(self, given)
    fields.backlog = math.max(fields.backlog, asked)
    fields.fd = take_inherited(self, fields.address, fields.fd)
    fields.borrowed = not fields.fd and take_borrowed(self, fields.address) or nil
    self.opened = self.opened + 1
    fields.number = self.opened
    return Rotation.new(fields)
end

local function open_rotation(self, fields)
    local rotation = new_rotation(self, fields)
    local ok, message, code = rotation:open()
    if not ok then
        rotation:close()
        return nil, message, code
    end
    return rotation
end

-- An entry of the plan's list: text, or {address = text or table, name =, mode =}, or an address table with a name.
local function plan_entry(self, item)
    local text = type(item) == 'string' and item or item.text or item.address
    local fields = type(item) == 'table' and { name = item.name, mode = item.mode, owner = item.owner } or {}
    if type(text) == 'table' then
        text = text.text
    end
    local address, message, code = self.platform.address(text)
    if not address then
        return nil, message, code
    end
    fields.address, fields.key = address, address.text
    return fields
end

-- What can be seen to be wrong without binding: nothing is bound for a list that cannot be had as a whole.
-- @return the entries of `list`, or nil, message, code
local function plan_entries(self, list, count)
    local entries, seen = {}, {}
    for i, item in ipairs(list) do
        local fields, message, code = plan_entry(self, item)
        if not fields then
            return nil, message, code
        end
        if seen[fields.key] and fields.address.port ~= 0 then
            return nil, ('EADDRINUSE: %s is listed twice, leave one out'):format(fields.key), 'EADDRINUSE'
        end
        seen[fields.key] = true
        local ok
        ok, message, code = has_room(self, count, fields.address, inherited_fd(self, fields.address))
        if not ok then
            return nil, message, code
        end
        entries[i] = fields
    end
    return entries
end

-- Takes that of an entry out of `list`.
-- @param name the one with this name, nil: any
local function take_former(list, fields, name)
    for i, rotation in ipairs(list) do
        if rotation.key == fields.key and (name == nil or rotation.name == name) then
            return table.remove(list, i)
        end
    end
end

-- The listeners of `entries` that are there already, by their place, and the list of those that nobody asks for.
-- Several entries may want any port (":0"): each keeps the one of its name.
local function find_former(self, entries)
    local former, rest = {}, { unpack(self.plan) }
    for i, fields in ipairs(entries) do
        former[i] = fields.name and take_former(rest, fields, fields.name)
    end
    for i, fields in ipairs(entries) do
        former[i] = former[i] or take_former(rest, fields)
    end
    return former, rest
end

-- Those of `entries` in their order, old ones where they exist; `fresh` are the new ones among them.
local function assemble(self, entries, fresh)
    local plan, former, rest = {}, find_former(self, entries)
    for i, fields in ipairs(entries) do
        local message, code
        local rotation = former[i]
        if rotation and not rotation:has_rights(fields.mode, fields.owner) then
            return nil, ('%s: mode, user and group of its path cannot change while it is served: stop and start')
                :format(fields.key), 'EBUSY'
        end
        if not rotation then
            fields.may_block = true -- a server that was given its sockets knows how it accepts
            rotation, message, code = open_rotation(self, fields)
            if not rotation then
                return nil, message, code
            end
            fresh[#fresh + 1] = rotation
        end
        plan[i] = rotation
    end
    return plan, rest
end

--- Takes over another list: new listeners are bound before old ones are closed, and if one cannot be bound nothing has
-- changed. A listener that is not wanted any more closes when its last worker is gone.
-- @param count the number of workers that will be wanted, nil: as many as now
-- @param settled as of close_unused
-- @return true, or nil, message, code
function Directory:update(list, count, settled)
    count = count or self.wanted
    local ok, message, code = have_room(self, self.by_key, count)
    local entries
    if ok then
        entries, message, code = plan_entries(self, list, count)
    end
    if not entries then
        return nil, message, code
    end
    local fresh = {}
    local plan, rest
    plan, rest, code = assemble(self, entries, fresh)
    if not plan then
        for _, rotation in ipairs(fresh) do
            rotation:close()
        end
        return nil, rest, code
    end
    for i, rotation in ipairs(plan) do
        rotation:rename(type(list[i]) == 'table' and list[i].name or nil)
    end
    self.plan = plan
    for _, rotation in ipairs(rest) do
        self.retired[#self.retired + 1] = rotation
    end
    note_all(self)
    self:close_unused(settled)
    return true
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Those that workers ask for

local READABLE_ALL, WRITABLE_ALL, ADDS = tonumber('444', 8), tonumber('222', 8), tonumber('10000', 8)

-- As Node's own primary sets it: these bits and no others, or beside what the umask leaves (to core.listen, ADDS).
local function mode_of(request)
    local bits = (request.readable_all and READABLE_ALL or 0) + (request.writable_all and WRITABLE_ALL or 0)
    return bits > 0 and bits + (request.adds_modes and ADDS or 0) or nil
end

-- A key of a state that a former version wrote: it put one "+" for each port that the worker had already.
local function numbered(key)
    return (key:gsub('^(.*:0#%d+)(%++)$', function(base, signs)
        return base .. '+' .. #signs
    end))
end

-- The n-th listen(0) of every worker is one port; but datagram sockets without a port are each worker's own. A unix
-- socket is its user's: workers of another user have no part in it.
local function key_of(id, request)
    local key = request.key and numbered(request.key) or request.name or request.text
    if not request.stream and request.port == 0 and request.type ~= 'unix' then
        key = key .. '@' .. id
    elseif request.as and request.text and request.text:find '^unix:' then
        key = ('%s of %s:%s'):format(key, request.as.uid, request.as.gid)
    end
    return key
end

-- A worker that has found a port by listen(0), closed that and listens at the port, as get-port does, and asks for a
-- port once more: that is another one.
local function spare_key(self, id, request)
    local base, found = key_of(id, request), 0
    local key = base
    while request.stream and request.port == 0 and self.by_key[key] and self.by_key[key]:has(id) do
        found = found + 1
        key = base .. '+' .. found
    end
    return key
end

-- What was asked for as any port has one by now.
local function find_port(self, request, address)
    for key, rotation in pairs(self.by_key) do
        if request.stream and address and address.port ~= 0 and rotation.address.text == address.text
            and key:find(':0#', 1, true) then
            return rotation
        end
    end
end

local function find(self, key, request, address)
    if self.by_key[key] then
        return self.by_key[key]
    end
    local found = find_port(self, request, address)
    if found then
        return found
    end
    for former_key, rotation in pairs(self.by_key) do
        if rotation.found and address and address.port ~= 0 and rotation.address.text == address.text then
            self.by_key[former_key] = nil
            self.by_key[key] = rotation
            rotation:belong(key)
            return rotation
        end
    end
    for _, rotation in ipairs(self.plan) do
        if address and address.port ~= 0 and rotation.address.text == address.text then
            return rotation
        end
    end
    for _, rotation in ipairs(self.rotations) do
        if rotation.fd and (rotation.fd == request.fd or address and rotation.address.text == address.text) then
            return rotation
        end
    end
end

--- A listener for a worker's request that exists already: asked for before, of the plan, or one that came from outside,
-- whether it was asked for by its number or by its address.
function Directory:find(id, request)
    return find(self, key_of(id, request), request, request.text and self.platform.address(request.text) or nil)
end

-- The address of a request: of listen({fd}) it is that of the socket with this number among those from outside.
local function address_of(self, request)
    if request.text then
        return self.platform.address(request.text)
    end
    for _, socket in ipairs(self.inherited) do
        if socket.fd == request.fd and socket.address and (socket.address.type ~= 'dgram') == request.stream then
            return socket.address
        end
    end
    local message = request.fd and ('no socket was passed to the master as descriptor %d'):format(request.fd)
    return nil, message or 'no such socket', 'EINVAL'
end

local function asked_for(self)
    local count = 0
    for _ in pairs(self.by_key) do
        count = count + 1
    end
    for _ in pairs(self.flights) do
        count = count + 1
    end
    return count
end

-- The address of a listener of ours that an address cannot be beside: 0.0.0.0:80 and :80, a path of another user's.
local function in_the_way(self, address)
    for _, rotation in ipairs(self.rotations) do
        local other = rotation.address
        if address.family == 'unix' and other.text == address.text then
            return other.text .. " of another user's workers"
        end
        if address.port and address.port ~= 0 and other.port == address.port and other.type == address.type then
            return other.text
        end
    end
end

-- One that a worker asked for has been bound, or not. @return it, or nil, message, code
local function settle(self, key, rotation, ok, message, code)
    if ok and not self.closed then
        self.by_key[key] = rotation
        note_all(self)
        return rotation
    end
    rotation:close()
    local taken = code == 'EADDRINUSE' or code == 'EPERM' -- its owner's, as seen with other rights
    local ours = taken and in_the_way(self, rotation.address)
    if ours and rotation.address.family == 'unix' then
        return nil, ('%s: the master holds %s: list it in `listen`'):format(rotation.address.text, ours), 'EADDRINUSE'
    elseif ours then
        message = ('%s: the master itself holds %s, for the workers before this one. An address cannot take another'
            .. ' form in a restart: listen on %s, or stop the master and start it again')
            :format(rotation.address.text, ours, ours)
    end
    return nil, message, code
end

-- Closes what cannot be beside an address, where nobody has it any more: of listen(0), or in another form.
-- @return whether there was something
local function make_way(self, address)
    local found = false
    for key, rotation in pairs(self.by_key) do
        local other = rotation.address
        if address.port and other.port == address.port and other.type == address.type and not rotation.fd
            and not rotation:is_used() then
            self.by_key[key], found = nil, true
            self:retire(rotation)
        end
    end
    note_all(self)
    return found
end

-- Everybody who waits for that address gets the same answer.
local function land(self, key, ...)
    local waiting = self.flights[key]
    self.flights[key] = nil
    for _, later in ipairs(self.closed and {} or waiting) do
        later(...)
    end
end

local function bind(self, key, request, address, later)
    local rotation = new_rotation(self, {
        key = key, address = address, backlog = request.backlog, mode = mode_of(request), fd = request.fd,
        as = request.as, reuse = request.reuse_address,
    })
    local function landed(...)
        land(self, key, settle(self, key, rotation, ...))
    end
    local ok, message, code = rotation:open(landed)
    if code == 'EADDRINUSE' and make_way(self, address) then
        ok, message, code = rotation:open(landed)
    end
    if ok == false then
        self.flights[key] = { later }
        return false
    end
    return settle(self, key, rotation, ok, message, code)
end

--- The listener for a worker's request, opened if there is none yet: with the rights request.as, if the script does not
-- list the address.
-- @return it; or nil, message, code; or false: later(one of these) follows
function Directory:open(id, request, later)
    local key = spare_key(self, id, request)
    request.key = key ~= key_of(id, request) and key or request.key
    local address, message, code = address_of(self, request)
    local rotation = find(self, key, request, address)
    if rotation and rotation == find_port(self, request, address) and rotation:has(id) then
        return nil, ('EADDRINUSE: %s: the worker has it already, of a listen() to any port'):format(address.text),
            'EADDRINUSE'
    end
    if rotation and rotation:mends(id, function()
        local found, reason, why = self:open(id, request, later)
        if found ~= false and not self.closed then
            later(found, reason, why)
        end
    end) then
        return false
    end
    if rotation or not address then
        return rotation, message, code
    end
    if self.flights[key] then
        table.insert(self.flights[key], later)
        return false
    end
    if asked_for(self) >= MAX_ASKED then
        return nil, ('%s: %d addresses are open already'):format(address.text, MAX_ASKED), 'EMFILE'
    end
    if request.dual ~= nil and address.host == '::' then
        address.dual = request.dual
    end
    local ok
    ok, message, code = has_room(self, self.wanted, address, inherited_fd(self, address, request.fd))
    if not ok then
        return nil, message, code
    end
    return bind(self, key, request, address, later)
end

-- ---------------------------------------------------------------------------------------------------------------------
-- The end

-- Those of by_key that nobody has, and that are only kept for who may come; the newest first.
local function kept(self)
    local list = {}
    for key, rotation in pairs(self.by_key) do
        if not rotation:is_used() and not rotation.fd and rotation:is_awaited() then
            list[#list + 1] = { key = key, rotation = rotation }
        end
    end
    table.sort(list, function(a, b)
        return a.rotation.number > b.rotation.number
    end)
    return list
end

--- Closes one for good. What it counted is kept.
function Directory:retire(rotation)
    local rescued, busy, lost = rotation:count()
    local address, waiting = rotation.address.text, rotation:close()
    local past = self.past
    self.past = { past[1] + rescued, past[2] + busy, past[3] + lost + waiting }
    if waiting > 0 then
        self.log:warn({ address = address, connections = waiting }, 'Waiting connections lost, their socket is closed')
    end
end

--- Connections that were rescued, times that a lane was busy, connections that were lost, ever.
function Directory:count()
    local sum = { unpack(self.past) }
    for _, rotation in ipairs(self.rotations) do
        for i, count in ipairs { rotation:count() } do
            sum[i] = sum[i] + count
        end
    end
    return unpack(sum)
end

--- What waits at an address where nobody will serve any more: see rotation.lua.
function Directory:turn_away(now)
    for _, rotation in pairs(self.by_key) do
        if not rotation.fd then
            rotation:turn_away(now)
        end
    end
end

--- Closes listeners that nobody has any more: those that left the plan; of those that workers asked for, the ones where
-- nobody ever served, and the ones that a restart has given up. An address that was served stays: whoever comes there
-- waits for the next worker. What came from outside stays too: it could not be had again.
-- @param settled whether everybody who might still ask for a listener has asked
function Directory:close_unused(settled)
    local spare = kept(self)
    local fewer = #spare > MAX_KEPT
    for i = MAX_KEPT + 1, #spare do -- of an app that takes a new port each time
        self.by_key[spare[i].key] = nil
        self:retire(spare[i].rotation)
    end
    for i = #self.retired, 1, -1 do
        if not self.retired[i]:is_used() then
            fewer = true
            self:retire(table.remove(self.retired, i))
        end
    end
    for key, rotation in pairs(self.by_key) do
        local private = key:find('@', 1, true) and not rotation.address.path
        if not rotation:is_used() and not rotation.fd and (private or settled and not rotation:is_awaited()) then
            fewer = true
            self.by_key[key] = nil
            self:retire(rotation)
        end
    end
    if fewer then
        note_all(self)
    end
end

--- A worker is gone, or lost.
function Directory:drop(id, settled)
    for _, rotation in ipairs(self.rotations) do
        rotation:drop(id)
    end
    self:close_unused(settled)
end

--- A restart has completed: listeners that no staying worker has are given up. They close when nothing waits there.
-- @param stays = function(worker_id) -> whether that worker stays
function Directory:release(stays, settled)
    for _, rotation in pairs(self.by_key) do
        rotation:release(stays)
    end
    self:close_unused(settled)
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Over the death of a master

local function keep_list(list, book)
    local result = {}
    for i, rotation in ipairs(list) do
        result[i] = rotation:keep(book)
    end
    return book:list(result)
end

--- For another master: see keeper/estate.lua.
function Directory:keep(book)
    return book:object { wanted = self.wanted, opened = self.opened, past = self.past,
        plan = keep_list(self.plan, book), asked = keep_list(in_their_order(self.by_key), book),
        retired = keep_list(self.retired, book) }
end

local function resume_list(self, list, former, add)
    for _, former_one in ipairs(list) do
        if former_one.fd then
            take_inherited(self, former_one.address, former_one.fd)
        end
        local rotation, message = Rotation.resume(add_fields(self, {}), former_one, former)
        if not rotation then
            return nil, message
        end
        add(rotation)
    end
    return true
end

--- @return true, or nil, message
function Directory:resume(state, former)
    self.wanted, self.opened, self.past = state.wanted, state.opened, state.past
    local ok, message = resume_list(self, state.plan, former, function(rotation)
        self.plan[#self.plan + 1] = rotation
    end)
    for _, asked in ipairs(state.asked) do
        asked.key = numbered(asked.key)
    end
    if ok then
        ok, message = resume_list(self, state.asked, former, function(rotation)
            self.by_key[rotation.key] = rotation
        end)
    end
    if ok then
        ok, message = resume_list(self, state.retired, former, function(rotation)
            self.retired[#self.retired + 1] = rotation
        end)
    end
    note_all(self)
    return ok, message
end

function Directory:close()
    self.closed = true
    for _, rotation in ipairs(self.rotations) do
        self:retire(rotation)
    end
    self.plan, self.by_key, self.retired, self.rotations = {}, {}, {}, {}
end

return Directory
