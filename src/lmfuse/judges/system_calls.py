"""What a stranger's program may ask of the kernel: a short list of system calls, as a filter that the kernel runs (seccomp).

Whatever is not listed fails with "operation not permitted": sockets that reach anybody else, new processes and programs, signals to others,
mounts, other users' processes, owners of files, memory that no limit counts. To set modes and times of files does nothing. Threads of its own it may
have.
"""

from __future__ import annotations

import platform
import struct
import sys

# name, number on x86-64, number on 64-bit ARM (none: there the library calls another one)
_TABLE = """
read 0 63, write 1 64, open 2, close 3 57, stat 4, fstat 5 80, lstat 6, poll 7, lseek 8 62, mmap 9 222, mprotect 10 226,
munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, pread64 17 67, pwrite64 18 68,
readv 19 65, writev 20 66, preadv 295 69, pwritev 296 70, preadv2 327 286, pwritev2 328 287, access 21, pipe 22, select 23,
sched_yield 24 124, mremap 25 216, msync 26 227, mincore 27 232, madvise 28 233, dup 32 23, dup2 33, nanosleep 35 101,
getitimer 36 102, alarm 37, setitimer 38 103, getpid 39 172, sendfile 40 71, exit 60 93, uname 63 160, flock 73 32, fsync 74 82,
fdatasync 75 83, truncate 76 45, ftruncate 77 46, getdents 78, getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82, mkdir 83,
rmdir 84, creat 85, link 86, unlink 87, symlink 88, readlink 89, umask 95 166, gettimeofday 96 169, getrlimit 97 163,
getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176, geteuid 107 175, getegid 108 177, getppid 110 173,
getpgrp 111, getgroups 115 158, getresuid 118 148, getresgid 120 150, getpgid 121 155, getsid 124 156, rt_sigpending 127 136,
rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, statfs 137 43, fstatfs 138 44, sched_getparam 143 121,
sched_getscheduler 145 120, sched_getaffinity 204 123, gettid 186 178, time 201, futex 202 98, getdents64 217 61,
set_tid_address 218 96, restart_syscall 219 128, fadvise64 221 223, clock_gettime 228 113, clock_getres 229 114,
clock_nanosleep 230 115, exit_group 231 94, epoll_wait 232, epoll_ctl 233 21, epoll_create 213, epoll_create1 291 20,
epoll_pwait 281 22, openat 257 56, mkdirat 258 34, newfstatat 262 79, unlinkat 263 35, renameat 264 38, renameat2 316 276,
linkat 265 37, symlinkat 266 36, readlinkat 267 78, faccessat 269 48, faccessat2 439 439, pselect6 270 72, ppoll 271 73,
set_robust_list 273 99, get_robust_list 274 100, splice 275 76, tee 276 77, fallocate 285 47, eventfd 284, eventfd2 290 19,
dup3 292 24, pipe2 293 59, getrandom 318 278, copy_file_range 326 285, statx 332 291, rseq 334 293, membarrier 324 283,
arch_prctl 158, getcpu 309 168, close_range 436 436
"""
_CHECKED: dict[str, tuple[int, int, dict[int, tuple[int, ...]]]] = {  # number on x86-64 and ARM; which arguments, and what each may be
    "ioctl": (
        16,
        29,
        {1: (0x5401, 0x5413, 0x5421, 0x541B, 0x5450, 0x5451)},
    ),  # a terminal, how wide; blocking; bytes waiting; close on exec
    "fcntl": (72, 25, {1: (0, 1, 2, 3, 4, 5, 6, 7, 1030)}),  # not who gets a signal when data come
    "prlimit64": (302, 261, {0: (0,)}),  # of itself
    "socketpair": (
        53,
        199,
        {0: (1,), 1: (0x1, 0x801, 0x80001, 0x80801)},
    ),  # AF_UNIX and a stream, whose two ends reach each other and nobody else
    "sendto": (44, 206, {3: (0, 0x4000)}),  # nothing out of band
    "recvfrom": (45, 207, {3: (0,)}),
}
_IN_VAIN = (  # done, as far as the program sees: owners stay refused, but to set a mode or a time is part of copying a file
    ("chmod", 90), ("fchmod", 91, 52), ("fchmodat", 268, 53), ("fchmodat2", 452, 452),
    ("utime", 132), ("utimes", 235), ("futimesat", 261), ("utimensat", 280, 88),
)  # fmt: skip
_UNSUPPORTED = (  # what a file system need not have, so that whoever copies files goes on without: extended attributes
    ("getxattr", 191, 8), ("lgetxattr", 192, 9), ("fgetxattr", 193, 10),
    ("listxattr", 194, 11), ("llistxattr", 195, 12), ("flistxattr", 196, 13),
)  # fmt: skip
_CLONE, _CLONE3, _OPENAT2 = (56, 220), 435, 437
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_THREAD_SHARES = (0x10000, 0x400, 0x100)  # a thread's own table of open files would be one that no limit counts
_NAMESPACES = 0x7E020000
_X32 = 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE, _NOTHING = 0x7FFF0000, 0x80000000, 0x00050000, 0x00050000
_EPERM, _ENOSYS, _ENOTSUP = 1, 38, 95
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # places in what the kernel hands to the filter


