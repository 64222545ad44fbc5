"""Whatever a server does, a file is whole and right under its name, or absent with a message that says why."""

from __future__ import annotations

import dataclasses
import email.utils
import hashlib
import json
import multiprocessing
import os
import random
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jmp_data.errors import DownloadError
from jmp_data.raw import download as download_module
from jmp_data.raw.download import RemoteFile, RetryPolicy, TransferProgress, download, plan_download
from tests.jmp_data.raw.faulty_server import Fault, serve

CONTENT = random.Random(0).randbytes(400_000)
OTHER = random.Random(1).randbytes(400_000)
FAST = RetryPolicy(attempts=4, first_delay=0.005, longest_delay=0.05, connect_timeout=2, read_timeout=0.5)


@pytest.fixture
def server():
    with serve() as running:
        yield running


def published(url: str, content: bytes = CONTENT, name: str = "data.bin", **changes) -> RemoteFile:
    complete = RemoteFile(
        url,
        name,
        size=len(content),
        md5=hashlib.md5(content).hexdigest(),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    return dataclasses.replace(complete, **changes)


BARE = {"size": None, "md5": None, "sha256": None}


def fetch(file: RemoteFile, target: Path, **options):
    return download([file], target, policy=options.pop("policy", FAST), **options)[0]


def assert_absent(target: Path, name: str = "data.bin"):
    assert not (target / name).exists()


def assert_whole(target: Path, content: bytes = CONTENT, name: str = "data.bin"):
    assert (target / name).read_bytes() == content
    assert not (target / f"{name}.part").exists()


class TestWholeFiles:
    @pytest.mark.parametrize("known", [{}, {"size": None}, {"md5": None, "sha256": None}, BARE])
    def test_a_plain_download(self, server, tmp_path, known):
        result = fetch(published(server.put("/f", CONTENT), **known), tmp_path)
        assert_whole(tmp_path)
        assert result.status == "downloaded"
        assert result.sha256 == hashlib.sha256(CONTENT).hexdigest()
        assert result.size == len(CONTENT)

    def test_many_files_come_at_once_and_results_keep_their_order(self, server, tmp_path):
        contents = [random.Random(n).randbytes(1000 * n + 1) for n in range(12)]
        files = [
            published(server.put(f"/{n}", content, Fault(pause=0.05)), content, f"sub/{n % 3}/{n}.xz")
            for n, content in enumerate(contents)
        ]
        began = time.monotonic()
        results = download(files, tmp_path, workers=6, policy=FAST)
        assert time.monotonic() - began < 12 * 0.05
        for file, result, content in zip(files, results, contents, strict=True):
            assert result.file is file
            assert_whole(tmp_path, content, file.name)

    def test_what_is_there_is_not_asked_for_again(self, server, tmp_path):
        file = published(server.put("/f", CONTENT), **BARE)
        fetch(file, tmp_path)
        assert fetch(file, tmp_path).status == "kept"
        assert len(server.requests) == 1

    def test_a_file_put_there_by_hand_is_checked_and_kept(self, server, tmp_path):
        (tmp_path / "data.bin").write_bytes(CONTENT)
        assert fetch(published("http://127.0.0.1:9/f"), tmp_path).status == "kept"

    def test_redirects_are_followed_with_their_ranges(self, server, tmp_path):
        server.put("/real", CONTENT, Fault(drop_after=100_000))
        url = server.put("/f", b"", always=Fault(redirect="/real"))
        fetch(published(url), tmp_path)
        assert_whole(tmp_path)
        assert server.ranges("/real")[1] == "bytes=100000-"

    def test_progress_reaches_the_total(self, server, tmp_path):
        seen: list[TransferProgress] = []
        fetch(published(server.put("/f", CONTENT)), tmp_path, progress=seen.append)
        received = [event.received for event in seen]
        assert received == sorted(received)
        assert seen[-1] == TransferProgress("data.bin", "done", len(CONTENT), len(CONTENT))


class TestBrokenConnections:
    @pytest.mark.parametrize("known", [{}, BARE])
    def test_goes_on_where_it_broke(self, server, tmp_path, known):
        url = server.put("/f", CONTENT, Fault(drop_after=100_000), Fault(drop_after=150_000))
        fetch(published(url, **known), tmp_path)
        assert_whole(tmp_path)
        assert server.ranges("/f") == [None, "bytes=100000-", "bytes=250000-"]

    def test_a_later_run_goes_on_with_the_part(self, server, tmp_path):
        url = server.put("/f", CONTENT, Fault(drop_after=100_000), *[Fault(status=503)] * 4)
        file = published(url, **BARE)
        with pytest.raises(DownloadError, match="HTTP 503"):
            fetch(file, tmp_path)
        assert_absent(tmp_path)
        assert plan_download([file], tmp_path).files[0].action == "resume"
        fetch(file, tmp_path)
        assert_whole(tmp_path)
        assert server.ranges("/f")[-1] == "bytes=100000-"

    def test_a_server_that_ignores_ranges_is_read_from_the_start(self, server, tmp_path):
        url = server.put("/f", CONTENT, Fault(drop_after=100_000), Fault(ignore_range=True))
        fetch(published(url, **BARE), tmp_path)
        assert_whole(tmp_path)

    def test_a_server_that_always_breaks_at_one_place_is_given_up(self, server, tmp_path):
        url = server.put("/f", CONTENT, always=Fault(drop_after=50_000, ignore_range=True))
        with pytest.raises(DownloadError, match=r"ended after 50000 of 400000|connection failed"):
            fetch(published(url), tmp_path)
        assert_absent(tmp_path)
        assert len(server.requests) <= 6

    def test_progress_renews_patience(self, server, tmp_path):
        url = server.put("/f", CONTENT, *[Fault(drop_after=20_000)] * 15)
        fetch(published(url), tmp_path)
        assert_whole(tmp_path)

    def test_without_validator_or_digest_a_part_is_not_continued(self, server, tmp_path):
        server.with_validators = False
        url = server.put("/f", CONTENT, Fault(drop_after=100_000, content=OTHER))
        fetch(published(url, md5=None, sha256=None), tmp_path)
        assert_whole(tmp_path)
        assert server.ranges("/f") == [None, None]

    @pytest.mark.parametrize("headers", [{}, {"ETag": None}])
    def test_a_file_that_changes_meanwhile_is_not_mixed(self, server, tmp_path, headers):
        changed = Fault(drop_after=100_000, content=OTHER, headers=headers)
        fetch(published(server.put("/f", CONTENT, changed), **BARE), tmp_path)
        assert_whole(tmp_path)

    def test_a_server_that_disregards_if_range_is_caught_by_its_etag(self, server, tmp_path):
        old = f'"{hashlib.sha1(CONTENT).hexdigest()}"'
        lying = Fault(drop_after=100_000, content=OTHER, headers={"ETag": old})
        new = Fault(headers={"ETag": '"new"'})
        fetch(published(server.put("/f", CONTENT, lying, new), **BARE), tmp_path)
        assert_whole(tmp_path)

    def test_an_answer_for_another_range_is_not_appended(self, server, tmp_path):
        url = server.put("/f", CONTENT, Fault(drop_after=100_000), Fault(shift_range=7))
        fetch(published(url, **BARE), tmp_path)
        assert_whole(tmp_path)

    def test_status_416_for_a_complete_part_is_the_end(self, server, tmp_path):
        (tmp_path / "data.bin.part").write_bytes(CONTENT)
        fetch(published(server.put("/f", CONTENT), size=None), tmp_path)
        assert_whole(tmp_path)
        assert server.ranges("/f") == ["bytes=400000-"]

    def test_status_416_for_a_part_of_something_else_starts_anew(self, server, tmp_path):
        (tmp_path / "data.bin.part").write_bytes(OTHER + b"longer")
        fetch(published(server.put("/f", CONTENT), size=None), tmp_path)
        assert_whole(tmp_path)

    def test_a_part_with_a_damaged_state_starts_anew(self, server, tmp_path):
        (tmp_path / "data.bin.part").write_bytes(OTHER[:1000])
        (tmp_path / ".download").mkdir()
        (tmp_path / ".download" / "data.bin.json").write_text("{")
        fetch(published(server.put("/f", CONTENT), **BARE), tmp_path)
        assert_whole(tmp_path)

    def test_a_silent_server_is_asked_again(self, server, tmp_path):
        fetch(published(server.put("/f", CONTENT, Fault(pause=1.0))), tmp_path)
        assert_whole(tmp_path)
        assert len(server.requests) == 2

    def test_nobody_listening(self, tmp_path):
        with pytest.raises(DownloadError, match=r"data\.bin: could not be downloaded.*connection failed"):
            fetch(published("http://127.0.0.1:9/f"), tmp_path)
        assert_absent(tmp_path)


class TestErrorsOfServers:
    @pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408])
    def test_passing_errors_are_waited_out(self, server, tmp_path, status):
        fetch(published(server.put("/f", CONTENT, Fault(status=status), Fault(status=status))), tmp_path)
        assert_whole(tmp_path)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
    def test_lasting_errors_are_not_repeated(self, server, tmp_path, status):
        url = server.put("/f", CONTENT, always=Fault(status=status))
        with pytest.raises(DownloadError, match=f"HTTP {status}"):
            fetch(published(url), tmp_path)
        assert len(server.requests) == 1
        assert_absent(tmp_path)

    @pytest.mark.parametrize("as_date", [False, True])
    def test_retry_after_is_honoured(self, server, tmp_path, as_date):
        value = email.utils.formatdate(time.time() + 2, usegmt=True) if as_date else "1"
        url = server.put("/f", CONTENT, Fault(status=503, headers={"Retry-After": value}))
        began = time.monotonic()
        fetch(published(url), tmp_path, policy=dataclasses.replace(FAST, longest_delay=5.0))
        assert time.monotonic() - began > 0.9

    def test_a_bot_challenge_is_named(self, server, tmp_path):
        challenge = Fault(status=202, headers={"x-amzn-waf-action": "challenge"})
        url = server.put("/f", CONTENT, always=challenge)
        with pytest.raises(DownloadError, match=r"bot challenge \(HTTP 202, x-amzn-waf-action: challenge\).*browser"):
            fetch(published(url, **BARE), tmp_path)
        assert_absent(tmp_path)
        assert not (tmp_path / "data.bin.part").exists()

    def test_a_mirror_helps_out(self, server, tmp_path):
        challenge = Fault(status=202, headers={"x-amzn-waf-action": "challenge"})
        first = server.put("/f", CONTENT, always=challenge)
        mirror = server.put("/m", CONTENT)
        assert fetch(published(first, mirrors=(mirror,)), tmp_path).url == mirror
        assert_whole(tmp_path)

    def test_a_mirror_goes_on_with_the_part_where_a_digest_protects_it(self, server, tmp_path):
        first = server.put("/f", CONTENT, Fault(drop_after=100_000), always=Fault(status=404))
        mirror = server.put("/m", CONTENT)
        fetch(published(first, mirrors=(mirror,)), tmp_path)
        assert_whole(tmp_path)
        assert server.ranges("/m") == ["bytes=100000-"]

    @pytest.mark.parametrize("fault", [Fault(content=b""), Fault(drop_after=0)])
    @pytest.mark.parametrize("known", [{}, BARE])
    def test_an_empty_answer_is_no_file(self, server, tmp_path, fault, known):
        with pytest.raises(DownloadError, match="could not be downloaded"):
            fetch(published(server.put("/f", CONTENT, always=fault), **known), tmp_path)
        assert_absent(tmp_path)
        fetch(published(server.put("/g", CONTENT, fault), **known), tmp_path)
        assert_whole(tmp_path)

    def test_a_log_in_page_is_no_file(self, server, tmp_path):
        page = Fault(content=b"<html>please log in</html>", headers={"Content-Type": "text/html; charset=utf-8"})
        with pytest.raises(DownloadError, match="web page instead of the file"):
            fetch(published(server.put("/f", CONTENT, always=page), **BARE), tmp_path)
        assert_absent(tmp_path)

    def test_a_body_of_unknown_length_could_be_a_part(self, server, tmp_path):
        url = server.put("/f", CONTENT, always=Fault(close_delimited=True, drop_after=1000))
        with pytest.raises(DownloadError, match="how long the file is"):
            fetch(published(url, **BARE), tmp_path)
        assert_absent(tmp_path)
        sized = server.put("/g", CONTENT, always=Fault(close_delimited=True, drop_after=100_000))
        fetch(published(sized, md5=None, sha256=None), tmp_path)
        assert_whole(tmp_path)

    def test_an_unasked_encoding_is_refused(self, server, tmp_path):
        url = server.put("/f", CONTENT, always=Fault(headers={"Content-Encoding": "gzip"}))
        with pytest.raises(DownloadError, match="gzip encoding"):
            fetch(published(url, **BARE), tmp_path)
        fetch(published(url, name="data.xyz.gz", **BARE), tmp_path)
        assert_whole(tmp_path, name="data.xyz.gz")


