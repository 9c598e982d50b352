"""What the child process of ``sandbox.py`` runs: it locks itself in, then executes a stranger's program and its tests.

Standard input holds one JSON object, the order: ``answer`` (source code), ``program`` (the source of ``sandbox_program.py``), ``folder``, ``filter``
(the seccomp filter, in hexadecimal), ``without`` (layers that are not to be used), limits, and the numbers of two open files: the report is written
to ``report``, and from ``token`` come the tests once the program has ended, then a word. The report is JSON lines: ``layers`` or ``refused``;
``answered``; ``passed`` with the word, or ``failed``; and the ``signal`` that ended the program and its ``seconds``, where there was one. Where the
layers that could be had do not suffice, nothing is executed.

Three processes follow each other: this one; the first of a process namespace, whose end takes all others with it; and the one that executes.
"""

import _thread
import ctypes
import json
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import Any

NEW_MOUNTS, NEW_NAMES, NEW_IPC, NEW_USERS, NEW_PROCESSES, NEW_NETWORK = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
READ_ONLY, NO_SUID, NO_DEVICES, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
NO_PROGRAMS, NO_TIMES, NO_FOLDER_TIMES, RELATIVE_TIMES_OF_FILES, RELATIVE_TIMES = 8, 1024, 2048, 4096, 1 << 21
KEPT, DETACH = NO_SUID | NO_DEVICES | NO_PROGRAMS | NO_TIMES | NO_FOLDER_TIMES, 2
SET_DEATH_SIGNAL, KEEP_CAPABILITIES, SET_SECCOMP, SET_NO_NEW_PRIVILEGES = 1, 8, 22, 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock, the same numbers everywhere
READ_EVERYTHING = 1 << 2  # the capability to read whatever Landlock and the root leave in sight
THREADS = 64  # of a user in a namespace of its own
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
LEAST_LANDLOCK = 3  # before that it does not keep files from being truncated

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> int:
    """Raise OSError if a call of the system's library failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def control(option: int, value: Any, more: Any = 0) -> None:
    """Set something of this process."""
    check(
        libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), more if more else ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
    )


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount something."""
    check(libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None))


# ---------------------------------------------------------------------------------------------------------------------- namespaces


def leave_the_system() -> str:
    """Enter namespaces without network, other processes or shared mounts; return ``root``, ``user``, or ``""`` where that is not allowed."""
    wanted = NEW_MOUNTS | NEW_NAMES | NEW_IPC | NEW_PROCESSES | NEW_NETWORK
    if os.geteuid() == 0:  # in users of its own root stays root, whose threads no limit counts: Landlock must do, as somebody else
        return "root" if libc.unshare(wanted) == 0 else ""
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(wanted | NEW_USERS) != 0:
        return ""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with suppress(FileNotFoundError), open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return "user"


