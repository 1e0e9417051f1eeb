"""One copy of the weights, whatever the number of clients: counted in the memory of all processes."""
import mmap
import os
import pathlib
import subprocess

from test_cli import MODEL, NIBBLE, CliTest
from harness import *

CLIENTS = 8
CLIENT_COST = 4 << 20  # what one client may cost in all: its code and data, its channel, the service's records of it


def pss(pid):
    """Proportional set size: a page of n processes counts as 1/n in each, so that the sum over all counts it once."""
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"no PSS of {pid}")


class OneCopy(CliTest):
    def setUp(self):
        super().setUp()
        self.finish(self.start("load", MODEL, "--name", "smol", "--kv-bytes", "256Mi"))

    def talkers(self):
        """Clients in mid-answer, each with a prompt that touches every weight."""
        found = [self.start("run", "smol", f"Count from {i} to a thousand.", "-n", "4000", "--ignore-eos")
                 for i in range(CLIENTS)]
        for process in found:
            self.addCleanup(process.communicate)
            self.addCleanup(process.kill)
            os.read(process.stdout.fileno(), 1)
        return found

    def used_and_allowed(self, others=()):
        talkers = self.talkers()
        status = self.json("status")
        pids = [self.daemon.pid, self.daemon.server(), *(p.pid for p in talkers), *others]
        used = sum(map(pss, pids))
        allowed = (1.15 * (status["weights_bytes"] + status["kv_used_bytes"])
                   + CLIENTS * CLIENT_COST)
        for process in talkers:
            process.kill()
        return used, allowed

    def test_one_copy(self):
        used, allowed = self.used_and_allowed()
        self.assertLessEqual(used, allowed)
        print(f"{used >> 20} MiB of {int(allowed) >> 20} for {CLIENTS} clients")

    def test_a_second_copy_is_seen(self):
        """The same measurement with one process more that has the weights for itself: it must fail."""
        second = subprocess.Popen(["python3", "-c", "import sys; d = open(sys.argv[1], 'rb').read(); "
                                   "print(len(d), flush=True); sys.stdin.read()", MODEL],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(second.communicate)
        self.assertEqual(int(second.stdout.readline()), MODEL.stat().st_size)
        used, allowed = self.used_and_allowed([second.pid])
        self.assertGreater(used, allowed)
