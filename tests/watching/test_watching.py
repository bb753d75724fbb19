"""The pages that follow a run and list runs: what they read, and what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from regraft.errors import UsageError
from regraft.io import locks
from regraft.io.guarded import NotReadError, check_folder, read
from regraft.watching import following, resources
from regraft.watching.following import look, read_lines, state_of, time_left
from regraft.watching.resources import ProcessMonitor, ProcessUsage, launcher
from regraft.watching.runs import Runs
from result_json import result

HOSTILE = ["<img src=x onerror=alert(1)>", "</script><b>", "\"&'", "チューリップ", "\x1b[31m"]


def me(**changes):
    return json.dumps(asdict(locks.myself(False)) | changes)


def epoch(seed, n, **more):
    line = {
        "seed": seed,
        "epoch": n,
        "step": 5 * n,
        "terms": {"task": 1 / n} if n else {},
        "rates": {"stem": 1e-5, "head": 1e-3} if n else {},
        "val": {"accuracy": 0.5 + n / 100, "loss": 1.0},
        "best": n != 2,
        "source": {},
    }
    return json.dumps(line | more) + "\n"


def finished(name="n", **changes):
    """Return the result of a run from the source ``name``."""
    source = result()["source"] | {"name": name, "nothing_kept": True}
    return result(classes=HOSTILE, source=source, **changes)


@pytest.fixture
def begun(tmp_path):
    """A run that this process holds, two epochs in."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "lock").write_text(me())
    (run / "plan.toml").write_text('[source]\nref = "timm:x"\n[fit]\nepochs = 4\n[run]\nseed = 0\nseeds = 2\n')
    (run / "history.jsonl").write_text("".join(epoch(0, n) for n in range(3)))
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    (run / "log.txt").write_text(f"{stamp} linear probe: λ = 1\n{stamp} seed 0   epoch 2/4   task 0.5\n")
    return run


# ---------------------------------------------------------------- what state a run is in


def test_the_state_is_what_lock_and_result_say(tmp_path, begun):
    assert state_of(tmp_path / "none")[0] == "absent"
    (tmp_path / "bare").mkdir()
    assert state_of(tmp_path / "bare")[0] == "empty"
    state, words, who, _ = state_of(begun)
    assert state == "running" and f"process {os.getpid()}" in words and who.pid == os.getpid()

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (begun / "lock").write_text(me(pid=gone.pid))
    assert state_of(begun)[0] == "killed" and "--resume" in state_of(begun)[1]
    (begun / "lock").write_text(me(started=f"{locks.boot()} 1"))  # the pid is someone else's now
    assert state_of(begun)[0] == ("killed" if locks.started(os.getpid()) else "running")
    (begun / "lock").write_text(me(namespace="pid:[1]", pid=gone.pid))
    assert state_of(begun)[0] == "running"  # for all that is known
    (begun / "lock").unlink()
    assert state_of(begun)[0] == "left"

    for status in ("failed", "interrupted"):
        (begun / "result.json").write_text(json.dumps({"status": status, "error": "no \x1b[31mluck"}))
        state, words, _, _ = state_of(begun)
        assert state == status and "no \\x1b[31mluck" in words
    (begun / "lock").write_text(me())  # resumed: the old result is from before
    assert state_of(begun)[0] == "running"
    (begun / "result.json").write_text(json.dumps(finished()))
    assert state_of(begun)[0] == "finished"  # though the lock is not given back yet


