"""Runs the Python client against a real server: sign in, put 100 MiB with progress, list, get, compare, watch, decode
rich errors, print, health and reflection by the libraries of the gRPC project."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid

import blake3
import grpc
from client import Atrium, explain
from atrium.v1 import account_pb2, directory_pb2, file_pb2, print_pb2, watch_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

PASSWORD = "correct horse battery"


class Server:
    """A central server in a temporary directory, with two people."""

    def __init__(self, programs, directory):
        self.atrium = os.path.join(programs, "atrium")
        self.data = os.path.join(directory, "data")
        with open(os.path.join(directory, "server.log"), "wb") as log:
            self.process = subprocess.Popen(
                [os.path.join(programs, "central-server"), "--data-dir", self.data, "--listen", "127.0.0.1:0",
                 "--web-listen", "127.0.0.1:0"],
                stdout=subprocess.PIPE, stderr=log, text=True,
            )
        # The first line on standard output says where it listens.
        line = self.process.stdout.readline()
        match = re.search(r"127\.0\.0\.1:\d+", line)
        if not match:
            raise RuntimeError(f"the server did not start: {line!r}; see its log")
        self.address = match.group(0)
        with open(os.path.join(self.data, "ca.pem"), "rb") as f:
            self.ca = f.read()
        for name in ("anna", "bert"):
            self.admin("admin", "users", "add", name, "--password-file", "-", stdin=PASSWORD)
        self.admin("admin", "users", "add", "boss", "--role", "admin", "--password-file", "-", stdin=PASSWORD)
        self.admin("admin", "directories", "add", "public:plans")
        self.admin("share", "public:plans", "--with", "everyone", "--right", "read")
        self.admin("share", "public:plans", "--with", "anna", "--right", "write")

    def admin(self, *arguments, stdin=""):
        done = subprocess.run(
            [self.atrium, "--server", f"unix:{self.data}/admin.sock", *arguments],
            input=stdin, capture_output=True, text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{arguments}: {done.stderr}")
        return done.stdout

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.stdout.close()
        assert self.process.wait(30) == 0, "the server did not end cleanly"


class Peer:
    """A peer-node beside the server, with a printer that is a folder."""

    def __init__(self, programs, directory, server):
        self.programs, self.directory = programs, os.path.join(directory, "peer")
        self.paper = os.path.join(self.directory, "paper")
        os.makedirs(self.directory)
        config = os.path.join(self.directory, "peer.toml")
        with open(config, "w") as f:
            f.write(f"""
