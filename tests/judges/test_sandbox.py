"""Programs that try to do harm: each is harmless, each has failed, nothing of it is left, and the next one works."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from lmfuse.errors import InputError
from lmfuse.judges import sandbox
from lmfuse.judges.sandbox import Ran, SandboxLimits, folder_bytes, run_python
from lmfuse.judges.system_calls import machine_is_known, seccomp_filter

pytestmark = pytest.mark.skipif(not machine_is_known(), reason="no sandbox for this system")
LIMITS = SandboxLimits(wall_seconds=10, cpu_seconds=1, memory_mb=256, disk_mb=8, file_mb=4, output_kb=64)
MARK = f"mark_{os.getpid()}"
RIGHT = ("def double(x):\n    return 2 * x\n", "assert double(4) == 8\n")
WAYS = {"all": (), "no_landlock": ("landlock",), "landlock_only": ("namespaces",)}


@pytest.fixture(params=WAYS)
def without(request, _nothing_is_left) -> tuple[str, ...]:
    """The layers that are left out, as on systems that lack them."""
    try:
        run_python(*RIGHT, LIMITS, WAYS[request.param])
    except InputError as error:
        pytest.skip(f"this system has nothing else: {error}")
    return WAYS[request.param]


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch, tmp_path):
    """No process, no folder and no open file outlives a program; other tests may run sandboxes beside this one."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setattr(sandbox, "FLAGS", (*sandbox.FLAGS, "-X", MARK))
    handles = len(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + 2
    while marked() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not marked()
    assert len(os.listdir("/proc/self/fd")) <= handles
    assert not list(place.iterdir())
    place.rmdir()


def marked() -> set[str]:
    """Return the processes that this test's sandboxes started, wherever in the tree they hang."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"\0{MARK}\0".encode() in line:
                found.add(entry.name)
    return found


def attack(answer: str, without: tuple[str, ...] = (), limits: SandboxLimits = LIMITS) -> Ran:
    ran = run_python(answer, RIGHT[1], limits, without)
    assert ran.outcome != "passed", ran
    assert run_python(*RIGHT, LIMITS, without).outcome == "passed"
    return ran


def test_right_code_passes_and_wrong_code_says_where_it_is_wrong(without):
    ran = run_python(RIGHT[0] + "print('héllo')", RIGHT[1], LIMITS, without)
    assert (ran.outcome, ran.detail, ran.output) == ("passed", "", "héllo\n")
    assert run_python("def double(x):\n    return x\n", RIGHT[1], LIMITS, without).detail == "tests.py, line 1: AssertionError"
    assert run_python("def double(x:", RIGHT[1], LIMITS, without).detail.startswith("SyntaxError")
    assert (
        run_python("\ndef double(x):\n    return 1 / 0", RIGHT[1], LIMITS, without).detail
        == "answer.py, line 3: ZeroDivisionError: division by zero"
    )


def test_the_standard_library_works_and_files_of_its_own(without):
    answer = """
import collections, dataclasses, decimal, functools, hashlib, heapq, itertools, json, math, random, re, sqlite3, ssl, statistics, tempfile, threading
found = []
workers = [threading.Thread(target=found.append, args=(i,)) for i in range(4)]
[w.start() for w in workers]; [w.join() for w in workers]
with tempfile.TemporaryDirectory() as folder:
    open(folder + '/a', 'w').write('kept')
    import os; os.rename(folder + '/a', folder + '/b')
    double = lambda x: 2 * x if open(folder + '/b').read() == 'kept' and sorted(found) == [0, 1, 2, 3] else 0
    assert double(1) == 2
double = lambda x: 2 * x
"""
    ran = run_python(answer, RIGHT[1], LIMITS, without)
    assert ran.outcome == "passed", ran


def test_a_fork_bomb(without):
    begun = time.monotonic()
    assert "PermissionError" in attack("import os\nwhile True:\n    os.fork()", without).detail
    swallowed = "import os\nfor _ in range(10 ** 4):\n    try: os.fork()\n    except BaseException: pass"
    attack(swallowed, without)
    for start in ("import subprocess; subprocess.run(['/bin/sh'])", "import multiprocessing as m; m.Process(target=print).start()"):
        assert "PermissionError" in attack(start, without).detail or "FileNotFoundError" in attack(start, without).detail
    assert time.monotonic() - begun < 30


THREAD_BOMB = """
import _thread, threading
threading.stack_size(32768)
lock = _thread.allocate_lock()
lock.acquire()
started = 0
while started < 700:  # not more, where nothing stops it
    try:
        _thread.start_new_thread(lock.acquire, ())
    except RuntimeError:
        break
    started += 1
print(started)
double = lambda x: 2 * x
"""


def test_threads_are_counted(without):
    ran = run_python(THREAD_BOMB, RIGHT[1], LIMITS, without)
    assert ran.outcome == "passed", ran
    assert 4 <= int(ran.output) <= 2 * sandbox.THREADS
    assert run_python(*RIGHT, LIMITS, without).outcome == "passed"


def test_a_user_whose_threads_no_limit_counts_is_no_sandbox(monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("that is root alone")
    monkeypatch.setattr(sandbox, "working_user", lambda: 0)
    with pytest.raises(InputError, match="no limit on threads holds"):
        run_python(*RIGHT, LIMITS)


def test_a_thread_with_open_files_of_its_own_is_refused(without):
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
stack = ctypes.create_string_buffer(65536)
top = ctypes.c_void_p(ctypes.addressof(stack) + 65536 & ~15)
started = libc.clone(ctypes.cast(libc.pause, ctypes.c_void_p), top, 0x100 | 0x800 | 0x10000 | 0x40000, None)
assert started >= 0, ctypes.get_errno()
"""
    assert attack(code, without).detail == "answer.py, line 7: AssertionError: 1"


def test_deleted_files_that_are_held_open_take_no_more_than_all_files_may():
    code = """
import os
held, total = [], 0
try:
    for number in range(64):
        held.append(os.open(f"f{number}", os.O_RDWR | os.O_CREAT))
        os.unlink(f"f{number}")
        for _ in range(4):
            total += os.write(held[-1], bytes(1 << 20))
except OSError:
    total += 0
print(total)
"""
    try:
        ran = run_python(code, "", LIMITS, ("namespaces",))
    except InputError as error:
        pytest.skip(f"this system has no Landlock: {error}")
    assert 0 < int(ran.output or 0) <= LIMITS.disk_mb << 20, ran


def test_what_replaces_pythons_own_functions_has_failed(without):
    for deed in (
        "builtins.exec = lambda *_: None",
        "builtins.compile = print",
        "del builtins.AssertionError",
        "global __builtins__; __builtins__ = {}",
    ):
        ran = run_python(f"import builtins\n{deed}", "assert 0", LIMITS, without)
        assert (ran.outcome, "in the place of" in ran.detail) == ("failed", True), ran
    for deed in ("os.read = lambda *_: b''", "json.dumps = print", "import sys; sys.modules['__main__'].tell = print"):
        assert run_python(f"import os, json\n{deed}", "assert 0", LIMITS, without).detail == "tests.py, line 1: AssertionError"


def test_the_tests_are_not_there_while_the_program_runs(without):
    assert "KeyError" in attack("import sys\nsys._getframe(1).f_locals['tests']", without).detail
    look = """
import gc, os, sys
for handle in range(3, 16):
    try: os.set_blocking(handle, False); print(os.read(handle, 9999))
    except OSError: pass
frame = sys._getframe()
while frame: print(frame.f_locals, {k: v for k, v in frame.f_globals.items() if k != 'gc'}); frame = frame.f_back
print([each for each in gc.get_objects() if isinstance(each, (dict, list))])
"""
    ran = run_python(look, "assert 'a_secret' + '_of_the_tests'", SandboxLimits(output_kb=8192), without)
    assert "a_secret" not in ran.output
    assert "sandbox_program" in ran.output


def test_long_tests_and_tests_that_are_no_text(without):
    assert run_python(RIGHT[0], "# " + "x" * 300_000 + "\n" + RIGHT[1], LIMITS, without).outcome == "passed"
    assert run_python(RIGHT[0], "assert '\ud800'", LIMITS, without).outcome == "failed"
    assert run_python("import os; os.closerange(3, 64)", "# " + "x" * 300_000, LIMITS, without).outcome == "ended"


def test_only_what_took_its_time_has_met_the_limit_of_time(without):
    for status in (137, 152):
        ran = attack(f"import os; os._exit({status})", without)
        assert (ran.outcome, ran.detail) == ("ended", f"status {status} before the tests were done")


def test_modules_that_wake_themselves_and_copy_files_work(without):
    code = """
import asyncio, os, shutil, zipfile
async def double(x): return await asyncio.to_thread(lambda: 2 * x)
with open('a', 'w') as file: file.write('x')
shutil.copy2('a', 'b'); os.utime('a')
with zipfile.ZipFile('z.zip', 'w') as file: file.write('a')
zipfile.ZipFile('z.zip').extractall('out')
"""
    assert run_python(code, "import asyncio\nassert asyncio.run(double(4)) == 8", LIMITS, without).outcome == "passed"


def test_a_folder_of_libraries_is_not_shown_for_one_of_them(monkeypatch, tmp_path, without):
    import _ctypes

    with open("/proc/self/maps") as maps:
        library = next((line.split(None, 5)[5].strip() for line in maps if "libffi" in line and _ctypes), "")
    if not library:
        pytest.skip("ctypes has no library of its own")
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    for name in {Path(library).name, ".".join(Path(library).name.split(".")[:3])}:
        shutil.copy(library, place / name)
    (place / "secret").write_text("precious")
    look = f"import os\nopen({str(place / 'secret')!r})"
    monkeypatch.setenv("LD_LIBRARY_PATH", str(place))
    sandbox._environment.cache_clear()
    unneeded = run_python(look, "", LIMITS, without)
    monkeypatch.setattr(sandbox, "_environment", lambda _: {"LD_LIBRARY_PATH": str(place)})
    needed = run_python(look, "", LIMITS, without)
    shutil.rmtree(place)
    for ran in (unneeded, needed):
        assert ran.outcome == "failed"
        assert "Error" in ran.detail
        assert "precious" not in ran.detail


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_folders_that_nobody_may_enter_go_away():
    outer = Path(tempfile.mkdtemp())
    outer.chmod(0o777)
    code = f"""
import sys
from pathlib import Path
from lmfuse.judges.sandbox_host import remove_folder
import os
os.setgid(65534); os.setuid(65534)
folder = Path({str(outer)!r}) / "own"
(folder / "a" / "b" / "c").mkdir(parents=True)
(folder / "a" / "b" / "junk").write_text("x")
(folder / "a" / "b" / "c").chmod(0)
(folder / "a" / "b").chmod(0)
remove_folder(folder)
sys.exit(folder.exists())
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd="/")
    shutil.rmtree(outer)
    assert done.returncode == 0


def test_a_folder_that_stays_is_told(monkeypatch):
    real = sandbox.remove_folder
    left = []
    monkeypatch.setattr(sandbox, "remove_folder", left.append)
    assert run_python(*RIGHT, LIMITS).folder_left
    real(left[0])
    assert not left[0].exists()


def test_threads_without_end(without):
    attack("import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(99,)).start()", without)


@pytest.mark.parametrize(
    "answer",
    [
        "while True: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
    ],
)
def test_an_infinite_loop_ends_at_the_limit_of_processor_time(answer):
    ran = attack(answer)
    assert (ran.outcome, ran.detail) == ("timeout", "1 s of processor time")


def test_a_program_that_sleeps_ends_at_the_clock(without):
    limits = SandboxLimits(wall_seconds=0.7, cpu_seconds=1)
    begun = time.monotonic()
    ran = attack(
        "import os, time\nfor handle in range(3, 64):\n    try: os.close(handle)\n    except OSError: pass\nos.close(1); os.close(2)\ntime.sleep(99)",
        without,
        limits,
    )
    assert (ran.outcome, ran.detail) == ("timeout", "0.7 s by the clock")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "answer",
    [
        "x = bytearray(10 ** 10)",
        "x = []\nwhile True: x.append(bytearray(10 ** 6))",
        "import mmap\nx = [mmap.mmap(-1, 10 ** 8) for _ in range(10)]",
    ],
)
def test_a_memory_hog(answer, without):
    ran = attack(answer, without)
    assert ran.outcome == "memory" or "Cannot allocate memory" in ran.detail


def test_memory_that_no_limit_would_count(without):
    assert "PermissionError" in attack("import os\nos.write(os.memfd_create('x'), b'x' * 10)", without).detail


@pytest.fixture
def outside(tmp_path) -> Path:
    """A file that anybody may read and write."""
    tmp_path.chmod(0o777)
    path = tmp_path / "precious"
    path.write_text("precious")
    path.chmod(0o666)
    return path


@pytest.mark.parametrize(
    "deed",
    [
        "os.remove(P)", "open(P, 'w').write('gone')", "open(P, 'a').write('gone')", "os.truncate(P, 0)", "os.open(P, os.O_RDONLY | os.O_TRUNC)",
        "os.rename(P, P + '2')", "os.chmod(P, 0)", "os.chown(P, 1, 1)", "os.utime(P, (0, 0))", "os.link(P, 'here')", "open(P).read()",
        "os.mkdir(os.path.dirname(P) + '/new')", "open(os.path.dirname(P) + '/new', 'w')", "os.symlink(P, 'link'); open('link').read()",
        "os.setxattr(P, 'user.a', b'b')", "os.listdir(os.path.dirname(P))", "shutil.rmtree(os.path.dirname(P))",
        "ctypes.CDLL(None).unlink(P.encode()); open(P)",
    ],
)  # fmt: skip
def test_files_outside_are_neither_changed_nor_read(deed, without, outside):
    state = outside.stat()
    ran = attack(f"import os, shutil, ctypes\nP = {str(outside)!r}\n{deed}", without)
    assert ran.outcome == "failed", ran
    assert "precious" not in ran.detail.replace(str(outside), "")
    after = outside.stat()
    assert (outside.read_text(), after.st_mode, after.st_mtime_ns, after.st_nlink, after.st_uid) == (
        "precious",
        state.st_mode,
        state.st_mtime_ns,
        1,
        state.st_uid,
    )
    assert [path.name for path in outside.parent.iterdir()] == ["precious"]


def test_secrets_of_the_machine_and_of_the_process_are_not_seen(without, monkeypatch):
    monkeypatch.setenv("LMFUSE_TEST_SECRET", "hunter2")
    for deed in (
        "open('/etc/passwd').read()",
        "open('/proc/self/environ').read()",
        f"open('/proc/{os.getpid()}/environ').read()",
        "os.listdir('/proc')",
        "os.listdir('/home')",
    ):
        assert attack(f"import os\n{deed}", without).outcome == "failed", deed
    ran = run_python(
        "import os, sys, ctypes\nprint(dict(os.environ), ctypes.CDLL(None).getenv(b'LMFUSE_TEST_SECRET'), sys.stdin.read())\n" + RIGHT[0],
        RIGHT[1],
        LIMITS,
        without,
    )
    assert ran.outcome == "passed"
    assert "hunter2" not in ran.output
    assert "LMFUSE" not in ran.output


def test_the_interpreters_own_files_cannot_be_changed(without):
    attack("import os\nopen(os.__file__, 'a').write('x')", without)
    attack("import os\nos.remove(os.__file__)", without)


def test_no_network_not_even_to_this_machine(without):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        attack(f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}))", without)
        with pytest.raises(TimeoutError):
            server.accept()
    for kind in ("socket.socket(socket.AF_UNIX)", "socket.socketpair(type=socket.SOCK_DGRAM)", "socket.socketpair(socket.AF_INET)"):
        assert "PermissionError" in attack(f"import socket\n{kind}", without).detail


def test_writing_a_gigabyte(without):
    big = "with open('big', 'wb') as file:\n    for _ in range(1024): file.write(bytes(1 << 20))"
    assert "OSError" in attack(big, without).detail or attack(big, without).outcome == "ended"
    many = "i = 0\nwhile True:\n    i += 1\n    with open(f'f{i}', 'wb') as file: file.write(bytes(1 << 20))"
    ran = attack(many, without)
    assert ran.outcome in ("disk", "timeout") or "No space left" in ran.detail or "File too large" in ran.detail


@pytest.mark.parametrize(
    "deed",
    [
        "os.kill(os.getppid(), 9)",
        "os.kill(-1, 9)",
        "os.killpg(0, 9)",
        "os.kill(TESTS, 9)",
        "os.kill(1, 9)",
        "signal.raise_signal(9)",
    ],
)
def test_killing_the_parent_and_others(deed, without):
    assert attack(f"import os, signal\nTESTS = {os.getpid()}\n{deed}", without).outcome in ("failed", "ended")


@pytest.mark.parametrize(
    "deed",
    [
        "ctypes.CDLL(None).ptrace(16, 1, 0, 0)", "resource.prlimit(os.getppid() or 1, resource.RLIMIT_CPU, (1, 1))", "fcntl.fcntl(1, 8, 1)",
        "os.setpriority(0, 0, -5)", "os.sched_setaffinity(0, {0})", "os.setuid(0)", "ctypes.CDLL(None).unshare(0x10000000)",
        "ctypes.CDLL(None).mount(b'tmpfs', b'.', b'tmpfs', 0, None)", "os.chroot('.')",
    ],
)  # fmt: skip
def test_ways_around(deed, without):
    answer = f"import os, ctypes, resource, fcntl\nfound = {deed}\nassert found is None or found == 0, found"
    assert attack(answer, without).outcome == "failed"


def test_an_output_flood(without):
    for stream in ("stdout", "stderr"):
        ran = attack(f"import sys\nwhile True: sys.{stream}.write('flood ' * 1000)", without)
        assert (ran.outcome, len(ran.output)) == ("output", 64 << 10)


def test_a_daemon_that_stays_behind(without):
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n    os._exit(0)\n"
    assert "PermissionError" in attack(daemon, without).detail
    ran = run_python(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n" + RIGHT[0], RIGHT[1], LIMITS, without
    )
    assert ran.outcome == "passed"  # and the thread ends with it: see _nothing_is_left


@pytest.mark.parametrize(
    "answer",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import ctypes; ctypes.string_at(0)",
        "import os; os.abort()",
    ],
)
def test_whoever_ends_before_the_tests_has_not_passed(answer, without):
    assert attack(answer, without).outcome in ("failed", "ended")


def test_a_forged_report_is_no_pass(without):
    told = ('{"passed": "yes"}', '{"layers": {}}', '{"refused": "x"}', "not json", "[1]", "[" * 60_000, "")
    forged = "import os\nfor handle in range(3, 64):\n    try: os.write(handle, TOLD)\n    except OSError: pass\nos._exit(0)"
    assert attack(forged.replace("TOLD", repr("\n".join(told).encode())), without).outcome == "ended"
    flood = (
        "import os\nwhile True:\n    for handle in range(3, 64):\n        try: os.write(handle, b'x' * 65536)\n        except OSError: pass"
    )
    assert attack(flood, without).outcome in ("output", "timeout")


def test_an_error_whose_text_is_a_trap(without):
    trap = "class Trap(Exception):\n    def __str__(self):\n        raise KeyboardInterrupt\nraise Trap"
    assert attack(trap, without).detail == "answer.py, line 4: Trap"


def test_a_program_of_odd_text(without):
    assert run_python("", "", LIMITS, without).outcome == "passed"
    for answer in ("\0", "\ud800", "x" * 10**6, "(" * 10**5, "# -*- coding: rot13 -*-\n"):
        attack(answer, without)


def test_where_nothing_protects_nothing_is_run(tmp_path):
    with pytest.raises(InputError, match="cannot run a stranger's program safely: no namespaces, and Landlock 0") as caught:
        run_python("1/0", "", LIMITS, ("namespaces", "landlock"))
    assert "Landlock" in caught.value.hint


def changed_child(monkeypatch, old: str, new: str) -> None:
    """Let the child's code be another one, as on a system that behaves otherwise."""
    code = Path(sandbox.__file__).with_name("sandbox_child.py").read_text()
    assert old in code

    class Changed:
        def joinpath(self, name):
            self.name = name
            return self

        def read_text(self, encoding):
            return (
                code.replace(old, new) if self.name == "sandbox_child.py" else real("lmfuse.judges").joinpath(self.name).read_text("utf-8")
            )

    real = sandbox.files
    monkeypatch.setattr(sandbox, "files", lambda _: Changed())


def test_namespaces_in_which_nobody_may_mount_need_landlock(monkeypatch, outside):
    changed_child(monkeypatch, 'mount("none", "/", "", RECURSIVE | PRIVATE)', "raise PermissionError")
    try:
        ran = run_python(*RIGHT, LIMITS)
    except InputError as error:
        pytest.skip(f"this system has no Landlock: {error}")
    assert (ran.outcome, ran.layers["root"]) == ("passed", False)
    assert attack(f"open({str(outside)!r})").outcome == "failed"
    with pytest.raises(InputError, match="safely: no namespaces, and Landlock 0"):
        run_python(*RIGHT, LIMITS, ("landlock",))


def test_a_root_that_cannot_be_finished_leaves_a_folder_to_work_in(monkeypatch):
    changed_child(monkeypatch, 'os.mkdir(folder + "/work")', "raise OSError")
    try:
        assert run_python("open('own', 'w').write('x' * 400_000)\n" + RIGHT[0], RIGHT[1], LIMITS).outcome == "passed"
    except InputError as error:
        pytest.skip(f"this system has no Landlock: {error}")


def test_a_library_that_the_program_could_not_read_is_no_sandbox(monkeypatch):
    changed_child(monkeypatch, "with open(os.__file__)", "with open('/none')")
    with pytest.raises(InputError, match="safely: FileNotFoundError"):
        run_python(*RIGHT, LIMITS)


def test_a_library_for_root_alone_is_read_by_root_without_its_powers(monkeypatch, outside, without):
    changed_child(monkeypatch, "if not all(os.access(path, os.R_OK)", "if all(True or os.access(path, os.R_OK)")
    assert run_python("open('own', 'w').write('x')\n" + RIGHT[0], RIGHT[1], LIMITS, without).outcome == "passed"
    for deed in ("open(P)", "os.remove(P)", "open(os.__file__, 'a')", "os.chown('.', 1, 1)", "os.mknod('x', 0o20666, os.makedev(1, 1))"):
        assert attack(f"import os\nP = {str(outside)!r}\n{deed}", without).outcome == "failed"


def test_another_system_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr(sandbox, "machine_is_known", lambda: False)
    with pytest.raises(InputError, match="no sandbox for"):
        run_python(*RIGHT, LIMITS)


def test_a_filter_that_the_kernel_does_not_take_is_no_sandbox(monkeypatch):
    monkeypatch.setattr(sandbox, "seccomp_filter", lambda: b"\xff" * 8)
    with pytest.raises(InputError, match="safely: OSError"):
        run_python(*RIGHT, LIMITS)


def test_the_sandbox_dies_with_whoever_started_it():
    code = f"""
import tempfile
from lmfuse.judges import sandbox
sandbox.FLAGS, tempfile.tempdir = {sandbox.FLAGS!r}, {tempfile.gettempdir()!r}
sandbox.run_python('import time; time.sleep(60)', '', sandbox.SandboxLimits(wall_seconds=60))
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while len(marked()) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert marked()
    parent.kill()
    parent.wait()
    while marked() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not marked()
    for left in Path(tempfile.gettempdir()).iterdir():
        left.rmdir()  # empty: what was written lay in memory; only kill -9 leaves the folder itself


def test_several_at_once():
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(run_python(*RIGHT, LIMITS).outcome)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["passed"] * 4


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("without", WAYS.values(), ids=WAYS)
def test_an_ordinary_user_is_protected_too(without, outside):
    """As nobody, with an interpreter that nobody may run, if this machine has one."""
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("no interpreter that an ordinary user can run")
    folder = Path(tempfile.mkdtemp())  # pytest's own folder lets nobody in
    os.chown(folder, 65534, 65534)
    attempts = f"""
import os
for deed in (lambda: open({str(outside)!r}), lambda: open('/etc/passwd'), os.fork, lambda: os.kill(os.getppid(), 9)):
    try:
        deed()
    except OSError:
        continue
    raise SystemExit('escaped')
"""
    reader, report = os.pipe()
    token, writer = os.pipe()
    tests = b"import json, ssl; open('own', 'w').write('x')"
    os.write(writer, len(tests).to_bytes(8, "big") + tests + b"word" * 8)
    order = {
        "answer": attempts, "program": Path(sandbox.__file__).with_name("sandbox_program.py").read_text(), "user": 65534,
        "threads": 256, "folder": str(folder), "without": without,
        "filter": seccomp_filter().hex(), "parent": os.getpid(), "report": report, "token": token, "cpu_seconds": 2,
        "memory_bytes": 1 << 29, "file_bytes": 1 << 20, "folder_bytes": 1 << 20,
    }  # fmt: skip
    code = Path(sandbox.__file__).with_name("sandbox_child.py").read_text()
    done = subprocess.run(
        [python, "-I", "-S", "-c", code], input=json.dumps(order), text=True, pass_fds=(report, token),
        user=65534, group=65534, extra_groups=[], capture_output=True, cwd="/", env={}, check=False,
    )  # fmt: skip
    for handle in (report, token, writer):
        os.close(handle)
    said = os.read(reader, 10_000).decode()
    os.close(reader)
    shutil.rmtree(folder)
    if "refused" in said and without:
        pytest.skip(said)
    assert '"passed": "wordword' in said, (said, done)
    assert outside.read_text() == "precious"


def test_the_size_of_a_folder(tmp_path):
    (tmp_path / "a").write_bytes(bytes(10_000))
    (tmp_path / "link").symlink_to("/usr")
    (tmp_path / "empty").mkdir()
    assert 10_000 + 2 * 4096 <= folder_bytes(tmp_path) < 40_000
    assert folder_bytes(tmp_path / "none") == 0


def test_folders_in_folders_without_end(without):
    deep = "import os\nfor _ in range(3000):\n    os.mkdir('a' * 50); os.chdir('a' * 50)\nopen('hidden', 'w').write('x')\nimport time; time.sleep(0.3)"
    assert attack(deep, without).outcome in ("failed", "disk", "timeout")
    many = "i = 0\nwhile True:\n    i += 1\n    open(f'f{i}', 'w').close()"
    assert attack(many, without).outcome in ("failed", "disk", "timeout")
    run_python(
        "import os\nos.mkdir('locked', 0)\nos.symlink('/usr', 'link')\nopen('plain', 'w')", "", LIMITS, without
    )  # and nothing stays: see above