class TestWrongContent:
    @pytest.mark.parametrize("kind", ["md5", "sha256"])
    def test_wrong_bytes_are_removed_and_named(self, server, tmp_path, kind):
        url = server.put("/f", CONTENT, always=Fault(content=OTHER))
        other_kind = {"md5": "sha256", "sha256": "md5"}[kind]
        with pytest.raises(DownloadError, match=rf"data\.bin.*its {kind} is .* instead of .*was removed"):
            fetch(published(url, **{other_kind: None}), tmp_path)
        assert_absent(tmp_path)
        assert not (tmp_path / "data.bin.part").exists()
        assert len(server.requests) == 1 + FAST.restarts

    def test_wrong_bytes_once_are_fetched_again(self, server, tmp_path):
        fetch(published(server.put("/f", CONTENT, Fault(content=OTHER))), tmp_path)
        assert_whole(tmp_path)

    def test_a_part_of_other_bytes_is_found_by_the_digest(self, server, tmp_path):
        (tmp_path / "data.bin.part").write_bytes(OTHER[:5000])
        fetch(published(server.put("/f", CONTENT)), tmp_path)
        assert_whole(tmp_path)

    @pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1])
    def test_a_wrong_size_is_never_accepted(self, server, tmp_path, size):
        url = server.put("/f", CONTENT)
        with pytest.raises(DownloadError, match=f"offers 400000 bytes where {size} are published"):
            fetch(published(url, size=size, md5=None, sha256=None), tmp_path)
        assert_absent(tmp_path)

    @pytest.mark.parametrize("length", ["399990", "400010"])
    def test_a_wrong_content_length(self, server, tmp_path, length):
        lie = Fault(headers={"Content-Length": length})
        fetch(published(server.put("/f", CONTENT, lie)), tmp_path)
        assert_whole(tmp_path)

    def test_the_first_digest_is_recorded_and_binding(self, server, tmp_path):
        file = published(server.put("/f", CONTENT), **BARE)
        fetch(file, tmp_path)
        recorded = json.loads((tmp_path / "digests.json").read_text())["files"]["data.bin"]
        assert recorded["sha256"] == hashlib.sha256(CONTENT).hexdigest()
        (tmp_path / "data.bin").unlink()
        server.put("/f", OTHER)
        with pytest.raises(DownloadError, match="recorded when it was first downloaded"):
            fetch(file, tmp_path)
        assert_absent(tmp_path)

    @pytest.mark.parametrize("known", [{}, BARE])
    def test_a_file_damaged_on_disk_is_set_aside_and_fetched_again(self, server, tmp_path, known):
        file = published(server.put("/f", CONTENT), **known)
        fetch(file, tmp_path)
        (tmp_path / "data.bin").write_bytes(CONTENT[:-1] + b"x" if CONTENT[-1:] != b"x" else CONTENT[:-1] + b"y")
        assert fetch(file, tmp_path).status == "downloaded"
        assert_whole(tmp_path)
        assert (tmp_path / "data.bin.rejected").exists()

    def test_an_empty_file_is_never_taken_for_done(self, server, tmp_path):
        (tmp_path / "data.bin").touch()
        file = published(server.put("/f", CONTENT), **BARE)
        assert plan_download([file], tmp_path).files[0].action == "fetch"
        fetch(file, tmp_path)
        assert_whole(tmp_path)

    def test_a_new_published_digest_replaces_the_file(self, server, tmp_path):
        fetch(published(server.put("/f", OTHER), **BARE), tmp_path)
        fetch(published(server.put("/f", CONTENT)), tmp_path)
        assert_whole(tmp_path)

    def test_a_damaged_ledger_is_an_error(self, server, tmp_path):
        (tmp_path / "digests.json").write_text('{"format": 99}')
        with pytest.raises(DownloadError, match=r"digests\.json: cannot be read"):
            fetch(published(server.put("/f", CONTENT)), tmp_path)


