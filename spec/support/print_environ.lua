local e = require('dutch-master.core').environ()
print(e.A, e.B, e[''])