[node]
state_directory = "{self.directory}/state"
socket = "{self.directory}/peer.sock"
listen = ["127.0.0.1:0"]
name = "pc"
[discovery]
mdns = false
beacon = false
[devices]
ipp_listen = ["127.0.0.1:0"]
ipps_listen = ["127.0.0.1:0"]
announce = false
""")
        self.environment = dict(
            os.environ, HOME=self.directory, ATRIUM_PEER_SOCKET=f"{self.directory}/peer.sock",
            XDG_STATE_HOME=f"{self.directory}/xdg", XDG_RUNTIME_DIR=self.directory,
        )
        with open(os.path.join(directory, "peer.log"), "wb") as log:
            self.process = subprocess.Popen(
                [os.path.join(programs, "peer-node"), "--config", config], env=self.environment,
                stdout=subprocess.PIPE, stderr=log, text=True,
            )
        if not self.process.stdout.readline():
            raise RuntimeError("the peer-node did not start; see its log")
        ca = os.path.join(server.data, "ca.pem")
        self.atrium("init", "acme", "--name", "pc", "--person", "pc")
        self.atrium("--server", server.address, "--ca", ca, "login", "boss", "--password-file", "-", stdin=PASSWORD)
        self.atrium("office", "attach", server.address, "--ca", ca)
        self.atrium("share", "printers/laser", "--output", f"folder:{self.paper}", "--with", "everyone")

    def atrium(self, *arguments, stdin=""):
        done = subprocess.run(
            [os.path.join(self.programs, "atrium"), *arguments],
            input=stdin, capture_output=True, text=True, env=self.environment,
        )
        if done.returncode:
            raise RuntimeError(f"{arguments}: {done.stderr}")
        return done.stdout

    def printed(self):
        names = [n for n in os.listdir(self.paper) if not n.startswith(".")]
        return [open_bytes(os.path.join(self.paper, n)) for n in sorted(names)]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.stdout.close()
        assert self.process.wait(30) == 0, "the peer-node did not end cleanly"


def open_bytes(path):
    with open(path, "rb") as f:
        return f.read()


def until(what, is_so):
    end = time.monotonic() + 120
    while not (result := is_so()):
        assert time.monotonic() < end, f"it never came to this: {what}"
        time.sleep(0.05)
    return result


def expect(code, reason, call):
    try:
        call()
    except grpc.RpcError as error:
        got = explain(error)
        assert error.code() == code and got[0] == reason, (error.code(), got, error.details())
        assert got[1] and got[2], "every error has a why and a fix"
        assert got[3], "every error has a request id"
        return got
    raise AssertionError(f"{reason} was expected")


def main(programs):
    with tempfile.TemporaryDirectory() as directory:
        server = Server(programs, directory)
        try:
            run(server)
            run_printing(server, programs, directory)
        except BaseException:
            for log in ("server.log", "peer.log"):
                if os.path.exists(path := os.path.join(directory, log)):
                    sys.stderr.write(open_bytes(path).decode(errors="replace")[-4000:])
            raise
        finally:
            server.stop()
    print("python interop: all checks passed")


def run(server):
    anna, bert = Atrium(server.address, server.ca), Atrium(server.address, server.ca)

    # Health and reflection need no credentials.
    health = health_pb2_grpc.HealthStub(anna.channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    services = set(ProtoReflectionDescriptorDatabase(anna.channel).get_services())
    for name in ("FileService", "TransferService", "SessionService", "WatchService", "AdminService"):
        assert f"atrium.v1.{name}" in services, services
    print("ok  health and reflection")

    # A server with another CA is not believed.
    other = Atrium(server.address, None)
    try:
        other.sessions.WhoAmI(account_pb2.WhoAmIRequest(), timeout=5)
        raise AssertionError("the server was believed without its CA")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error
    other.close()
    print("ok  the server is verified by its PEM file")

    expect(grpc.StatusCode.UNAUTHENTICATED, "LOGIN_FAILED", lambda: anna.login("anna", "wrong"))
    expect(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING", lambda: list(anna.list("home")))
    anna.login("anna", PASSWORD)
    bert.login("bert", PASSWORD)
    who = anna.sessions.WhoAmI(account_pb2.WhoAmIRequest(), metadata=anna.metadata)
    assert who.user.name == "anna" and not who.local_admin
    print("ok  signing in, and rich errors")

    stream = bert.watch("public/plans")
    first = next(stream)
    assert first.cursor > 0 and not first.changes, "a mark of progress comes first"

    data = os.urandom(100 << 20)
    steps = []
    entry = anna.put("public/plans", "big/video.bin", data, lambda sent, total: steps.append(sent))
    assert entry.size_bytes == len(data) and entry.version == 1 and steps[-1] == len(data) and len(steps) == 100
    print("ok  put 100 MiB with progress")

    seen = []
    timer = threading.Timer(30, stream.cancel)
    timer.start()
    for message in stream:
        seen += [(c.kind, c.path.path) for c in message.changes]
        if (watch_pb2.Change.KIND_CREATED, "big/video.bin") in seen:
            break
    timer.cancel()
    assert (watch_pb2.Change.KIND_CREATED, "big") in seen
    stream.cancel()
    print("ok  the other person's watch tells of it")

    assert bert.get("public/plans", "big/video.bin") == data
    print("ok  got it back and compared it")

    for i in range(120):
        anna.put("home", f"notes/{i:03}.txt", b"note %d" % i)
    names = [e.display_name for e in anna.list("home", "notes")]
    assert names == [f"{i:03}.txt" for i in range(120)], names
    print("ok  listed 120 files in three pages")

    # Permission is checked before existence; another person's directory looks like one that does not exist.
    expect(grpc.StatusCode.NOT_FOUND, "DIRECTORY_UNKNOWN", lambda: list(bert.list("home/anna")))
    expect(grpc.StatusCode.NOT_FOUND, "DIRECTORY_UNKNOWN", lambda: list(bert.list("home/nobody")))
    make = lambda path: bert.files.MakeDirectory(
        file_pb2.MakeDirectoryRequest(path=file_pb2.Path(root="public/plans", path=path)), metadata=bert.metadata)
    expect(grpc.StatusCode.PERMISSION_DENIED, "ACCESS_DENIED", lambda: make("mine"))
    expect(grpc.StatusCode.INVALID_ARGUMENT, "NAME_INVALID", lambda: list(anna.list("home", "../bert")))
    expect(grpc.StatusCode.NOT_FOUND, "ENTRY_UNKNOWN", lambda: list(anna.list("home", "nothing")))
    expect(grpc.StatusCode.PERMISSION_DENIED, "ADMIN_REQUIRED", lambda: anna.directories.CreateDirectory(
        directory_pb2.CreateDirectoryRequest(name="public/x"), metadata=anna.metadata))

    # Knowing a chunk's digest does not give its content.
    secret = anna.put("home", "secret.txt", b"only for anna's eyes")
    page = anna.files.GetManifest(file_pb2.GetManifestRequest(path=secret.path), metadata=anna.metadata)
    stolen = bert.files.CommitFiles(file_pb2.CommitFilesRequest(
        upload_id="3f1f0a51-6a9c-4c54-9d11-1f1b9a3a9f00",
        files=[file_pb2.FileCommit(path=file_pb2.Path(root="home", path="stolen.txt"), chunks=page.chunks, any=True)],
    ), metadata=bert.metadata).results[0]
    assert stolen.error.reason == "CHUNKS_MISSING", stolen
    print("ok  refusals, each with the documented code")

    anna.sessions.Logout(account_pb2.LogoutRequest(), metadata=anna.metadata)
    expect(grpc.StatusCode.UNAUTHENTICATED, "SESSION_INVALID", lambda: list(anna.list("home")))
    print("ok  a session that has ended is refused")
    anna.close()
    bert.close()


def run_printing(server, programs, directory):
    peer = Peer(programs, directory, server)
    anna, bert = Atrium(server.address, server.ca), Atrium(server.address, server.ca)
    try:
        anna.login("anna", PASSWORD)
        bert.login("bert", PASSWORD)
        name = "laser.pc"
        until("the printer is offered", lambda: name in server.admin("admin", "printers", "list"))
        server.admin("admin", "printers", "grant", name, "anna=write")
        assert [p.name for p in anna.printers()] == [name] and not bert.printers()
        expect(grpc.StatusCode.NOT_FOUND, "RESOURCE_UNKNOWN", lambda: bert.print(name, b"%PDF-1.4"))

        document = b"%PDF-1.4\n" + os.urandom(3 << 20)
        request = str(uuid.uuid4())
        job = anna.print(name, document, "offer.pdf", request, format="application/pdf")
        assert (job.printer, job.display_name, job.user, job.size_bytes) == (name, "offer.pdf", "anna", len(document))
        assert job.digest == blake3.blake3(document).digest() and job.priority == 50
        assert anna.print(name, document, "offer.pdf", request, format="application/pdf").id == job.id
        completed = lambda job: anna.print_job(job.id).state == print_pb2.PRINT_JOB_STATE_COMPLETED
        until("the job is completed", lambda: completed(job))
        assert peer.printed() == [document]
        expect(grpc.StatusCode.NOT_FOUND, "PRINT_JOB_UNKNOWN", lambda: bert.print_job(job.id))
        print("ok  printed through the server's queue, whole and once")

        secret = anna.print(name, b"%PDF-1.4 secret", pin="0815", priority=80, format="application/pdf")
        assert (secret.state, secret.needs_pin, secret.priority) == (print_pb2.PRINT_JOB_STATE_HELD, True, 80)
        expect(grpc.StatusCode.PERMISSION_DENIED, "PIN_WRONG", lambda: anna.release(secret.id, "4711"))
        assert anna.release(secret.id, "0815").state == print_pb2.PRINT_JOB_STATE_PENDING
        until("the job is completed", lambda: completed(secret))
        assert len(peer.printed()) == 2
        print("ok  a job with a PIN waits for it")
    finally:
        anna.close()
        bert.close()
        peer.stop()


if __name__ == "__main__":
    main(sys.argv[1])
