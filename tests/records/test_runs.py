"""Run directories: names, atomicity, verification, locks; provenance."""

import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinklora.records.files import atomic_write, contents_hash, file_hash, json_hash, write_json
from sinklora.records.provenance import _git, current_provenance, unchanged_commit
from sinklora.records.runs import DamagedRunError, RunDirectory, RunLockedError, remember, run_records

SPEC = {"pattern": "sf", "steps": 60, "rate": 2e-5, "corpus": {"packages": ["numpy", "sympy"]}, "base": None}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs", SPEC, prefix="sf-2048")


@pytest.fixture
def finished(run: RunDirectory) -> RunDirectory:
    (run.create() / "adapter").mkdir()
    (run.path / "adapter" / "weights.bin").write_bytes(bytes(range(256)) * 100)
    (run.path / "loss.csv").write_text("step,loss\n1,2.5\n")
    run.finish(["loss.csv", "adapter/weights.bin"])
    return run


def in_another_process(code: str) -> list[str]:
    root = Path(__file__).resolve().parents[2]
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{code}"]


# --- names --------------------------------------------------------------------------------------------------


def test_name_is_the_hash_of_the_sorted_compact_json(run: RunDirectory) -> None:
    text = '{"base":null,"corpus":{"packages":["numpy","sympy"]},"pattern":"sf","rate":2e-05,"steps":60}'
    assert run.path.name == "sf-2048-" + hashlib.sha256(text.encode()).hexdigest()[:16]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(spec=st.dictionaries(st.text(), json_values, max_size=4))
def test_hash_survives_key_order_and_the_disk(spec: dict[str, object]) -> None:
    assert json_hash(dict(reversed(spec.items()))) == json_hash(spec)
    assert json_hash(json.loads(json.dumps(spec))) == json_hash(spec)


@pytest.mark.parametrize(
    "changed",
    [{"steps": 61}, {"steps": 60.0}, {"steps": "60"}, {"steps": True}, {"base": False}, {"extra": None}],
    ids=str,
)
def test_every_difference_changes_the_name(run: RunDirectory, changed: dict[str, object]) -> None:
    assert RunDirectory(run.root, {**SPEC, **changed}, run.prefix).path != run.path


def test_spec_is_copied(run: RunDirectory) -> None:
    spec = {"packages": ["numpy"]}
    copied = RunDirectory(run.root, spec)
    before = copied.path
    spec["packages"].append("sympy")
    assert copied.path == before


@pytest.mark.parametrize(
    ("spec", "error", "place"),
    [
        ({"a": {"b": [0, {1, 2}]}}, TypeError, "spec['a']['b'][1]"),
        ({"a": Path("x")}, TypeError, "spec['a']"),
        ({"a": {3: 1}}, TypeError, "spec['a']"),
        ({"a": math.nan}, ValueError, "spec['a']"),
        ({"a": [-math.inf]}, ValueError, "spec['a'][0]"),
        (["a"], TypeError, "spec"),
    ],
    ids=str,
)
def test_spec_that_is_not_json_is_refused(
    tmp_path: Path, spec: object, error: type[Exception], place: str
) -> None:
    with pytest.raises(error, match=re.escape(place)):
        RunDirectory(tmp_path, spec)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["", "../up", "a/b", ".hidden", "a b"])
