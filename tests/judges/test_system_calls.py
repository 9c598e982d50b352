"""The filter of system calls: its tables, and that no jump of it misses."""

import pytest

from lmfuse.judges.system_calls import allowed, seccomp_filter

REFUSED = {
    "socket": (41, 198), "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None), "kill": (62, 129), "tgkill": (234, 131),
    "ptrace": (101, 117), "mount": (165, 40), "unshare": (272, 97), "setns": (308, 268), "memfd_create": (319, 279), "bpf": (321, 280),
    "io_uring_setup": (425, 425), "chown": (92, None), "fchownat": (260, 54), "sendmsg": (46, 211),
    "recvmsg": (47, 212), "process_vm_writev": (311, 271), "pidfd_send_signal": (424, 424),
    "clone": (56, 220), "clone3": (435, 435), "ioctl": (16, 29), "fcntl": (72, 25), "prlimit64": (302, 261),
}  # fmt: skip
ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "exit_group": (231, 94),
    "mmap": (9, 222),
    "futex": (202, 98),
    "openat": (257, 56),
    "rt_sigreturn": (15, 139),
}
IN_VAIN = {"chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "utimensat": (280, 88)}
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
ALLOW, REFUSE, NOTHING, KILL = 0x7FFF0000, 0x00050001, 0x00050000, 0x80000000


def decide(processor: str, number: int, arguments: tuple[int, ...] = (0,) * 6, audit: int | None = None) -> int:
    """Run a filter as the kernel does."""
    program, at, accumulator = seccomp_filter(processor), 0, 0
    data = {
        0: number,
        4: ARCHITECTURES[processor][1] if audit is None else audit,
        **{16 + 8 * i: value for i, value in enumerate(arguments)},
    }
    while True:
        code, yes, no = int.from_bytes(program[at : at + 2], "little"), program[at + 2], program[at + 3]
        value = int.from_bytes(program[at + 4 : at + 8], "little")
        at += 8
        if code == 0x06:
            return value
        if code == 0x20:
            accumulator = data[value]
        else:
            taken = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            at += 8 * (yes if taken else no)


@pytest.mark.parametrize("processor", ARCHITECTURES)
def test_oracle_a_machine_that_runs_the_filter(processor):
    column = ARCHITECTURES[processor][0]
    for number in range(500):
        expected = ALLOW if number in allowed(column) else None
        found = decide(processor, number)
        assert (found == ALLOW) == (expected == ALLOW) or number in (
            *(REFUSED[name][column] for name in ("prlimit64", "fcntl")),
            *((44, 45), (206, 207))[column],  # sendto and recvfrom, by their flags
        ), number
    for name, numbers in REFUSED.items():
        if numbers[column] is not None and name not in ("clone3", "prlimit64", "fcntl"):
            assert decide(processor, numbers[column]) == REFUSE, name
    for name, numbers in IN_VAIN.items():
        if numbers[column] is not None:
            assert decide(processor, numbers[column]) == NOTHING, name
    assert decide(processor, (194, 11)[column]) == 0x00050000 | 95  # listxattr: copying a file goes on without
    assert decide(processor, (188, 5)[column]) == REFUSE  # setxattr
    for name, numbers in ALLOWED.items():
        assert decide(processor, numbers[column]) == ALLOW, name


@pytest.mark.parametrize("processor", ARCHITECTURES)
def test_by_hand_what_depends_on_an_argument(processor):
    column = ARCHITECTURES[processor][0]
    clone, fcntl, ioctl, prlimit = (REFUSED[name][column] for name in ("clone", "fcntl", "ioctl", "prlimit64"))
    assert decide(processor, clone, (0x3D0F00, 0, 0, 0, 0, 0)) == ALLOW  # a thread
    assert decide(processor, clone, (0x1200011, 0, 0, 0, 0, 0)) == REFUSE  # a process
    for missing in (0x10000, 0x400, 0x100):  # not a thread of this process, or with open files of its own
        assert decide(processor, clone, (0x3D0F00 & ~missing, 0, 0, 0, 0, 0)) == REFUSE
    assert decide(processor, clone, (0x3D0F00 | 0x10000000, 0, 0, 0, 0, 0)) == REFUSE  # in users of its own
    pair, send, receive = ((53, 44, 45), (199, 206, 207))[column]
    kinds = [(1, 1), (1, 0x80001), (1, 2), (1, 0x80002), (2, 1), (16, 1)]  # datagrams reach others
    assert [decide(processor, pair, (*kind, 0, 0, 0, 0)) for kind in kinds] == [ALLOW, ALLOW, REFUSE, REFUSE, REFUSE, REFUSE]
    assert [decide(processor, send, (3, 0, 0, flags, 0, 0)) for flags in (0, 1)] == [ALLOW, REFUSE]  # 1: out of band
    assert [decide(processor, receive, (3, 0, 0, flags, 0, 0)) for flags in (0, 1)] == [ALLOW, REFUSE]
    assert decide(processor, 435) == 0x00050000 | 38  # unknown to this kernel: the library then takes the one above
    assert [decide(processor, fcntl, (1, command, 0, 0, 0, 0)) for command in (3, 1030, 8, 10)] == [ALLOW, ALLOW, REFUSE, REFUSE]
    assert [decide(processor, ioctl, (1, command, 0, 0, 0, 0)) for command in (0x5401, 0x5412)] == [
        ALLOW,
        REFUSE,
    ]  # TIOCSTI types for others
    assert [decide(processor, prlimit, (pid, 0, 0, 0, 0, 0)) for pid in (0, 1)] == [ALLOW, REFUSE]


@pytest.mark.parametrize("processor", ARCHITECTURES)
def test_calls_of_another_architecture_end_the_process(processor):
    assert decide(processor, 0, audit=0x40000003) == KILL
    if processor == "x86_64":
        assert decide(processor, 0x40000000 + 59) == KILL


@pytest.mark.parametrize("processor", ARCHITECTURES)
def test_every_jump_lands_on_a_line(processor):
    program = seccomp_filter(processor)
    lines = [(program[at] | program[at + 1] << 8, program[at + 2], program[at + 3]) for at in range(0, len(program), 8)]
    assert lines[-1][0] == 0x06
    assert all(place + 1 + max(yes, no) < len(lines) for place, (code, yes, no) in enumerate(lines) if code != 0x06)


def test_an_unknown_processor_has_no_filter():
    with pytest.raises(KeyError):
        seccomp_filter("riscv64")
