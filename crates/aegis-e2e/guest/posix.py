# A subset of what POSIX says about files, in the directory that is the first argument. Prints what does not hold.
import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import threading

ROOT = sys.argv[1]
LIBC = ctypes.CDLL(None, use_errno=True)
CASES = []
os.umask(0o022)


def case(function):
    CASES.append(function)
    return function


def put(path, content=b"x", mode=0o644):
    fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_RDWR, mode)
    os.write(fd, content)
    os.close(fd)


def get(path):
    with open(path, "rb") as file:
        return file.read()


def fails(code, call, *arguments):
    codes = code if isinstance(code, tuple) else (code,)
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno in codes, error
    else:
        raise AssertionError(f"{call.__name__}{arguments} did not fail")


@case
def modes_are_what_was_asked_for():
    os.umask(0)
    for mode in (0o644, 0o600, 0o755, 0o444, 0o1777):
        fd = os.open("m", os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
        os.write(fd, b"a")
        assert stat.S_IMODE(os.fstat(fd).st_mode) == mode
        os.close(fd)
        os.unlink("m")
    os.umask(0o027)
    os.mkdir("masked")
    assert stat.S_IMODE(os.stat("masked").st_mode) == 0o750
    os.umask(0o022)


@case
def bits_that_give_rights_away_are_dropped():
    put("s")
    os.chmod("s", 0o6755)
    assert stat.S_IMODE(os.stat("s").st_mode) == 0o755


@case
def renaming_replaces():
    put("r1", b"1")
    put("r2", b"2")
    fd = os.open("r2", os.O_RDONLY)
    os.rename("r1", "r2")
    assert get("r2") == b"1" and not os.path.exists("r1")
    assert os.read(fd, 9) == b"2"
    os.close(fd)
    os.makedirs("d1/x")
    put("d1/x/f")
    os.rename("d1", "d2")
    assert get("d2/x/f") == b"x"
    os.makedirs("d3/y")
    fails((errno.ENOTEMPTY, errno.EEXIST), os.rename, "d2", "d3")
    put("e1", b"1")
    put("e2", b"2")
    here, exchange, keep = -100, 2, 1
    assert LIBC.renameat2(here, b"e1", here, b"e2", exchange) == 0
    assert get("e1") == b"2" and get("e2") == b"1"
    assert LIBC.renameat2(here, b"e1", here, b"e2", keep) == -1 and ctypes.get_errno() == errno.EEXIST


@case
def an_unlinked_file_lives_while_it_is_open():
    fd = os.open("u", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"abc")
    os.unlink("u")
    os.lseek(fd, 0, 0)
    assert os.read(fd, 3) == b"abc"
    os.write(fd, b"d")
    assert os.fstat(fd).st_size == 4 and os.fstat(fd).st_nlink == 0
    os.ftruncate(fd, 1)
    assert os.fstat(fd).st_size == 1
    os.close(fd)


@case
def files_have_several_names():
    put("l1", b"1")
    os.link("l1", "l2")
    assert os.stat("l1").st_nlink == 2 and os.path.samefile("l1", "l2")
    os.unlink("l1")
    assert get("l2") == b"1" and os.stat("l2").st_nlink == 1


@case
def links_are_resolved_here():
    os.symlink("l2", "sl")
    assert os.readlink("sl") == "l2" and get("sl") == b"1"
    os.symlink("/proc/sys/kernel/ostype", "absolute")
    assert get("absolute") == b"Linux\n"
    os.symlink("loop", "loop")
    fails(errno.ELOOP, open, "loop")


@case
def holes_stay_holes():
    fd = os.open("sp", os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"end", 1 << 24)
    assert os.fstat(fd).st_size == (1 << 24) + 3 and os.fstat(fd).st_blocks * 512 < 1 << 20
    assert os.lseek(fd, 0, os.SEEK_DATA) > 0 and os.lseek(fd, 0, os.SEEK_HOLE) == 0
    os.posix_fallocate(fd, 0, 1 << 20)
    assert os.fstat(fd).st_blocks * 512 >= 1 << 20
    os.close(fd)


@case
def appending_appends():
    put("ap", b"a")
    with open("ap", "ab", 0) as one, open("ap", "ab", 0) as two:
        one.write(b"b")
        two.write(b"c")
        one.write(b"d")
    assert get("ap") == b"abcd"


@case
def truncating_truncates():
    put("tr", b"long")
    os.close(os.open("tr", os.O_WRONLY | os.O_TRUNC))
    assert os.stat("tr").st_size == 0
    os.truncate("tr", 100)
    assert get("tr") == b"\0" * 100


@case
def a_file_that_nobody_may_write_is_written_by_whoever_made_it():
    fd = os.open("ro", os.O_CREAT | os.O_WRONLY, 0o444)
    os.write(fd, b"data")
    os.close(fd)
    assert get("ro") == b"data"


@case
def mappings_are_written_back():
    put("mm", b"\0" * 8192)
    fd = os.open("mm", os.O_RDWR | os.O_APPEND)
    mapping = mmap.mmap(fd, 8192)
    mapping[0:5] = b"hello"
    mapping[4096:4100] = b"page"
    mapping.flush()
    mapping.close()
    os.close(fd)
    content = get("mm")
    assert content[:5] == b"hello" and content[4096:4100] == b"page" and len(content) == 8192


@case
def locks_keep_others_out():
    put("lk")
    fd = os.open("lk", os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 0)
    child = os.fork()
    if child == 0:
        other = os.open("lk", os.O_RDWR)
        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10)
        try:
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
        except OSError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    os.close(fd)