def test_prefix_that_is_no_file_name_is_refused(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        RunDirectory(tmp_path, SPEC, prefix)


# --- life ---------------------------------------------------------------------------------------------------


def test_states_follow_each_other(run: RunDirectory) -> None:
    assert run.state() == "missing"
    path = run.create()
    assert run.state() == "unfinished"
    assert json.loads((path / "spec.json").read_text()) == SPEC
    run.verify()
    (path / "loss.csv").write_text("1\n")
    assert run.create() == path
    run.finish([path / "loss.csv"])
    assert run.state() == "finished"
    run.verify()


def test_manifest_lists_sizes_and_hashes(finished: RunDirectory) -> None:
    manifest = json.loads((finished.path / "finished.json").read_text())
    assert manifest["outputs"] == {
        name: {
            "sha256": hashlib.sha256((finished.path / name).read_bytes()).hexdigest(),
            "bytes": (finished.path / name).stat().st_size,
        }
        for name in ("adapter/weights.bin", "loss.csv")
    }


def test_outputs_are_found_by_relative_paths_of_a_relative_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDirectory(Path("runs"), SPEC)
    (run.create() / "loss.csv").write_text("1\n")
    run.finish([run.path / "loss.csv", "loss.csv"])
    assert list(json.loads((run.path / "finished.json").read_text())["outputs"]) == ["loss.csv"]


@pytest.mark.parametrize("output", ["absent.csv", "../outside.csv", "folder", ""])
def test_outputs_must_be_files_inside(run: RunDirectory, output: str) -> None:
    (run.create() / "folder").mkdir()
    (run.root / "outside.csv").write_text("1\n")
    with pytest.raises(ValueError, match="is not a file inside"):
        run.finish([output])
    assert run.state() == "unfinished"


def test_finished_run_is_reused_and_an_unfinished_one_is_not(run: RunDirectory) -> None:
    calls: list[str] = []

    def work(path: Path) -> list[str]:
        calls.append("work")
        (path / "out.txt").write_text("done")
        if len(calls) == 1:
            raise KeyboardInterrupt
        return ["out.txt"]

    with pytest.raises(KeyboardInterrupt):
        run.reuse_or(work)
    assert run.state() == "unfinished"
    assert run.reuse_or(work) == run.reuse_or(work) == run.path
    assert len(calls) == 2


def test_verify_of_a_missing_run(run: RunDirectory) -> None:
    with pytest.raises(FileNotFoundError, match=run.path.name):
        run.verify()


# --- remembered values --------------------------------------------------------------------------------------


def never() -> object:
    pytest.fail("computed again")


def test_a_value_is_computed_once_and_is_the_same_the_first_time(tmp_path: Path) -> None:
    first = remember(SPEC, lambda: {"pair": (1, 2.5), "name": "é"}, runs=tmp_path, prefix="cost")
    again = remember(dict(reversed(SPEC.items())), never, runs=tmp_path, prefix="cost")
    assert first == again == {"pair": [1, 2.5], "name": "é"}
    assert remember({**SPEC, "steps": 61}, lambda: None, runs=tmp_path, prefix="cost") is None


def test_a_value_is_kept_with_its_provenance_and_names_its_run(tmp_path: Path) -> None:
    used: list[Path] = []
    for _ in range(2):
        remember(SPEC, lambda: 1, runs=tmp_path, prefix="cost", used=used)
    [record] = run_records(used)
    assert used == 2 * [RunDirectory(tmp_path, SPEC, "cost").path]
    assert record["run"] == used[0].name and record["spec_sha256"] == json_hash(SPEC)
    kept = json.loads((used[0] / "provenance.json").read_text())
    assert set(kept) == {*current_provenance(), "seconds"} and kept["seconds"] >= 0
    fields = ("commit", "dirty", "changed_files", "time", "seconds")
    assert {field: record[field] for field in fields} == {field: kept[field] for field in fields}
    flip_a_bit(used[0] / "provenance.json")
    with pytest.raises(DamagedRunError, match=r"provenance\.json"):
        remember(SPEC, never, runs=tmp_path, prefix="cost")


def test_a_value_that_was_kept_before_there_was_a_function_for_it_is_found(tmp_path: Path) -> None:
    # What the studies wrote, file by file: neither prefix, hash, file name nor content may change.
    text = '{"lengths":[512,1024],"model":{"run":"sf-2048-0123456789abcdef"},"policy":null,"trials":10}'
    folder = tmp_path / f"retrieval-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    folder.mkdir()
    key = json.loads(text)
    rows = [{"tokens": 512, "depth": 0.0, "answer": "00123", "wrote": " 00123. é", "correct": True}]
    content = (json.dumps(rows, indent=2, ensure_ascii=False) + "\n").encode()
    (folder / "spec.json").write_text(json.dumps(key, indent=2) + "\n")
    (folder / "rows.json").write_bytes(content)
    listed = {"rows.json": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}}
    finished = {"spec_sha256": hashlib.sha256(text.encode()).hexdigest(), "outputs": listed}
    (folder / "finished.json").write_text(json.dumps(finished, indent=2) + "\n")
    assert remember({**key, "lengths": (512, 1024)}, never, runs=tmp_path, prefix="retrieval") == rows
    unknown = {"commit": None, "dirty": None, "time": None, "seconds": None, "changed_files": []}
    assert run_records([folder]) == [{"run": folder.name, "spec_sha256": finished["spec_sha256"], **unknown}]
    (folder / "rows.json").write_bytes(content.replace(b"true", b"null"))
    with pytest.raises(DamagedRunError, match=r"rows\.json has changed"):
        remember(key, never, runs=tmp_path, prefix="retrieval")


