-- A stand-in for the application: says which release answers.

local worker = require 'dutch-master.worker'

