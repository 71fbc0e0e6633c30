"""A small Atrium client on generated stubs: the example for people who write their own.

It verifies the server by the office's PEM file, signs in with a name and a password, moves files chunk by chunk, and prints.
"""

import uuid

import blake3
import grpc
from atrium.v1 import account_pb2, account_pb2_grpc, common_pb2, directory_pb2, directory_pb2_grpc
from atrium.v1 import file_pb2, file_pb2_grpc, print_pb2, print_pb2_grpc, transfer_pb2, transfer_pb2_grpc, watch_pb2, watch_pb2_grpc
from google.rpc import error_details_pb2, status_pb2

CHUNK = 1 << 20


class Atrium:
    """One connection, one session."""

    def __init__(self, address, ca_pem):
        # Every server certificate carries the name "atrium-server" beside its addresses.
        self.channel = grpc.secure_channel(
            address,
            grpc.ssl_channel_credentials(root_certificates=ca_pem),
            options=[("grpc.ssl_target_name_override", "atrium-server")],
        )
        self.sessions = account_pb2_grpc.SessionServiceStub(self.channel)
        self.directories = directory_pb2_grpc.DirectoryServiceStub(self.channel)
        self.files = file_pb2_grpc.FileServiceStub(self.channel)
        self.transfers = transfer_pb2_grpc.TransferServiceStub(self.channel)
        self.watches = watch_pb2_grpc.WatchServiceStub(self.channel)
        self.prints = print_pb2_grpc.PrintServiceStub(self.channel)
        self.metadata = ()

    def close(self):
        self.channel.close()

    def login(self, user, password):
        answer = self.sessions.Login(account_pb2.LoginRequest(user=user, password=password, purpose="python"))
        self.metadata = (("authorization", f"Bearer {answer.token}"),)
        return answer

    def put(self, root, path, data, progress=None):
        """Stores bytes as a file; returns its entry."""
        upload = str(uuid.uuid4())
        pieces = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
        chunks = [file_pb2.Chunk(digest=blake3.blake3(p).digest(), length_bytes=len(p)) for p in pieces]

        def messages():
            sent = 0
            for chunk, piece in zip(chunks, pieces):
                part = transfer_pb2.ChunkData(digest=chunk.digest, data=piece)
                yield transfer_pb2.UploadChunksRequest(upload_id=upload if sent == 0 else "", chunks=[part])
                sent += len(piece)
                if progress:
                    progress(sent, len(data))

        if pieces:
            self.transfers.UploadChunks(messages(), metadata=self.metadata)
        commit = file_pb2.FileCommit(
            path=file_pb2.Path(root=root, path=path), chunks=chunks, any=True, make_parents=True
        )
        request = file_pb2.CommitFilesRequest(upload_id=upload, files=[commit])
        result = self.files.CommitFiles(request, metadata=self.metadata).results[0]
        if result.HasField("error"):
            raise RuntimeError(f"{result.error.reason}: {result.error.message}")
        return result.entry

    def get(self, root, path):
        """Returns a file's bytes, every chunk verified."""
        item = transfer_pb2.DownloadItem(path=file_pb2.Path(root=root, path=path), with_manifest=True)
        request = transfer_pb2.DownloadRequest(items=[item], client_verifies=True)
        data, chunks, ended = bytearray(), [], False
        for message in self.transfers.Download(request, metadata=self.metadata):
            for part in message.parts:
                kind = part.WhichOneof("part")
                if kind == "header":
                    chunks.extend(part.header.chunks)
                elif kind == "data":
                    assert part.data.offset_bytes == len(data)
                    data += part.data.data
                elif kind == "trailer":
                    ended = True
                else:
                    raise RuntimeError(f"{part.error.reason}: {part.error.message}")
        assert ended, "the stream ended before the file did"
        offset = 0
        for chunk in chunks:
            piece = bytes(data[offset : offset + chunk.length_bytes])
            assert blake3.blake3(piece).digest() == chunk.digest, "a chunk does not match its digest"
            offset += chunk.length_bytes
        assert offset == len(data)
        return bytes(data)

    def list(self, root, path=""):
        """Yields all entries of a directory, page by page."""
        token = ""
        while True:
            page = self.files.ListEntries(
                file_pb2.ListEntriesRequest(path=file_pb2.Path(root=root, path=path), page_size=50, page_token=token),
                metadata=self.metadata,
            )
            yield from page.entries
            token = page.next_page_token
            if not token:
                return

    def printers(self):
        """The printers that this person may see."""
        return self.prints.ListPrinters(print_pb2.ListPrintersRequest(), metadata=self.metadata).printers

    def print(self, printer, data, name="", request_id=None, **header):
        """Hands a document over; returns its job. With the same request id again, it is the same job, printed once."""

        def messages():
            first = print_pb2.PrintHeader(
                printer=printer, display_name=name, size_bytes=len(data), request_id=request_id or str(uuid.uuid4()), **header
            )
            yield print_pb2.PrintRequest(header=first)
            for i in range(0, len(data), CHUNK):
                yield print_pb2.PrintRequest(data=data[i : i + CHUNK])

        return self.prints.Print(messages(), metadata=self.metadata)

    def print_job(self, job):
        """How a job goes."""
        return self.prints.GetPrintJob(print_pb2.GetPrintJobRequest(id=job), metadata=self.metadata)

    def release(self, job, pin=""):
        """Prints a job that is held."""
        return self.prints.ReleasePrintJob(print_pb2.ReleasePrintJobRequest(id=job, pin=pin), metadata=self.metadata)

    def watch(self, *roots, cursor=0):
        """The stream of changes."""
        return self.watches.Watch(watch_pb2.WatchRequest(roots=roots, cursor=cursor), metadata=self.metadata)


def explain(error):
    """Returns (reason, why, fix, request id) of a failed call."""
    reason = why = fix = request_id = ""
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info, help_ = error_details_pb2.ErrorInfo(), common_pb2.ErrorHelp()
            if detail.Unpack(info):
                reason = info.reason
            elif detail.Unpack(help_):
                why, fix, request_id = help_.why, help_.fix, help_.request_id
    return reason, why, fix, request_id