@pytest.mark.parametrize("text", ["{", "[]", '{"status": 7}', "[" * 100_000, "\x00"])
def test_a_result_that_does_not_read_is_a_broken_run(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    state, words, _, _ = state_of(tmp_path)
    assert state == "broken" and "result.json" in words and len(words) < 300


# ---------------------------------------------------------------- files that are being written


def test_half_a_last_line_waits_for_its_end():
    whole, half = epoch(0, 0).encode(), epoch(0, 1).encode()[:-9]
    lines, size, damaged = read_lines(whole + half)
    assert [line.epoch for line in lines] == [0] and size == len(whole) and damaged == 0
    lines, _, damaged = read_lines(whole + b'{"seed": 0,\n[1]\n\xff\xfe\n' + whole)
    assert len(lines) == 2 and damaged == 3


def test_a_page_is_sent_what_it_lacks_or_all_after_a_rewind(begun):
    meter, path = ProcessMonitor(), begun / "history.jsonl"
    first = look(begun, meter)["history"]
    assert first["anew"] and [line["epoch"] for line in first["lines"]] == [0, 1, 2]
    assert first["crc"] == zlib.crc32(path.read_bytes())
    at = {"offset": first["offset"], "crc": first["crc"]}
    with path.open("a") as file:
        file.write(epoch(0, 3) + epoch(0, 4)[:20])
    second = look(begun, meter, **at)["history"]
    assert not second["anew"] and [line["epoch"] for line in second["lines"]] == [3]
    # resumed: cut, and other lines have grown past what the page has
    path.write_text("".join(epoch(0, n, step=n) for n in range(6)))
    third = look(begun, meter, offset=second["offset"], crc=second["crc"])["history"]
    assert third["anew"] and len(third["lines"]) == 6
    path.unlink()
    assert look(begun, meter, **at)["history"] == {"anew": True, "lines": [], "offset": 0, "crc": 0}


def test_a_run_that_goes_in_the_middle_of_a_look_is_absent(begun, monkeypatch):
    def gone(path):
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(following.shutil, "disk_usage", gone)
    assert look(begun, ProcessMonitor())["state"] == "absent"


def test_links_and_pipes_are_not_opened(begun, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("key\n")
    (begun / "log.txt").unlink()
    (begun / "log.txt").symlink_to(secret)
    found = look(begun, ProcessMonitor())
    assert found["log"] == [] and any("log.txt is a link" in note for note in found["notes"])
    assert "key" not in json.dumps(found)
    os.mkfifo(begun / "pipe")
    with pytest.raises(NotReadError, match="no plain file"):
        read(begun, "pipe")
    (begun / "result.json").symlink_to(secret)
    (begun / "lock").unlink()
    assert state_of(begun)[0] == "broken"
    with pytest.raises(NotReadError, match=r"links .*: log.txt, pipe, result.json;"):
        check_folder(begun)


# ---------------------------------------------------------------- what is said of a running one


def test_the_best_so_far_is_that_of_each_seed(begun):
    with (begun / "history.jsonl").open("a") as file:
        file.write(epoch(1, 0) + epoch(1, 1, best=False) + epoch(1, 3, val={}))
    found = look(begun, ProcessMonitor())
    assert [(b["seed"], b["epoch"]) for b in found["best"]] == [(0, 1), (1, 0)]
    assert found["best"][0]["val"]["accuracy"] == 0.51 and found["primary"] == "accuracy"
    assert found["now"].startswith("seed 0   epoch 2/4") and found["plan"]["source"] == "timm:x"


def log_of(*epochs, total=10):
    return [
        f"2026-01-01 00:{at // 60:02}:{at % 60:02} seed {seed}   epoch {n}/{total}   task 1" for seed, n, at in epochs
    ]


def at(second):
    return time.mktime((2026, 1, 1, 0, second // 60, second % 60, 0, 0, -1))


def test_the_time_left_is_epochs_to_come_times_the_last_ones():
    plan = {"run": {"seed": 0, "seeds": 2}, "evaluate": {"controls": ["scratch"]}}
    log = log_of((0, 0, 0), (0, 1, 10), (0, 2, 22), (0, 2, 23))  # a line may be there twice
    left = time_left(log, plan, now=at(27))
    assert left["seconds"] == (8 + 10) * 11 - 5 and "from scratch" in left["words"]
    # the pause between two seeds is no epoch's
    log = log_of(*((0, n, 10 * n) for n in range(11)), (1, 0, 500), (1, 1, 510))
    assert time_left(log, plan, now=at(510))["seconds"] == 9 * 10
    assert time_left(log_of((0, 0, 0)), plan, now=at(1))["seconds"] is None
    # what a process before took, and the pause, say nothing of this one
    resumed = "2026-01-01 00:30:00 runs/x is resumed; done before: probe"
    log = [*log_of((0, 0, 0), (0, 1, 10)), resumed, *log_of((0, 2, 1900))]
    assert time_left(log, plan, now=at(1901))["seconds"] is None
    log = log_of((0, 0, 0), (0, 1, 10), total=1)
    assert time_left(log, {}, now=at(11)) == {
        "seconds": None,
        "words": "all epochs are done; what evaluation takes is not known",
    }


def test_cores_are_processor_time_between_two_looks(monkeypatch):
    """10 has the child 11, which has the child 12."""
    spent, now = {10: 50.0, 11: 50.0, 12: 50.0}, [100.0]

    def tree(root):
        if root in spent:
            yield from (ProcessUsage((pid, 1.0), s, 3, 1000 * pid, (100, 7)) for pid, s in spent.items())

    monkeypatch.setattr(resources, "process_tree", tree)
    meter = ProcessMonitor(lambda: now[0])
    use = meter.look(10)
    assert (use.processes, use.threads, use.memory, use.cores) == (3, 9, 33_000, None)
    assert (use.read, use.written) == (300, 21)
    now[0] = 104.0
    spent |= {10: 52.0, 12: 54.0}
    assert meter.look(10).cores == (2 + 4) / 4
    now[0] = 104.1  # a second page asks at once: too short to count
    assert meter.look(10).cores == (2 + 4) / 4
    assert meter.look(13) is None


def test_memory_of_a_tree_leaves_mapped_files_out(tmp_path):
    """A child and its own child each hold 30 MB, and have 50 MB of a file mapped."""
    (tmp_path / "file").write_bytes(bytes(50_000_000))
    code = f"""
import mmap, os, sys
file = open({str(tmp_path / "file")!r}, "rb")
mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
os.fork()
held = bytearray(b"x") * 30_000_000
assert sum(mapped[::4096]) == 0
os.write(1, b"ready\\n")
sys.stdin.read()
"""
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **ends) as child:
        assert child.stdout.readline() + child.stdout.readline() == b"ready\n" * 2
        use = ProcessMonitor().look(child.pid)
        (below,) = psutil.Process(child.pid).children()
        assert launcher(below.pid) == child.pid and launcher(child.pid) == os.getpid()
        child.stdin.close()
    assert use.processes == 2 and use.threads == 2
    assert 60e6 < use.memory < 100e6  # with the file it would be 160e6
    assert ProcessMonitor().look(child.pid) is None and launcher(child.pid) == child.pid


def test_a_look_imports_no_torch(begun):
    code = f"""
import sys
from pathlib import Path
from regraft.watching.pages import watch_app, ui_app
from regraft.watching.following import look
from regraft.watching.resources import ProcessMonitor, launcher
from regraft.watching.runs import Runs
assert look(Path({str(begun)!r}), ProcessMonitor())["state"] in ("running", "killed")
assert Runs(Path({str(begun.parent)!r})).all()
watch_app(Path({str(begun)!r})), ui_app(Path({str(begun.parent)!r}))
print([m for m in ("torch", "numpy", "matplotlib", "timm", "transformers") if m in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]", said.stdout


# ---------------------------------------------------------------- the runs below a folder


@pytest.fixture
def many(tmp_path):
    """Runs of all kinds below one folder."""
    root = tmp_path / "runs"

    def make(name, **files):
        (root / name).mkdir(parents=True)
        for file, text in files.items():
            (root / name / file.replace("_", ".")).write_text(text)

    make("good", result_json=json.dumps(finished(HOSTILE[0])), plan_toml="")
    make("deep/er/" + HOSTILE[0], result_json=json.dumps(finished()))
    make("half", result_json='{"status": "finis')
    make("odd", result_json=json.dumps({"status": "finished", "test": []}))
    make(
        "poor",
        result_json=json.dumps(
            finished(test=dict.fromkeys(("accuracy", "macro_f1"), dict.fromkeys(("value", "low", "high")) | {"n": 0}))
        ),
    )
    make("live", lock=me(), history_jsonl=epoch(0, 1))
    make("curve", curve_json="{}", lock="{}")
    make("settings", plan_toml="")  # somebody's plan, and no run
    make("begun", plan_toml="", environment_json="{}")
    make(".hidden", result_json=json.dumps(finished()))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "result.json").write_text(json.dumps(finished()))
    (root / "link").symlink_to(elsewhere)
    (root / "loop").symlink_to(root)
    return root


def test_every_run_is_listed_and_a_broken_one_with_the_reason(many):
    found = {r["name"]: r for r in Runs(many).all()}
    assert set(found) == {"good", "deep/er/" + HOSTILE[0], "half", "odd", "poor", "live", "begun"}
    assert found["good"]["value"] == 0.7 and found["good"]["source"] == HOSTILE[0]
    assert found["half"]["state"] == "broken" and "damaged" in found["half"]["words"]
    assert found["odd"]["state"] == "broken" and ": task: Field required" in found["odd"]["words"]
    assert found["poor"]["state"] == "finished" and found["poor"]["value"] is None
    assert found["live"]["state"] == "running" and found["live"]["value"] == 0.51


def test_the_list_follows_what_happens(many):
    runs = Runs(many)
    assert {r["name"]: r["state"] for r in runs.all()}["live"] == "running"
    (many / "live" / "result.json").write_text(json.dumps(finished()))
    (many / "live" / "lock").unlink()
    (many / "good" / "result.json").unlink()
    states = {r["name"]: r["state"] for r in runs.all()}
    assert states["live"] == "finished" and "good" not in states  # a plan alone is no run


def test_only_names_that_a_search_finds_lead_to_a_run(many):
    runs = Runs(many)
    assert runs.path("good") == many / "good"
    for name in ("../elsewhere", "link", "loop/good", ".hidden", "good/..", "good/", "", str(many / "good"), "curve"):
        with pytest.raises(UsageError, match="no run is called"):
            runs.path(name)
    (many / "good" / "manifest.jsonl").symlink_to(many.parent / "elsewhere" / "result.json")
    with pytest.raises(UsageError, match=r"links .*manifest\.jsonl"):
        runs.safe("good")


def test_a_run_is_read_once_for_as_long_as_it_stays_as_it_is(tmp_path, monkeypatch):
    for i in range(40):
        run = tmp_path / f"r{i}"
        run.mkdir()
        (run / "result.json").write_text(json.dumps(finished()))
    runs, looked = Runs(tmp_path), []
    monkeypatch.setattr("regraft.watching.runs.state_of", lambda path: looked.append(path) or state_of(path))
    assert len(runs.all()) == len(looked) == 40
    (tmp_path / "r7" / "result.json").write_text(json.dumps(finished(status="failed")))
    assert {r["name"]: r["state"] for r in runs.all()}["r7"] == "failed"
    assert looked[40:] == [tmp_path / "r7"]


# ---------------------------------------------------------------- the pages


def client(app):
    from starlette.testclient import TestClient

    from regraft.serving.guard import Guard
    from regraft.serving.local_pages import POLICY

    return TestClient(Guard(app, POLICY), base_url="http://127.0.0.1:8000")


def test_a_page_and_its_files_ask_nothing_of_elsewhere(many):
    from regraft.watching.pages import ui_app, watch_app

    for app, script in ((watch_app(many / "good"), "watch.js"), (ui_app(many), "ui.js")):
        asks = client(app)
        page = asks.get("/")
        assert page.status_code == 200 and f"static/{script}" in page.text
        for name in ("", "static/page.css", f"static/{script}"):
            answer = asks.get(f"/{name}")
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert "unsafe" not in policy and answer.headers["x-content-type-options"] == "nosniff"
            text = answer.text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
            assert "http://" not in text and "https://" not in text and "//" not in text.replace("// ", "")
            for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style="):
                assert word not in text
        for name in (
            "static/watch.html",
            "static/../pages.py",
            "static/..%2Fpages.py",
            "static/%2e%2e/pages.py",
            "docs",
            "openapi.json",
        ):
            assert asks.get(f"/{name}").status_code == 404


@pytest.mark.fault(82)
def test_a_request_of_another_host_or_page_is_refused(begun):
    from regraft.watching.pages import watch_app

    asks = client(watch_app(begun))
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:8000", "", "0.0.0.0"):
        answer = asks.get("/state", headers={"host": host})
        assert answer.status_code == 421 and "content-security-policy" in answer.headers
    for host in ("localhost:1", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert asks.get("/state", headers={"host": host}).status_code == 200
    for site in ("cross-site", "same-site"):  # another port of this machine is of the same site
        link = {"sec-fetch-site": site, "sec-fetch-dest": "document"}
        assert asks.get("/state", headers=link).status_code == 403
        assert asks.get("/", headers={"sec-fetch-site": site}).status_code == 403
        assert asks.get("/", headers=link).status_code == 200
    assert asks.get("/state", headers={"sec-fetch-site": "same-origin"}).status_code == 200
    for twice in (("sec-fetch-site", "cross-site", "none"), ("host", "evil.example", "localhost")):
        both = [(twice[0], value) for value in twice[1:]]
        assert asks.get("/state", headers=both).status_code == 400
    assert asks.post("/state").status_code == 405
    answer = asks.get("/state", headers={"origin": "http://evil.example"})
    assert answer.status_code == 403
    assert asks.get("/state", headers={"origin": "http://127.0.0.1:8000"}).status_code == 200
    assert not [h for h in answer.headers if h.startswith("access-control")]
    assert asks.get("/state?offset=x").status_code == 422


@pytest.mark.fault(79)
def test_hostile_names_come_as_data(begun):
    from regraft.watching.pages import watch_app

    with (begun / "history.jsonl").open("a") as file:
        file.write(epoch(0, 3, terms=dict.fromkeys(HOSTILE, 0.5) | {"none": None}))
        file.write(epoch(0, 4, terms={"nan": float("nan")}))
    answer = client(watch_app(begun)).get("/state")
    assert answer.headers["content-type"] == "application/json"
    lines = answer.json()["history"]["lines"]
    assert list(lines[-1]["terms"])[:5] == HOSTILE and lines[-1]["terms"]["none"] is None
    assert any(note.startswith("1 lines of history.jsonl") for note in answer.json()["notes"])


def test_a_report_is_made_once_on_demand_a_comparison_each_time(many, monkeypatch):
    from regraft.report import render
    from regraft.watching.pages import ui_app

    made = []

    def report(runs, out=None):
        made.append([str(run) for run in runs])
        target = out or runs[0] / "report.html"
        target.write_text("<p>made</p>", encoding="utf-8")
        return target

    monkeypatch.setattr(render, "report", report)
    asks = client(ui_app(many))
    for _ in range(2):
        answer = asks.get("/report", params={"run": "good"})
        assert answer.status_code == 200 and answer.text == "<p>made</p>"
        assert "script-src" not in answer.headers["content-security-policy"]
        assert "sandbox" in answer.headers["content-security-policy"]
    assert made == [[str(many / "good")]]
    later = time.time() + 60
    os.utime(many / "good" / "result.json", (later, later))
    asks.get("/report", params={"run": "good"})
    assert len(made) == 2
    deep = "deep/er/" + HOSTILE[0]
    answer = asks.get("/compare", params={"run": ["good", deep]})
    assert answer.text == "<p>made</p>" and made[-1] == [str(many / "good"), str(many / deep)]
    assert not list(many.rglob("comparison*"))
    for params in ({"run": "good"}, {"run": ["good", "../elsewhere"]}):
        answer = asks.get("/compare", params=params)
        assert answer.status_code == 409 and answer.headers["content-type"].startswith("text/plain")
    assert asks.get("/compare", params={"run": ["good"] * 13}).status_code == 422


def test_a_report_of_what_has_none_is_a_sentence(many):
    from regraft.watching.pages import ui_app

    asks = client(ui_app(many))
    for name, words in (("live", "is this a run folder"), ("odd", ""), ("good", ""), ("no", "no run is called")):
        answer = asks.get("/report", params={"run": name})
        assert answer.status_code == 409 and words in answer.text and "Traceback" not in answer.text
        assert answer.headers["content-type"].startswith("text/plain")


def test_the_state_of_a_run_is_the_same_on_both_pages(many):
    from regraft.watching.pages import ui_app, watch_app

    one = client(watch_app(many / "live")).get("/state").json()
    other = client(ui_app(many)).get("/state", params={"run": "live"}).json()
    same = ("name", "state", "words", "history", "best", "log", "pid")
    assert {k: one[k] for k in same} == {k: other[k] for k in same}
    gone = client(ui_app(many)).get("/state", params={"run": "../elsewhere"}).json()
    assert gone["state"] == "absent" and "no run is called" in gone["words"]


def test_without_the_extra_the_remedy_is_said(monkeypatch, tmp_path, capsys):
    from regraft.cli import app as cli
    from regraft.serving import local_pages as webpage

    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(UsageError, match=r'fastapi: pip install "regraft\[serve\]"'):
        webpage.need_extra()
    monkeypatch.setattr(sys, "argv", ["regraft", "watch", str(tmp_path), "--no-browser"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and "regraft[serve]" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said():
    from regraft.serving import local_pages as webpage
    from regraft.serving.endpoint import bind

    first = bind("127.0.0.1", 0)
    taken = first.getsockname()[1]
    try:
        with pytest.raises(UsageError, match=rf"{taken} .* choose another with --port"):
            webpage.serve(None, taken, browser=False, say=print, ready="runs")
        with pytest.raises(UsageError, match=r"--port takes 0 .* to 65535, not 70000"):
            webpage.serve(None, 70_000, browser=False, say=print, ready="runs")
    finally:
        first.close()


def test_a_folder_that_is_none_is_refused(tmp_path, monkeypatch, capsys):
    from regraft.cli import app as cli

    monkeypatch.setattr(sys, "argv", ["regraft", "ui", str(tmp_path / "no")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and "is no folder" in capsys.readouterr().err


def test_the_files_of_the_pages_are_package_data():
    import tomllib

    root = Path(__file__).parents[2]
    data = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = data["tool"]["setuptools"]["package-data"]["regraft"]
    package = root / "src" / "regraft"
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    assert set((package / "watching" / "static").iterdir()) <= packed