def readable() -> list[str]:
    """Return the folders and files that the interpreter needs: its library and the system's; none that lies in another one of them.

    Of folders elsewhere, such as those in ``LD_LIBRARY_PATH``, only the very libraries that it has loaded.
    """
    found = [os.path.dirname(os.__file__), os.path.join(sys.base_prefix, "lib"), "/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    with open("/proc/self/maps") as maps:
        found += sorted({line.split(None, 5)[5].strip() for line in maps if ".so" in line.rsplit("/", 1)[-1] and "/" in line})
    found += ["/etc/ld.so.cache", "/usr/share/zoneinfo"]
    found += [os.path.realpath(path) for path in found]
    there = [path for path in dict.fromkeys(found) if os.path.exists(path) and path != "/"]
    return [path for path in there if os.path.islink(path) or not any(path != other and path.startswith(other + "/") for other in there)]


def new_root(folder: str, most_bytes: int, user: int) -> None:
    """Make a root of its own out of what the interpreter needs, read only, and of an empty folder in memory, ``/work``."""
    mount("none", "/", "", RECURSIVE | PRIVATE)
    mount("tmpfs", folder, "tmpfs", NO_SUID | NO_DEVICES, "size=1m,mode=0755")
    for path in (*readable(), *DEVICES):
        place = folder + path
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if os.path.islink(path):
            if not os.path.lexists(place):
                os.symlink(os.readlink(path), place)
            continue
        if os.path.isdir(path):
            os.makedirs(place, exist_ok=True)
        else:
            with open(place, "w"):
                pass
        mount(path, place, "", BIND | RECURSIVE)
        had = os.statvfs(place).f_flag
        kept = had & KEPT | (RELATIVE_TIMES if had & RELATIVE_TIMES_OF_FILES else 0)  # what is set already may not be taken away
        mount("none", place, "", BIND | REMOUNT | READ_ONLY | NO_SUID | kept | (0 if path in DEVICES else NO_DEVICES))
    os.mkdir(folder + "/work")
    mount("tmpfs", folder + "/work", "tmpfs", NO_SUID | NO_DEVICES, f"size={most_bytes},nr_inodes=4096,mode=0700,uid={user},gid={user}")
    mount("none", folder, "", BIND | REMOUNT | READ_ONLY | NO_SUID | NO_DEVICES)
    os.chdir(folder)
    check(libc.syscall(155 if os.uname().machine == "x86_64" else 41, b".", b"."))  # pivot_root
    check(libc.umount2(b".", DETACH))
    os.chdir("/work")


# ------------------------------------------------------------------------------------------------------------- what stays with a process


def landlock_version() -> int:
    """Return the version of Landlock that the kernel has, 0 for none."""
    return max(0, int(libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))))


def landlock(version: int, work: str) -> None:
    """Refuse this process every file but those that the interpreter reads, and those of its folder."""
    execute, write, read, read_folder, truncate = 1, 2, 4, 8, 1 << 14
    everything = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    own = (
        write | read | read_folder | truncate | sum(1 << bit for bit in (4, 5, 7, 8, 12, 13))
    )  # remove, make files, folders and links, move
    sizes = 8 if version < 4 else 16 if version < 6 else 24
    rights = (ctypes.c_uint64 * 3)(everything, 3, 3)  # files; TCP; abstract sockets and signals
    ruleset = check(libc.syscall(CREATE_RULESET, rights, ctypes.c_size_t(sizes), ctypes.c_uint(0)))
    rules = [(path, execute | read | read_folder) for path in readable_inside()] + [(path, read | write) for path in DEVICES]
    for path, granted in [*rules, (work, own)]:
        handle = os.open(path, 0o10000000 | os.O_CLOEXEC)  # a handle that reads nothing
        if not os.path.isdir(path):
            granted &= execute | write | read | truncate
        rule = (granted & everything).to_bytes(8, sys.byteorder) + handle.to_bytes(4, sys.byteorder)
        check(libc.syscall(ADD_RULE, ruleset, ctypes.c_int(1), rule, ctypes.c_uint(0)))
        os.close(handle)
    check(libc.syscall(RESTRICT_SELF, ruleset, ctypes.c_uint(0)))
    os.close(ruleset)


def readable_inside() -> list[str]:
    """Return what of ``readable`` is there; found before the root changed, where it did."""
    return [path for path in READABLE if os.path.exists(path)]


def drop_privileges(user: int, work: str) -> None:
    """Become somebody else where that is possible, and give up every capability; but for reading, where the library is for root alone."""
    kept = 0
    if user != os.geteuid():
        parent = os.getppid()
        control(KEEP_CAPABILITIES, 1)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        control(SET_DEATH_SIGNAL, signal.SIGKILL)  # which the new user has taken away
        if os.getppid() != parent:
            os._exit(1)
        if not all(os.access(path, os.R_OK) for path in (os.__file__, json.__file__, work)):
            kept = READ_EVERYTHING
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    check(libc.capset(head, (ctypes.c_uint32 * 6)(kept, kept)))


