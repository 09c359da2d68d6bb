-- The same client address reaches the same worker, as socket.io's HTTP polling and the like need, without a proxy.
-- A worker that leaves hands its clients on to others, and its replacement gets them back. Behind a proxy all clients
-- have the proxy's address: let that one choose then.
local dutch = require 'dutch-master'

dutch.start {
    worker = 'app.lua',
    numWorkers = 4,
    balance = 'sticky',
}