def machine_is_known() -> bool:
    """Return whether there is a table for this system and processor."""
    return sys.platform == "linux" and platform.machine() in _ARCHITECTURES and sys.maxsize > 1 << 32


def seccomp_filter(processor: str = "") -> bytes:
    """Return the filter in the kernel's form; ``processor`` is ``x86_64`` or ``aarch64``, by default this one.

    Raises:
        KeyError: there is no table for this processor.

    >>> len(seccomp_filter("x86_64")) % 8, len(seccomp_filter("aarch64")) < 8 * 250
    (0, True)
    """
    column, audit = _ARCHITECTURES[processor or platform.machine()]
    lines: list[tuple[int, int, str, str]] = [(_LOAD, _ARCHITECTURE, "", ""), (_EQUAL, audit, "", "kill"), (_LOAD, _NUMBER, "", "")]
    if column == 0:
        lines.append((_AT_LEAST, _X32, "kill", ""))
    lines += [(_EQUAL, _CLONE[column], "clone", ""), (_EQUAL, _CLONE3, "unknown", ""), (_EQUAL, _OPENAT2, "unknown", "")]
    lines += [(_EQUAL, numbers[column], name, "") for name, numbers in ((name, found[:2]) for name, found in _CHECKED.items())]
    lines += [(_EQUAL, number, "allow", "") for number in allowed(column)]
    lines += [(_EQUAL, numbers[column], "nothing", "") for _, *numbers in _IN_VAIN if len(numbers) > column]
    lines += [(_EQUAL, numbers[column], "unsupported", "") for _, *numbers in _UNSUPPORTED]
    lines.append((_RETURN, _REFUSE | _EPERM, "", ""))
    labels = {"clone": len(lines)}
    lines += [(_LOAD, _ARGUMENTS, "", ""), (_ANY_BIT, _NAMESPACES, "refuse", "")]
    lines += [(_ANY_BIT, shared, "", "refuse") for shared in _THREAD_SHARES]
    lines.append((_RETURN, _ALLOW, "", ""))
    for name, (_, _, arguments) in _CHECKED.items():
        labels[name] = len(lines)
        for argument, values in arguments.items():
            lines.append((_LOAD, _ARGUMENTS + 8 * argument, "", ""))
            good = f"{name}-{argument}"
            lines += [(_EQUAL, value, good, "") for value in values]
            lines.append((_RETURN, _REFUSE | _EPERM, "", ""))
            labels[good] = len(lines)
        lines.append((_RETURN, _ALLOW, "", ""))
    for name, verdict in (
        ("allow", _ALLOW),
        ("nothing", _NOTHING),
        ("unsupported", _REFUSE | _ENOTSUP),
        ("refuse", _REFUSE | _EPERM),
        ("unknown", _REFUSE | _ENOSYS),
        ("kill", _KILL),
    ):
        labels[name] = len(lines)
        lines.append((_RETURN, verdict, "", ""))
    jumps = [[labels[label] - place - 1 if label else 0 for label in line[2:]] for place, line in enumerate(lines)]
    return b"".join(struct.pack("=HBBI", code, *jump, value) for (code, value, _, _), jump in zip(lines, jumps, strict=True))


def allowed(column: int) -> list[int]:
    """Return the numbers of the calls that are allowed whatever their arguments: on x86-64 (0) or on ARM (1).

    >>> 41 in allowed(0), 0 in allowed(0), 63 in allowed(1)  # socket, read, read
    (False, True, True)
    """
    rows = [entry.split() for entry in _TABLE.split(",")]
    return [int(row[1 + column]) for row in rows if len(row) > 1 + column]