def limit(order: dict[str, Any], threads: int, rooted: bool) -> None:
    """Bound memory, processor time, files and threads. Without a folder in memory the open files together may be as large as all files."""
    handles = 64 if rooted else max(16, min(64, order["folder_bytes"] // order["file_bytes"]))
    wanted = {
        "RLIMIT_AS": order["memory_bytes"],
        "RLIMIT_FSIZE": order["file_bytes"] if rooted else min(order["file_bytes"], order["folder_bytes"] // handles),
        "RLIMIT_NOFILE": handles,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": threads,
    }
    for name, most in wanted.items():
        hard = resource.getrlimit(getattr(resource, name))[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(getattr(resource, name), (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (order["cpu_seconds"], order["cpu_seconds"] + 1))


def check_threads() -> None:
    """Raise OSError where the limit on threads is not kept, as it is not for root."""
    most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    resource.setrlimit(resource.RLIMIT_NPROC, (0, most))
    try:
        _thread.start_new_thread(int, ())
    except RuntimeError:
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
        return
    raise OSError("no limit on threads holds for this user; start it as an ordinary one")


def filter_calls(program: bytes) -> None:
    """Let the kernel refuse every system call that is not on the list."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]

    control(SET_SECCOMP, 2, ctypes.byref(Program(len(program) // 8, program)))


# ------------------------------------------------------------------------------------------------------------------------- the program


def tell(report: int, **said: Any) -> None:
    """Write a line of the report."""
    os.write(report, json.dumps(said).encode() + b"\n")


def lock_in(order: dict[str, Any], kind: str, rooted: bool, user: int, threads: int) -> dict[str, Any]:
    """Give up everything that the program does not need; return the layers that hold."""
    work = "/work" if rooted else order["folder"]
    version = 0 if "landlock" in order["without"] else landlock_version()
    os.chdir(work)
    limit(order, threads, rooted)
    if not rooted and user != os.geteuid():
        os.chown(work, user, user)
    control(SET_NO_NEW_PRIVILEGES, 1)
    if version:
        landlock(version, work)
    drop_privileges(user, work)
    check_threads()
    os.environ.clear()
    os.environ.update(HOME=work, TMPDIR=work, PWD=work)
    filter_calls(bytes.fromhex(order["filter"]))
    with open(os.__file__):  # or every import would fail, and with it every program
        pass
    return {"namespaces": kind, "root": rooted, "landlock": version, "seccomp": True}


def work_on(order: dict[str, Any], kind: str, rooted: bool, user: int, threads: int) -> None:
    """Lock this process in, execute, report, end."""
    report = order["report"]
    try:
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        layers = lock_in(order, kind, rooted, user, threads)
    except Exception as error:
        tell(report, refused=f"{type(error).__name__}: {error}")
        os._exit(1)
    if not rooted and layers["landlock"] < LEAST_LANDLOCK:
        tell(report, refused=f"no namespaces, and Landlock {layers['landlock']} of at least {LEAST_LANDLOCK}")
        os._exit(1)
    tell(report, layers=layers)
    space: dict[str, Any] = {"__name__": "sandbox_program"}
    exec(order["program"], space)
    answer, run, end = order["answer"], space["executor"](report, order["token"]), os._exit
    order.clear()
    run(answer)
    end(0)


def follow(pid: int, report: int) -> None:
    """Wait for a child process, report the signal that ended it, if one did, and end as it did."""
    _, found, used = os.wait4(pid, 0)
    status = os.waitstatus_to_exitcode(found)
    if status < 0:
        tell(report, signal=-status, seconds=used.ru_utime + used.ru_stime)
    os._exit(status if status >= 0 else 128 - status)


def main() -> None:
    """Read the order, leave the system, and let a child work."""
    order = json.load(sys.stdin.buffer)
    os.umask(0o022)
    kind, rooted = "", False
    READABLE.extend(readable())
    user = order["user"]
    if "namespaces" not in order["without"]:
        kind = leave_the_system()
    if kind:
        try:
            new_root(order["folder"], order["folder_bytes"], user)
            rooted = True
        except OSError:  # a system that lets nobody mount: Landlock must do
            libc.umount2(order["folder"].encode(), DETACH)
    control(SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != order["parent"]:
        os._exit(1)
    for _ in range(2 if kind else 1):  # the first process of a namespace is deaf to signals from inside; it only waits
        pid = os.fork()
        if pid:
            follow(pid, order["report"])
        control(SET_DEATH_SIGNAL, signal.SIGKILL)
    work_on(order, kind, rooted, user, THREADS if kind == "user" else order["threads"])


READABLE: list[str] = []

if __name__ == "__main__":
    main()
