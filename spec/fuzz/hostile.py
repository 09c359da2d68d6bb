"""What hostile.py CORPUS says on a socket of the master: lines of the corpus, changed at random, with descriptors.

fuzz_channel: a worker of kind node, on NODE_CHANNEL_FD. fuzz_notify: one of kind exec, to NOTIFY_SOCKET."""
import array, os, random, select, signal, socket, sys, time

mode, corpus, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
random.seed(seed + os.getpid())
lines = [line.rstrip(b'\n') for line in open(corpus, 'rb')]
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
VALUES = [b'null', b'true', b'0', b'-1', b'1e308', b'1e999', b'4294967296', b'9007199254740993', b'""', b'[]', b'{}',
          b'"\\u0000"', b'"\\ud800"', b'[[[[[[]]]]]]', b'"' + b'x' * 5000 + b'"', b'"../../../etc/passwd"', b'65536']


def changed(line):
    kind = random.randrange(8)
    if kind < 3:
        return line
    if kind == 3:  # another value
        parts = line.split(b':')
        if len(parts) > 1:
            i = random.randrange(1, len(parts))
            rest = parts[i].find(b',')
            parts[i] = random.choice(VALUES) + (parts[i][rest:] if rest >= 0 else b'}')
        return b':'.join(parts)
    line = bytearray(line or b'x')
    if kind == 4:
        line[random.randrange(len(line))] = random.randrange(256)
    elif kind == 5:
        del line[random.randrange(len(line)):]
    elif kind == 6:
        at = random.randrange(len(line))
        line[at:at] = os.urandom(random.randrange(20))
    else:
        line = bytearray(random.choice(lines) + line)
    return bytes(line)


def some_descriptors():
    made = []
    for _ in range(random.choice((0, 0, 0, 1, 1, 2, 5))):
        kind = random.randrange(5)
        if kind == 0:
            made.extend(os.pipe())
        elif kind == 1:
            made.append(os.open('/dev/null', os.O_RDWR))
        else:
            s = socket.socket((socket.AF_INET, socket.AF_UNIX)[kind % 2], socket.SOCK_STREAM)
            if kind == 4:
                s.bind(('127.0.0.1', 0))
                s.listen(1)
            made.append(s.detach())
    return made


def send(s, data):
    fds = some_descriptors()
    try:
        s.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else [])
    except BlockingIOError:
        time.sleep(0.001)
    except OSError:  # the master has had enough
        os._exit(0)
    finally:
        for fd in fds:
            os.close(fd)


def read_some(s):
    for _ in range(random.randrange(4)):
        if not select.select([s], [], [], 0)[0]:
            return
        data, ancillary, _, _ = s.recvmsg(4096, 4096)
        for _, _, numbers in ancillary:
            fds = array.array('i')
            fds.frombytes(numbers[:len(numbers) - len(numbers) % 4])
            for fd in fds:
                os.close(fd)
        if not data:
            os._exit(0)


if mode == 'channel':
    s = socket.socket(fileno=int(os.environ['NODE_CHANNEL_FD']))
    s.setblocking(False)
    reads = random.random() < 0.8
    if not os.path.exists('go'):  # the boot: it serves, as far as the master knows
        for line in lines[:2]:
            s.sendall(line + b'\n')
        while not os.path.exists('go'):
            time.sleep(0.01)
            read_some(s)
            s.setblocking(True)
            s.sendall(lines[6] + b'\n')
            s.setblocking(False)
    elif random.random() < 0.7:
        s.sendall(lines[0] + b'\n')
else:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.connect(os.environ['NOTIFY_SOCKET'])
    s.setblocking(False)
said = os.open('said', os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)  # how much: a byte for each line
for _ in range(random.randrange(1, 3000)):
    os.write(said, b'.')
    line = changed(random.choice(lines))
    if mode == 'notify':
        line = line.decode('latin1').encode().decode('unicode_escape', 'replace').encode('latin1', 'replace') if b'\\' in line else line
        send(s, line)
    else:
        send(s, line + random.choice((b'\n', b'\n', b'\n', b'\n', b'\n', b'', b'\n\n', b'\r\n')))
        if reads:
            read_some(s)
    if random.randrange(20) == 0:
        time.sleep(random.random() * 0.01)
end = random.randrange(4)
if end == 0:
    s.close()
elif end == 1:
    os.kill(os.getpid(), signal.SIGKILL)
elif end == 2:
    time.sleep(random.random())
os._exit(random.choice((0, 1, 255)))
