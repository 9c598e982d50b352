"""Every way of saying "no memory" becomes one error; nothing else does."""

import errno

import pytest

from lmfuse.errors import ResourceError
from lmfuse.memory import available_memory, is_out_of_memory, out_of_memory_is_an_error

NO_MEMORY = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("reason", NO_MEMORY, ids=lambda reason: type(reason).__name__)
def test_no_memory_is_a_resource_error(reason):
    assert is_out_of_memory(reason)
    with pytest.raises(ResourceError, match="out of memory: a batch") as caught, out_of_memory_is_an_error("a batch"):
        raise reason
    assert (caught.value.exit_code, caught.value.__cause__) == (5, reason)


@pytest.mark.parametrize("reason", [OSError(errno.ENOSPC, "full"), RuntimeError("shape"), KeyboardInterrupt()], ids=repr)
def test_other_errors_pass(reason):
    with pytest.raises(type(reason)), out_of_memory_is_an_error("a batch"):
        raise reason


def test_available_memory_is_a_plausible_number():
    found = available_memory()
    assert found is None or 1 << 20 < found < 1 << 50
