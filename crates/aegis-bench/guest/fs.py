# Times the same work in two directories, turn about. Prints one line for each figure: its name and milliseconds.
# Arguments: files, megabytes, rounds.
import ctypes
import os
import shutil
import sys
import time

READS = 3


def drop_caches():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def mounted(where):
    """The guest's own disk without the overlay."""
    for name in os.listdir("/sys/block"):
        try:
            with open(f"/sys/block/{name}/serial") as file:
                if file.read().strip() == "aegis-upper":
                    os.makedirs(where, exist_ok=True)
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.mount(f"/dev/{name}".encode(), where.encode(), b"ext4", 0, None):
                        raise OSError(ctypes.get_errno(), "mount")
                    return where
        except FileNotFoundError:
            pass
    sys.exit("there is no disk")


def timed(name, work):
    began = time.perf_counter()
    work()
    print(name, (time.perf_counter() - began) * 1e3, flush=True)


def create(tree, count):
    data = b"x" * 2048
    for at in range(count):
        if at % 100 == 0:
            os.makedirs(f"{tree}/d{at // 100}")
        fd = os.open(f"{tree}/d{at // 100}/f{at}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(fd, data)
        os.close(fd)


def walk(tree):
    count = 0
    for directory, _, names in os.walk(tree):
        for name in names:
            os.stat(f"{directory}/{name}")
            count += 1
    return count


def read_all(tree):
    for directory, _, names in os.walk(tree):
        for name in names:
            fd = os.open(f"{directory}/{name}", os.O_RDONLY)
            os.read(fd, 4096)
            os.close(fd)


def write_big(path, megabytes):
    block = os.urandom(1 << 20)
    fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    for _ in range(megabytes):
        os.write(fd, block)
    os.fsync(fd)
    os.close(fd)


def read_big(path):
    fd = os.open(path, os.O_RDONLY)
    while os.read(fd, 1 << 20):
        pass
    os.close(fd)


files, megabytes, rounds = (int(text) for text in sys.argv[1:4])
places = [("disk", mounted("/mnt/disk") + "/bench"), ("workspace", "/workspace/bench")]
for _, place in places:
    os.makedirs(place)
for turn in range(rounds):
    for name, place in places:
        tree, big = f"{place}/tree{turn}", f"{place}/big"
        timed(f"{name}-create", lambda: create(tree, files))
        drop_caches()
        timed(f"{name}-walk-cold", lambda: walk(tree))
        walk(tree)
        timed(f"{name}-walk-warm", lambda: walk(tree))
        drop_caches()
        timed(f"{name}-read-cold", lambda: read_all(tree))
        timed(f"{name}-write", lambda: write_big(big, megabytes))
    # A read is short beside what goes on in a guest now and then, such as returning memory to the host.
    for _ in range(READS):
        for name, place in places:
            drop_caches()
            timed(f"{name}-read", lambda: read_big(f"{place}/big"))
    for _, place in places:
        os.remove(f"{place}/big")
# Last, because ext4 without a journal looks past every inode that was removed within minutes when it makes another one.
for turn in range(rounds):
    for name, place in places:
        timed(f"{name}-remove", lambda: shutil.rmtree(f"{place}/tree{turn}"))
