"""Downloads published files so that each is whole and right, or absent with a message that says why.

A file exists under its final name only after size and digest were checked and its bytes were flushed to disk. Until
then it is ``NAME.part``, which a later run continues. Files of one call come concurrently; two processes that want
the same file take turns. Digests that no publisher states are recorded in ``digests.json`` and binding from then on.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jmp_data.errors import DownloadError
from jmp_data.raw.digests import LedgerEntry, RunningDigest, digest_file, read_ledger, record_digest, sync_folder
from jmp_data.raw.download_plan import DownloadPlan, LocalPaths, PlannedFile, RemoteFile, plan_download, plan_file
from jmp_data.raw.file_lock import exclusive_lock
from jmp_data.raw.transfer import RetryPolicy, Transfer, TransferProgress

__all__ = [
    "DownloadPlan",
    "DownloadResult",
    "PlannedFile",
    "RemoteFile",
    "RetryPolicy",
    "TransferProgress",
    "download",
    "plan_download",
]

Report = Callable[[TransferProgress], None]


@dataclass(frozen=True, slots=True)
class DownloadResult:
    """One file that is there and right.

    Attributes:
        file: the published file.
        path: where it lies.
        status: ``downloaded`` now, or ``kept`` because it was already there.
        size: bytes.
        sha256: hexadecimal digest.
        md5: hexadecimal digest.
        url: the address that gave it; empty when it was put there by hand.
    """

    file: RemoteFile
    path: Path
    status: Literal["downloaded", "kept"]
    size: int
    sha256: str
    md5: str
    url: str


def download(
    files: Sequence[RemoteFile],
    target: Path,
    *,
    workers: int = 4,
    progress: Report | None = None,
    policy: RetryPolicy | None = None,
) -> list[DownloadResult]:
    """Brings all files into ``target``; what is there and right is kept, what is unfinished is continued.

    Args:
        files: the published files; names must differ.
        target: local folder, created where needed.
        workers: how many files come at once.
        progress: called from the worker threads, one call at a time.
        policy: patience with servers.

    Returns:
        One result a file, in the given order.

    Raises:
        DownloadError: at least one file could not be had or verified (the message names each), or the disk is too
            small. All other files are complete; running the call again goes on where this one ended.
    """
    plan = plan_download(files, target)
    target.mkdir(parents=True, exist_ok=True)
    _require_space(plan)
    stop = threading.Event()
    report = _one_at_a_time(progress)
    pool = ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="download")
    try:
        futures = [pool.submit(_obtain, file, target, policy or RetryPolicy(), report, stop) for file in files]
        return _collect(futures)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _collect(futures: list[Future[DownloadResult]]) -> list[DownloadResult]:
    results: list[DownloadResult] = []
    failures: list[DownloadError] = []
    for future in futures:
        try:
            results.append(future.result())
        except DownloadError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        listed = "\n".join(str(error) for error in failures)
        raise DownloadError(f"{len(failures)} of {len(futures)} files could not be downloaded:\n{listed}")
    return results


def _require_space(plan: DownloadPlan) -> None:
    free = shutil.disk_usage(plan.target).free
    if plan.missing_bytes > free:
        raise DownloadError(
            f"{plan.target}: {plan.missing_bytes} bytes are to come, the disk has {free}; make room first"
        )


def _one_at_a_time(progress: Report | None) -> Report:
    lock = threading.Lock()

    def report(event: TransferProgress) -> None:
        if progress is not None:
            with lock:
                progress(event)

    return report


def _obtain(
    file: RemoteFile, target: Path, policy: RetryPolicy, report: Report, stop: threading.Event
) -> DownloadResult:
    """Brings one file, alone among all processes that want it."""
    paths = LocalPaths.of(file, target)

    def waiting() -> None:
        report(TransferProgress(file.name, "waiting", 0, file.size, "another process downloads this file"))
        if stop.is_set():
            raise DownloadError(f"{paths.final}: interrupted while another process downloads it")

    try:
        paths.final.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(paths.lock, on_wait=waiting):
            entry = read_ledger(target).get(file.name)
            result = _keep_existing(file, target, paths, entry, report)
            if result is None:
                recorded = None if entry is None else entry.sha256
                transfer = Transfer(file, paths, policy=policy, report=report, stop=stop, recorded_sha256=recorded)
                result = _finish(file, target, paths, transfer.run(), transfer.url)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"{paths.final}: {error}") from error
    report(TransferProgress(file.name, "done", result.size, result.size))
    return result


def _finish(file: RemoteFile, target: Path, paths: LocalPaths, digest: RunningDigest, url: str) -> DownloadResult:
    """Gives the verified part its final name."""
    paths.part.replace(paths.final)
    sync_folder(paths.final.parent)
    paths.state.unlink(missing_ok=True)
    return _record(file, target, paths, digest, url, "downloaded")


def _keep_existing(
    file: RemoteFile, target: Path, paths: LocalPaths, entry: LedgerEntry | None, report: Report
) -> DownloadResult | None:
    """Accepts the file that is already there, or clears its place: empty ones are removed, wrong ones set aside."""
    if not paths.final.exists():
        return None
    action = plan_file(file, target, entry).action
    if action == "keep" and entry is not None:
        return DownloadResult(file, paths.final, "kept", entry.size, entry.sha256, entry.md5, entry.url)
    if action == "check":
        digest = digest_file(
            paths.final, on_block=lambda n: report(TransferProgress(file.name, "checking", n, file.size))
        )
        recorded = None if entry is None or file.has_digest else entry.sha256
        if file.objection(digest.size, digest.sha256, digest.md5) is None and recorded in (None, digest.sha256):
            return _record(file, target, paths, digest, "" if entry is None else entry.url, "kept")
    if paths.final.stat().st_size == 0:
        paths.final.unlink()
        return None
    rejected = paths.final.with_name(f"{paths.final.name}.rejected")
    paths.final.replace(rejected)
    note = f"the file that was here is not the published one; it is now {rejected}"
    report(TransferProgress(file.name, "retrying", 0, file.size, note))
    return None


def _record(
    file: RemoteFile,
    target: Path,
    paths: LocalPaths,
    digest: RunningDigest,
    url: str,
    status: Literal["downloaded", "kept"],
) -> DownloadResult:
    entry = LedgerEntry(digest.size, digest.sha256, digest.md5, paths.final.stat().st_mtime_ns, url)
    record_digest(target, file.name, entry)
    return DownloadResult(file, paths.final, status, digest.size, digest.sha256, digest.md5, url)