@case
def extended_attributes_of_users():
    put("xa")
    try:
        os.setxattr("xa", "user.a", b"v")
    except OSError as error:
        # The file system of the host may have none.
        assert error.errno == errno.EOPNOTSUPP
        return
    assert os.getxattr("xa", "user.a") == b"v" and os.listxattr("xa") == ["user.a"]
    os.removexattr("xa", "user.a")
    assert os.listxattr("xa") == []
    fails((errno.EOPNOTSUPP, errno.EPERM), os.setxattr, "xa", "trusted.a", b"v")


@case
def pipes_and_sockets_work_and_devices_are_refused():
    os.mkfifo("ff")
    assert stat.S_ISFIFO(os.stat("ff").st_mode)
    fails(errno.EPERM, os.mknod, "dv", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    server, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    server.bind("so")
    server.listen(1)
    client.connect("so")
    server.accept()


@case
def times_are_kept():
    put("ut")
    os.utime("ut", ns=(5, 1500000000123456789))
    assert os.stat("ut").st_mtime_ns == 1500000000123456789 and os.stat("ut").st_atime_ns == 5
    before = os.stat(".").st_mtime_ns
    put("touched")
    assert os.stat(".").st_mtime_ns > before


@case
def owners_are_accepted_and_ignored():
    put("co")
    os.chown("co", 1000, 1000)
    assert os.stat("co").st_uid == 0


@case
def a_directory_is_removed_while_it_is_read():
    os.mkdir("big")
    for at in range(700):
        put(f"big/f{at}", b"")
    assert len(os.listdir("big")) == 700
    shutil.rmtree("big")
    assert not os.path.exists("big")


@case
def a_removed_working_directory_still_is_one():
    os.mkdir("cw")
    os.chdir("cw")
    os.rmdir("../cw")
    os.stat(".")
    fails(errno.ENOENT, open, "f", "w")
    os.chdir(ROOT)


@case
def paths_may_be_deep_and_names_odd():
    deep = "deep/" + "/".join(["x" * 20] * 40)
    os.makedirs(deep)
    put(deep + "/f")
    assert get(deep + "/f") == b"x"
    for name in ("a b", "\u00e4", "\n", "x" * 255, "-", "..x", ".hidden"):
        put(name)
        assert name in os.listdir(".")
        os.unlink(name)
    fails(errno.ENAMETOOLONG, put, "x" * 256)


@case
def errors_have_their_numbers():
    put("ex")
    fails(errno.EEXIST, os.open, "ex", os.O_CREAT | os.O_EXCL)
    fails(errno.ENOTDIR, os.stat, "ex/x")
    fails(errno.ENOTDIR, os.rmdir, "ex")
    os.mkdir("isd")
    fails((errno.EISDIR, errno.EPERM), os.unlink, "isd")
    fails(errno.EISDIR, os.open, "isd", os.O_WRONLY)
    fails(errno.ENOENT, os.stat, "nothing")


@case
def programs_run():
    put("sc", b"#!/bin/sh\necho ran\n", 0o755)
    assert subprocess.check_output(["./sc"]) == b"ran\n"
    shutil.copy("/bin/busybox", "busybox")
    os.chmod("busybox", 0o755)
    assert subprocess.check_output(["./busybox", "echo", "ran"]) == b"ran\n"


@case
def databases_survive_several_writers():
    base = sqlite3.connect("db.sqlite")
    base.execute("pragma journal_mode=wal")
    base.execute("create table t(a integer)")

    def work():
        own = sqlite3.connect("db.sqlite", timeout=60)
        for _ in range(20):
            with own:
                own.execute("insert into t values(1)")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert base.execute("select count(*) from t").fetchone()[0] == 60
    assert base.execute("pragma integrity_check").fetchone()[0] == "ok"


@case
def everything_can_be_brought_to_the_disk():
    fd = os.open("fs", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"1")
    os.fsync(fd)
    os.fdatasync(fd)
    os.fsync(os.open(".", os.O_RDONLY | os.O_DIRECTORY))
    assert os.statvfs(".").f_blocks > 0


@case
def a_file_without_a_name_needs_a_kernel_that_can():
    try:
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR)
    except OSError as error:
        # Linux has it for FUSE since 6.2; Python then takes a file with a name that it removes.
        assert error.errno == errno.EOPNOTSUPP
    else:
        os.write(fd, b"x")
    import tempfile

    with tempfile.TemporaryFile(dir=".") as file:
        file.write(b"x")


@case
def ranges_are_copied():
    put("cp1", os.urandom(300_000))
    one, two = os.open("cp1", os.O_RDONLY), os.open("cp2", os.O_CREAT | os.O_WRONLY)
    left = 300_000
    while left:
        left -= os.copy_file_range(one, two, left)
    assert get("cp1") == get("cp2")


os.makedirs(ROOT)
os.chdir(ROOT)
failed = 0
for function in CASES:
    try:
        function()
    except BaseException as error:  # All of them are to be heard.
        failed += 1
        print(f"{function.__name__}: {error!r}")
        os.chdir(ROOT)
print(f"{len(CASES) - failed} hold")
sys.exit(bool(failed))
