"""What the child process of ``bytes_trial.py`` runs: parts of a tokenizer on probe texts, with little memory and little time.

It reads ``{"library": folder, "seconds": n, "bytes": n, "parts": [[field, node, [text, ...]], ...]}`` from its standard input, and writes ``ready``,
the number of each part before it tries it, what went wrong if something did, and ``done``. A part that does not end kills it.
"""

import json
import sys
from contextlib import suppress


def limit(seconds: int, num_bytes: int) -> None:
    """Let the system end this process at so much processor time, and refuse it more memory."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is the only limit
        return
    for name, soft, hard in (("RLIMIT_CORE", 0, 0), ("RLIMIT_CPU", seconds, 3 * seconds), ("RLIMIT_AS", num_bytes, num_bytes)):
        with suppress(ValueError, OSError, AttributeError):  # a system that knows no such limit, or has a lower one
            resource.setrlimit(getattr(resource, name), (soft, hard))


def renew(seconds: int) -> None:
    """Let the next part have its own time, as far as the hard limit allows."""
    with suppress(ImportError, ValueError, OSError, AttributeError):
        import resource

        used, hard = resource.getrusage(resource.RUSAGE_SELF), resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (min(int(used.ru_utime + used.ru_stime) + seconds + 1, hard), hard))


def main() -> None:
    """Try every part in turn; leave at the first that fails."""
    given = json.loads(sys.stdin.buffer.read())
    sys.path.append(given["library"])
    from tokenizers import Tokenizer

    limit(given["seconds"], given["bytes"])
    print("ready", flush=True)
    empty = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    for number, (field, node, texts) in enumerate(given["parts"]):
        print(number, flush=True)
        renew(given["seconds"])
        what = "cannot be built"
        try:
            tokenizer = Tokenizer.from_str(json.dumps({**empty, field: node}))
            what = "fails on a probe text"
            for text in texts:
                tokenizer.encode(text)
        except BaseException as error:  # a panic of the library is no Exception
            print(f"{what}:", " ".join(str(error).split())[:160], flush=True)
            return
    print("done", flush=True)


if __name__ == "__main__":
    main()
