"""A run in which models answer and are judged, killed at each of its stages and started again, ends in the same bytes."""

import signal

from tests import chat_runs
from tests.faults.test_run import contents, run

PLACES = [("answer", 2), ("answered", 1), ("judge", 3), ("elect", 1), ("collect", 1), ("publish", 2), ("train", 1), ("train", 3)]
"""Places in the order in which a run comes to them; each run goes on where the one before was killed. The first model writes four batches; the second
one is killed before it is measured on its own words; verifier and likelihood hear two batches each, the latter from three sources."""


def test_killed_at_every_stage_and_started_again(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        chat_runs.lay_out(folder, arms=["clm", "progressive"], rows={"k": 8, "batch_tokens": 1024, "shard_documents": 4})
    assert run(whole) == 0
    for where, after in PLACES:
        assert run(killed, where, after) == -signal.SIGKILL, (where, after)
        assert not (killed / "out" / "model").exists()
    assert run(killed) == 0
    assert contents(killed) == contents(whole)
