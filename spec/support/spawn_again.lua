-- Run where fork fails: prints what spawn returns, how many children there are and how many
-- descriptors it has left open.
local core = require 'dutch-master.core'
local loop = require 'spec.loop'
local p = require 'spec.support.process'

local _, before = p.descriptors()
local opts = { file = '/bin/true', argv = { 'true' }, channel = true, capture_stderr = true }
print(core.spawn(opts))
loop.close()
local _, after = p.descriptors()
print(loop.children(), after - before)