class TestSeveralFiles:
    def test_one_failure_does_not_keep_the_others_from_finishing(self, server, tmp_path):
        good = [published(server.put(f"/{n}", CONTENT), name=f"{n}.bin") for n in range(5)]
        bad = [published(f"{server.url}/absent{n}", name=f"bad{n}.bin") for n in range(2)]
        with pytest.raises(DownloadError, match=r"(?s)2 of 7 files.*bad0\.bin.*bad1\.bin"):
            download([bad[0], *good, bad[1]], tmp_path, policy=FAST)
        for n in range(5):
            assert_whole(tmp_path, name=f"{n}.bin")

    def test_two_files_of_one_name_are_refused(self, tmp_path):
        with pytest.raises(DownloadError, match=r"several files would be called data\.bin"):
            plan_download([published("http://h/a"), published("http://h/b")], tmp_path)

    @pytest.mark.parametrize(
        "name", ["../x", "/x", "a/../../x", "", ".", "a\\b", "digests.json", ".download/x", "x.part"]
    )
    def test_names_stay_inside_the_target(self, name):
        with pytest.raises(DownloadError, match="file name"):
            RemoteFile("http://h/x", name)

    @pytest.mark.parametrize(
        "changes", [{"url": "file:///etc/passwd"}, {"md5": "xyz"}, {"sha256": "A" * 64}, {"size": 0}]
    )
    def test_nonsense_in_a_manifest_is_refused(self, changes):
        with pytest.raises(DownloadError, match=r"data\.bin"):
            dataclasses.replace(published("http://h/x"), **changes)

    def test_too_small_a_disk_is_noticed_before_anything_is_asked_for(self, server, tmp_path, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(download_module.shutil, "disk_usage", lambda path: usage(10, 9, 300_000))
        with pytest.raises(DownloadError, match="400000 bytes are to come, the disk has 300000"):
            fetch(published(server.put("/f", CONTENT)), tmp_path)
        assert server.requests == []
        with pytest.raises(DownloadError, match="needs 400000 more bytes, the disk has 300000"):
            fetch(published(server.put("/f", CONTENT), **BARE), tmp_path)
        assert_absent(tmp_path)

    def test_the_plan_says_what_would_come_and_does_nothing(self, server, tmp_path):
        target = tmp_path / "raw"
        files = [published(server.put("/f", CONTENT)), published(server.put("/g", OTHER), OTHER, "g", size=None)]
        plan = plan_download(files, target)
        assert [planned.action for planned in plan.files] == ["fetch", "fetch"]
        assert plan.missing_bytes == len(CONTENT)
        assert plan.files_of_unknown_size == 1
        assert not target.exists()
        assert server.requests == []
        download(files, target, policy=FAST)
        plan = plan_download(files, target)
        assert [planned.action for planned in plan.files] == ["keep", "keep"]
        assert plan.missing_bytes == 0

    def test_an_interrupt_ends_soon_and_keeps_the_part(self, server, tmp_path):
        url = server.put("/f", CONTENT, Fault(drop_after=100_000), always=Fault(status=503))

        def interrupt(event: TransferProgress) -> None:
            if event.stage == "retrying":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fetch(published(url), tmp_path, progress=interrupt)
        assert_absent(tmp_path)
        assert (tmp_path / "data.bin.part").stat().st_size == 100_000


def _download_in_process(url: str, target: str, barrier) -> None:
    barrier.wait()
    fetch(published(url, **BARE), Path(target))


def _download_and_die(url: str, target: str) -> None:
    def die(event: TransferProgress) -> None:
        if event.received > 150_000:
            os._exit(9)

    fetch(published(url, **BARE), Path(target), progress=die)


class TestProcesses:
    def test_two_processes_take_turns(self, server, tmp_path):
        url = server.put("/f", CONTENT, Fault(pause=0.3))
        context = multiprocessing.get_context("fork")
        barrier = context.Barrier(3)
        children = [context.Process(target=_download_in_process, args=(url, str(tmp_path), barrier)) for _ in range(3)]
        for child in children:
            child.start()
        for child in children:
            child.join(30)
        assert [child.exitcode for child in children] == [0, 0, 0]
        assert_whole(tmp_path)
        assert len(server.requests) == 1

    def test_a_killed_process_leaves_a_part_and_no_lock(self, server, tmp_path):
        url = server.put("/f", CONTENT)
        child = multiprocessing.get_context("fork").Process(target=_download_and_die, args=(url, str(tmp_path)))
        child.start()
        child.join(30)
        assert child.exitcode == 9
        assert_absent(tmp_path)
        assert (tmp_path / "data.bin.part").exists()
        fetch(published(url, **BARE), tmp_path)
        assert_whole(tmp_path)

    def test_waiting_for_another_process_can_be_interrupted(self, tmp_path):
        from jmp_data.raw.file_lock import exclusive_lock

        def interrupt(event: TransferProgress) -> None:
            raise KeyboardInterrupt

        with exclusive_lock(tmp_path / ".download" / "data.bin.lock"), pytest.raises(KeyboardInterrupt):
            fetch(published("http://127.0.0.1:9/f"), tmp_path, progress=interrupt)
        assert threading.active_count() < 20


FAULTS = st.one_of(
    st.builds(Fault, status=st.sampled_from([429, 500, 503, 202, 403, 416])),
    st.builds(Fault, drop_after=st.integers(0, len(CONTENT)), ignore_range=st.booleans()),
    st.builds(
        Fault, content=st.sampled_from([OTHER, b"", CONTENT[:-1], CONTENT + b"x"]), drop_after=st.integers(0, 400_000)
    ),
    st.builds(
        Fault,
        headers=st.sampled_from(
            [{"Content-Length": "7"}, {"ETag": None}, {"ETag": '"x"'}, {"Content-Range": "bytes 5-9/10"}]
        ),
    ),
    st.builds(Fault, shift_range=st.integers(1, 100_000), drop_after=st.integers(0, 400_000)),
    st.just(Fault(close_delimited=True, drop_after=70_000)),
)


@given(
    st.lists(FAULTS, max_size=6),
    st.sampled_from([{}, {"size": None}, {"size": None, "sha256": None}]),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_of_faults_gives_the_file_or_nothing(tmp_path_factory, faults, known, runs):
    """With a published digest, no misbehaviour whatever puts other bytes under the final name."""
    target = tmp_path_factory.mktemp("raw")
    with serve() as server:
        file = published(server.put("/f", CONTENT, *faults), **known)
        for _ in range(runs):
            try:
                fetch(file, target, policy=dataclasses.replace(FAST, first_delay=0.001, longest_delay=0.002))
            except DownloadError:
                assert_absent(target)
            else:
                assert_whole(target)