def test_what_failed_or_is_no_json_is_computed_again(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="model"):
        remember(SPEC, lambda: {}["model"], runs=tmp_path, prefix="cost", name="cost")
    with pytest.raises(ValueError, match=r"value\['loss'\] is nan"):
        remember(SPEC, lambda: {"loss": math.nan}, runs=tmp_path, prefix="cost", name="cost")
    assert remember(SPEC, lambda: {"loss": 2.0}, runs=tmp_path, prefix="cost", name="cost") == {"loss": 2.0}
    assert [path.name for path in tmp_path.glob("cost-*/cost.json")] == ["cost.json"]


# --- damage -------------------------------------------------------------------------------------------------


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, flip_a_bit, lambda file: file.write_text("")])
@pytest.mark.parametrize("name", ["spec.json", "loss.csv", "adapter/weights.bin"])
def test_damage_is_named(finished: RunDirectory, name: str, damage: object) -> None:
    damage(finished.path / name)  # type: ignore[operator]
    with pytest.raises(DamagedRunError, match=re.escape(name)) as caught:
        finished.verify()
    assert str(finished.path) in str(caught.value)
    with pytest.raises(DamagedRunError, match=re.escape(name)):
        finished.reuse_or(lambda path: pytest.fail("a damaged run must not be run again silently"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"spec_sha256": "0", "outputs": {}}', "\udcff"], ids=repr)
def test_damaged_manifest_is_named(finished: RunDirectory, text: str) -> None:
    (finished.path / "finished.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DamagedRunError, match=r"finished\.json"):
        finished.verify()


def test_directory_with_another_spec_is_refused(run: RunDirectory) -> None:
    write_json(run.create() / "spec.json", {**SPEC, "steps": 61})
    for step in (run.create, run.verify, lambda: run.finish([])):
        with pytest.raises(DamagedRunError, match=r"spec\.json"):
            step()


# --- atomic writes ------------------------------------------------------------------------------------------


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(tmp_path / "a.json", "\udc00")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        atomic_write(tmp_path / "folder", b"a folder cannot be replaced by a file")
    assert (tmp_path / "a.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "folder"]


def test_a_kill_never_shows_half_a_file(tmp_path: Path) -> None:
    target = tmp_path / "value"
    code = f"""
from sinklora.records.files import atomic_write
for number in range(10**9):
    atomic_write({str(target)!r}, bytes([number % 256]) * 100_000)
    if number == 3: print("going", flush=True)
"""
    with subprocess.Popen(in_another_process(code), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "going\n"
        seen = {target.read_bytes() for _ in range(50)}
        process.send_signal(signal.SIGKILL)
    seen.add(target.read_bytes())
    assert {(len(content), len(set(content))) for content in seen} == {(100_000, 1)}


def test_contents_are_known_by_names_and_what_is_in_them(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a.py").write_text("1")
    file.write_text("2")
    first = contents_hash(folder, file, tmp_path / "none")
    for left_out in ("__pycache__", ".hidden"):
        (folder / left_out).mkdir()
        (folder / left_out / "b").write_text("3")
    assert contents_hash(folder, file) == first
    file.write_text("4")
    second = contents_hash(folder, file)
    (folder / "inner" / "a.py").rename(folder / "a.py")
    assert len({first, second, contents_hash(folder, file)}) == 3


def test_file_hash_is_sha256(tmp_path: Path) -> None:
    content = b"abc" * 1_000_000
    (tmp_path / "big").write_bytes(content)
    assert file_hash(tmp_path / "big") == hashlib.sha256(content).hexdigest()


# --- locks --------------------------------------------------------------------------------------------------


@contextmanager
def held_elsewhere(run: RunDirectory) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run until its standard input is closed or it is killed."""
    code = f"""
from sinklora.records.runs import RunDirectory
with RunDirectory({str(run.root)!r}, {SPEC!r}, {run.prefix!r}).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""
    command = in_another_process(code)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def test_lock_names_the_process_that_holds_it(run: RunDirectory) -> None:
    with held_elsewhere(run) as process:
        for _ in range(2):  # whoever asks does not wipe the name out
            with (
                pytest.raises(RunLockedError, match=f"process {process.pid} works in .*{run.path.name}"),
                run.lock(),
            ):
                pytest.fail("two processes hold one run")
        with RunDirectory(run.root, {**SPEC, "seed": 1}, run.prefix).lock():
            process.kill()
            process.wait()
    with run.lock():  # a killed process leaves no lock behind
        assert run.state() == "missing"
        with pytest.raises(RunLockedError, match=f"process {os.getpid()} "), run.lock():
            pytest.fail("the lock was taken twice")


def test_who_waits_gets_the_lock_when_the_other_process_ends(run: RunDirectory) -> None:
    ended = threading.Event()

    def work(folder: Path) -> list[str]:
        (folder / "ended.txt").write_text(str(ended.is_set()))
        return ["ended.txt"]

    with held_elsewhere(run) as process, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run.reuse_or, work)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        ended.set()
        process.communicate()
        assert (waiting.result() / "ended.txt").read_text() == "True"


def test_who_waits_says_for_whom_and_may_choose_not_to(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with held_elsewhere(run) as process, ThreadPoolExecutor(1) as pool:
        monkeypatch.setenv("SINKLORA_WAIT", "0")
        with pytest.raises(RunLockedError, match=f"process {process.pid} "):
            run.reuse_or(lambda folder: [])
        assert capfd.readouterr() == ("", "")
        monkeypatch.delenv("SINKLORA_WAIT")
        waiting = pool.submit(run.reuse_or, lambda folder: [])
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        process.communicate()
        assert waiting.result() == run.path
    told = f"waiting: process {process.pid} works in {run.path} (SINKLORA_WAIT=0: do not wait)\n"
    assert capfd.readouterr() == ("", told)


def test_a_process_on_another_machine_is_named_with_it(run: RunDirectory) -> None:
    with held_elsewhere(run):
        (run.root / f".{run.path.name}.owner").write_text("17 node-7\n")
        with pytest.raises(RunLockedError, match="process 17 on node-7 works in"), run.lock():
            pytest.fail("two processes hold one run")


def test_who_waits_for_itself_is_told(run: RunDirectory) -> None:
    with run.lock(), pytest.raises(RuntimeError, match="already held"), run.lock(wait=True):
        pytest.fail("the lock was taken twice")


def test_a_released_lock_names_nobody(run: RunDirectory) -> None:
    with run.lock():
        pass
    assert not list(run.root.glob(".*.owner"))


def test_lock_is_released_by_an_error(run: RunDirectory) -> None:
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    with run.lock(), pytest.raises(RunLockedError, match=str(os.getpid())), run.lock():
        pytest.fail("the lock was taken twice")


def test_ranks_of_one_launch_share_the_lock(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.lock():
        monkeypatch.setenv("RANK", "1")
        with run.lock():
            monkeypatch.setenv("RANK", "0")
            with pytest.raises(RunLockedError), run.lock():
                pytest.fail("rank 0 holds it already")


# --- provenance ---------------------------------------------------------------------------------------------


def test_provenance_is_json_without_names_of_this_machine() -> None:
    record = current_provenance()
    text = json.dumps(record)
    assert set(record) == {"commit", "dirty", "changed_files", "versions", "hardware", "threads", "time"}
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["hardware"]["cores"] >= 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["time"])
    assert not re.search(rf"\b{re.escape(os.uname().nodename)}\b", text)
    assert str(Path.home()) not in text and str(Path(__file__).parents[2]) not in text


def test_commit_and_dirty_flag(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package, results = tmp_path / "package", tmp_path / "results"
    package.mkdir()
    results.mkdir()
    source = package / "module.py"
    source.write_text("a = 1\n")
    no_checkout = {"commit": None, "dirty": None, "changed_files": []}
    assert _git(source) == no_checkout
    git("init", "-q")
    assert _git(source) == no_checkout
    git("add", ".")
    git("commit", "-qm", "first")
    clean = {"commit": git("rev-parse", "HEAD"), "dirty": False, "changed_files": []}
    assert _git(source) == clean and unchanged_commit(source) == clean["commit"]
    (results / "table.csv").write_text("1\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.md").write_text("quotes 1\n")
    assert _git(source) == clean and unchanged_commit(source) == clean["commit"]
    source.write_text("a = 2\n")
    assert _git(source) == {**clean, "dirty": True, "changed_files": ["package/module.py"]}
    (tmp_path / "neu é.py").write_text("")
    changed = ["neu é.py", "package/module.py"]
    assert _git(source) == {**clean, "dirty": True, "changed_files": changed}
    assert _git(package / "untracked.py") == no_checkout
    assert unchanged_commit(source) is None and unchanged_commit(package / "untracked.py") is None
