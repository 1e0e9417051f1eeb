"""Descriptors whose last close blocks until their owner lets it go on, and daemons under less than root's means."""
import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
import tempfile
import threading

libc = ctypes.CDLL(None, use_errno=True)
SO_PASSRIGHTS = 83
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 24, 38, 22
CAP_SYS_ADMIN, CAP_SYS_RESOURCE = 21, 24


def close_aside(fd):
    """It blocks where nobody else has got it, and each close of a FUSE file does."""
    thread = threading.Thread(target=os.close, args=(fd,), daemon=True)
    thread.start()
    thread.join(0.2)


@contextlib.contextmanager
def stopped(pid):
    """What is sent to it meanwhile it finds all at once, and the descriptors in it are its alone. Once for all of them:
    a signal ends a close that waits."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Lingering:
    """A TCP socket with unsent data and SO_LINGER: close waits for the data to go."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.sock = socket.create_connection(server.getsockname())
            self.other, _ = server.accept()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        self.sock.setblocking(False)
        try:
            while True:
                self.sock.send(bytes(1 << 16))
        except BlockingIOError:
            pass
        self.sock.setblocking(True)

    def fileno(self):
        return self.sock.fileno()

    def leave(self):
        """Ours is closed: whoever has got it holds the last."""
        close_aside(self.sock.detach())

    def release(self):
        self.other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.other.close()
        self.sock.close()


class FuseFile:
    """A file whose server answers all but FLUSH, which each close asks for, until it is released. OSError: no FUSE here."""
    LOOKUP, GETATTR, OPEN, FLUSH, INIT = 1, 3, 14, 25, 26
    SILENT = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET

    def __init__(self):
        self.device = os.open("/dev/fuse", os.O_RDWR)
        self.dir = tempfile.mkdtemp(prefix="nibble-test-")
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if libc.mount(b"nibble-test", self.dir.encode(), b"fuse", 6, options.encode()) < 0:
            os.close(self.device)
            os.rmdir(self.dir)
            raise OSError(ctypes.get_errno(), "mount")
        self.held, self.released = [], False
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()
        self.fd = os.open(self.dir + "/f", os.O_RDONLY)

    def fileno(self):
        return self.fd

    @staticmethod
    def attributes(node):
        kind = 0o040755 if node == 1 else 0o100644
        return struct.pack("<6Q3I7I", node, 4096, 8, 0, 0, 0, 0, 0, 0, kind, 1, 0, 0, 0, 4096, 0)

    def answer(self, unique, body=b"", error=0):
        os.write(self.device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)

    def serve(self):
        try:
            while True:
                request = os.read(self.device, 1 << 17)
                _, op, unique, node = struct.unpack_from("<IIQQ", request)
                with self.lock:
                    self.handle(op, unique, node)
        except OSError:
            pass  # unmounted

    def handle(self, op, unique, node):
        if op == self.FLUSH and not self.released:
            self.held.append(unique)
        elif op == self.INIT:
            self.answer(unique, struct.pack("<IIIIHHIIHHI7I", 7, 31, 4096, 0, 1, 1, 4096, 0, 0, 0, 0, *[0] * 7))
        elif op == self.LOOKUP:
            self.answer(unique, struct.pack("<QQQQII", 2, 0, 3600, 3600, 0, 0) + self.attributes(2))
        elif op == self.GETATTR:
            self.answer(unique, struct.pack("<QII", 3600, 0, 0) + self.attributes(node))
        elif op == self.OPEN:
            self.answer(unique, struct.pack("<QII", 1, 0, 0))
        elif op not in self.SILENT:
            self.answer(unique, error=0 if op in (self.FLUSH, 18, 29) else -38)

    def leave(self):
        closing, self.fd = self.fd, -1
        close_aside(closing)

    def release(self):
        with self.lock:
            self.released = True
            for unique in self.held:
                self.answer(unique)
            self.held = []
        if self.fd >= 0:
            self.leave()
        libc.umount2(self.dir.encode(), 2)
        os.rmdir(self.dir)


class Pipe:
    """One that is full."""

    def __init__(self):
        self.other, self.fd = os.pipe()
        os.set_blocking(self.fd, False)
        try:
            while True:
                os.write(self.fd, bytes(4096))
        except BlockingIOError:
            pass

    def fileno(self):
        return self.fd

    def leave(self):
        os.close(self.fd)

    def release(self):
        os.close(self.other)


class Terminal(Pipe):
    """One whose output nobody takes."""

    def __init__(self):
        self.other, self.fd = os.openpty()
        os.set_blocking(self.fd, False)
        try:
            while True:
                os.write(self.fd, b"x" * 4096)
        except BlockingIOError:
            pass


def without_passrights():
    """As before Linux 6.16: no socket can be told to refuse descriptors."""
    class Filter(ctypes.Structure):
        _fields_ = [("n", ctypes.c_ushort), ("code", ctypes.c_char_p)]

    def step(code, jt, jf, k):
        return struct.pack("<HBBI", code, jt, jf, k)
    load, equal, give = 0x20, 0x15, 0x06
    code = (step(load, 0, 0, 0) + step(equal, 0, 3, 54)  # setsockopt
            + step(load, 0, 0, 32) + step(equal, 0, 1, SO_PASSRIGHTS)
            + step(give, 0, 0, 0x00050000 | 92)  # ENOPROTOOPT
            + step(give, 0, 0, 0x7FFF0000))
    program = Filter(len(code) // 8, code)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0) < 0:
        os._exit(126)


def with_files(n):
    """As an ordinary user whose hard limit of descriptors that is."""
    def run():
        for capability in (CAP_SYS_ADMIN, CAP_SYS_RESOURCE):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))
    return run
