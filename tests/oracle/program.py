"""One of our test programs as a process that is asked on its standard input and answers on its standard output."""
import struct
import subprocess


class Program:
    def __init__(self, *command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        if self.process.wait() != 0:
            raise SystemExit("the program failed")

    def ask(self, *data):
        self.process.stdin.write(b"".join(data))
        self.process.stdin.flush()

    def bytes(self, n):
        data = self.process.stdout.read(n)
        if len(data) < n:
            raise SystemExit(f"the program died: {self.process.wait()}")
        return data

    def read(self, form):
        return struct.unpack(form, self.bytes(struct.calcsize(form)))
