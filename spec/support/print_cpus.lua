print(require('dutch-master.core').cpus())
