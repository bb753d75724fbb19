"""The report: whole, safe and self-contained whatever a run holds."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

import result_json
from regraft.errors import UsageError
from regraft.report.reading import RunFiles, brief
from regraft.report.render import report, sections
from regraft.report.sections import curves
from regraft.runs import records
from regraft.runs.side_files import HistoryLine
from result_json import abstention, calibration, estimate, seed, source_retention
from result_json import sets as sets_with_a_guarantee

HOSTILE = ["<img src=x onerror=alert(1)>", "</script><b>", "$bad_{$", "\"&'", "チューリップ", "{{ 7*7 }}"]


def result(classes, **changes):
    """Return a result with something in every section."""
    k = len(classes)
    point = {
        "alpha": 0.0,
        "figures": {"accuracy": 0.5, "loss": 1.0},
        "source": {"before": 0.9, "after": 0.9, "ratio": 1.0, "low": 0.98},
    }
    whole = {
        "classes": classes,
        "controls": {"majority": {"accuracy": estimate(0.2)}, "linear probe": {"accuracy": estimate(0.6)}},
        "gain": {"majority": estimate(0.5), "linear probe": estimate(0.1)},
        "test_opened": 3,
        "seeds": [seed(0, 0.5)],
        "frontier": {
            "alpha": 0.5,
            "retain": None,
            "chosen_by": "val",
            "seed": 0,
            "points": [point, point | {"alpha": 0.5}, point | {"alpha": 1.0}],
            "gain over alpha 1": estimate(0.01),
        },
        "retention": source_retention(
            **{"most forgotten": [{"class": classes[0], "rows": 12, "before": 1.0, "after": 0.25}]}
        ),
        "calibration": calibration(),
        "sets": sets_with_a_guarantee(empty=estimate(0.04)),
        "slices": result_json.slices(),
        "confusion": changes.get("confusion")
        or [[3 if i == j else int(j == (i + 1) % k) for j in range(k)] for i in range(k)],
        "source": result_json.result()["source"] | {"name": "/home/jane/secret/runs/base"},
        "blocks": [
            {
                "name": "stem",
                "parameters": 12345,
                "state": "kept",
                "first_epoch": None,
                "rate": 1e-4,
                "over_scratch": 0.1,
                "weight_decay": 0.01,
                "anchored": False,
                "drift": 0.0123,
            }
        ],
        "notes": ["2 rows of /home/jane/secret/data were left out"],
    }
    return result_json.result(**(whole | changes))


@pytest.fixture
def make_run(tmp_path):
    """A finished run's files, written by hand."""

    def make(name="run", classes=("ant", "bee", "cat"), **changes):
        run, classes = tmp_path / name, list(classes)
        (run / "gallery").mkdir(parents=True)
        (run / "result.json").write_text(json.dumps(result(classes, **changes)))
        (run / "environment.json").write_text(
            json.dumps(
                {
                    "regraft": "0.1.0",
                    "python": "3.11.7",
                    "versions": {"torch": "2.15.0"},
                    "device": "cpu",
                    "device_name": "x86_64",
                    "threads": 2,
                    "data_digest": "d" * 64,
                    "test_digest": "e" * 64,
                }
            )
        )
        (run / "plan.toml").write_text('[data]\npath = "/home/jane/secret/flowers"\n')
        history = [
            {
                "seed": 0,
                "epoch": e,
                "step": e,
                "terms": {"task": 1.0 / e} if e else {},
                "rates": {"stem": 1e-4} if e else {},
                "val": {"accuracy": 0.6 + e / 20, "loss": 1.0},
                "best": True,
                "source": {},
            }
            for e in range(3)
        ]
        (run / "history.jsonl").write_text("".join(json.dumps(h) + "\n" for h in history))
        manifest = [
            {"id": f"{s}{c}", "split": s, "cells": [c], "where": f"{s}/{i}.png"}
            for s in ("train", "val", "test")
            for i, c in enumerate(classes)
        ]
        (run / "manifest.jsonl").write_text("".join(json.dumps(m) + "\n" for m in manifest))
        (run / "gallery" / "0.jpg").write_bytes(b"\xff\xd8 a picture")
        (run / "gallery" / "gallery.json").write_text(
            json.dumps(
                [
                    {
                        "id": "x",
                        "where": f"/home/jane/secret/{classes[0]}",
                        "truth": classes[0],
                        "predicted": classes[-1],
                        "probability": 0.9,
                        "picture": "0.jpg",
                        "text": None,
                    }
                ]
            )
        )
        return run

    return make


class Page(HTMLParser):
    """Tags, their attributes, and words by section."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.open = [], {}, []
        self.section = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"]

    def handle_data(self, data):
        self.words[self.section] = self.words.get(self.section, "") + data

    def handle_endtag(self, tag):
        if tag in ("td", "th", "li"):
            self.handle_data(" ")


def page_of(*runs, out=None):
    html = report(list(runs), out).read_text(encoding="utf-8")
    return html, Page(html)


def test_blanks_that_set_the_summary_apart_reach_the_browser(make_run):
    _, page = page_of(make_run())
    said = page.words["source"]
    assert "90.0% kept; forgetting" in said and "n = 50 source rows; under 200 rows" in said
    assert "chosen by val; +0.010" in said


def test_every_section_is_there_and_says_what_the_run_says(make_run):
    run = make_run()
    html, page = page_of(run)
    assert report([run]) == run / "report.html" and not list(run.glob(".*"))
    names = [m.__name__.rpartition(".")[2] for m in sections()]
    assert [a["id"] for t, a in page.tags if t == "section"] == names
    assert {f"#{n}" for n in names} <= {a.get("href") for t, a in page.tags if t == "a"}
    for section, words in {
        "verdict": ["TRANSFER not measured", "0.700 [0.600, 0.800]", "+0.100 [+0.000, +0.200]", "macro_f1"],
        "caution": ["Test has 60 rows", "1 seed", "opened 3 times", "50 source rows, under 200", "ant (4)"],
        "data": ["2 rows of …/data were left out", "90"],
        "weights": ["4 of 4 backbone tensors kept", "12,345", "frozen", "0.0123"],
        "curves": ["Epoch 0 is the starting point", "stem"],
        "classes": ["0.750 [0.301, 0.954]", "bee (1)"],  # Wilson, 3 of 4
        "slices": [
            "worse than all other rows: hour night.",
            "night 18 0.700",
            "-0.300 [-0.400, -0.200] worse",
            "(empty)",
        ],
        "calibration": ["Temperature 1.50, fitted on 30 val rows", "+0.100 [+0.000, +0.200]", "15 bins"],
        "sets": [
            "Sets at 90 %",
            "0.900, middle 95 % 0.820 to 0.980",
            "0.900 [0.850, 0.950]",
            "1.250",
            "Val also chose",
        ],
        "errors": ["cat (0.90), labelled", "ant"],
        "source": ["0.900 before, 0.800 after, 90.0% kept", "α = 0.5", "0.250", "0.980"],
        "provenance": ["e" * 64, "torch 2.15.0", 'path = "…/flowers"'],
    }.items():
        said = " ".join(page.words[section].split())
        for word in words:
            assert word in said, (section, word, said)
    assert "jane" not in html and "secret" not in html
    said = " ".join(page.words["slices"].split())
    assert "fewer than 10 rows: 2 values, 6 rows 6" in said and said.count("not compared") == 2


def test_the_figure_of_scratch_over_seeds_is_its_mean(make_run):
    seeds = [
        {
            "seed": s,
            "best_epoch": 1,
            "epochs": 2,
            "alpha": 1.0,
            "val": {"accuracy": 0.7},
            "test": {"accuracy": 0.7},
            "test at alpha 1": {"accuracy": 0.7},
            "scratch": {"accuracy": 0.5 + s / 10},
        }
        for s in range(3)
    ]
    mean = {"fit": {"accuracy": {"mean": 0.7, "sd": 0.0}}, "scratch": {"accuracy": {"mean": 0.612, "sd": 0.1}}}
    changes = {
        "seeds": seeds,
        "mean": mean,
        "gain": {"scratch": estimate(0.088)},
        "controls": {"scratch": {"accuracy": estimate(0.5)}},
        "verdict": {"words": "transfer helps", "gain": estimate(0.2), "seeds": 3, "why": "by far"},
    }
    html, page = page_of(make_run(**changes))
    said = " ".join(page.words["verdict"].split())
    assert "scratch 0.612 (sd 0.100) +0.088 [-0.012, +0.188] over 3 seeds" in said
    assert "fine-tuned 0.700 (sd 0.000)" in said and "2 1 1 0.700 0.700 0.700" in said
    assert '<p class="verdict good">' in html


def test_nothing_is_run_and_nothing_is_asked_of_the_network(make_run):
    html, page = page_of(make_run(classes=HOSTILE))
    tags = {t for t, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "link"} - {"link"}
    assert not [a for _, a in page.tags if any(k.startswith("on") for k in a)]
    csp = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert csp.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    for tag, attrs in page.tags:
        for key in ("src", "href", "xlink:href"):
            value = attrs.get(key) or "#"
            assert value.startswith(("#", "data:")), (tag, key, value)
    assert "url(http" not in html and "@import" not in html
    said = "".join(page.words.values())
    for name in HOSTILE:  # as words, not as markup, and no template's arithmetic is done
        assert name in said
    assert len([t for t, _ in page.tags if t == "img"]) == 1  # the gallery's own


def test_ids_are_unique_and_anchors_lead_somewhere(make_run):
    _, page = page_of(make_run())
    ids = [a["id"] for t, a in page.tags if "id" in a and t in ("section", "h2")]
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        if attrs.get("href", "").startswith("#"):
            assert attrs["href"][1:] in ids


def test_a_thousand_classes_stay_small_and_readable(make_run):
    html, page = page_of(make_run(classes=[f"品種 {i} " + "long " * 20 for i in range(1000)]))
    assert len(html.encode()) < 2_000_000
    assert "the 200 weakest of 1000" in page.words["classes"]
    assert "the 50 rarest of 1000" in page.words["data"]
    assert "Confusion" not in page.words["classes"]


def test_ten_thousand_classes_need_no_quadratic_work(make_run):
    names = [f"class {i:05d}" for i in range(10_000)]
    every = list(range(10_000))
    cells = {"truth": [*every, 7], "predicted": [*every, 9], "rows": [3] * 10_000 + [1]}
    run = make_run(classes=names, confusion=cells, notes=[])
    assert (run / "result.json").stat().st_size < 2_000_000
    html, page = page_of(run)
    assert len(html.encode()) < 2_000_000
    assert "class 00007 4 0.750" in " ".join(page.words["classes"].split())
    assert "class 00009 (1)" in page.words["classes"]
    assert "10000 of 10000 classes" in page.words["caution"]


def test_what_was_not_measured_is_said(make_run):
    changes = {
        "task": "regression",
        "primary": "mae",
        "confusion": None,
        "calibration": None,
        "sets": sets_with_a_guarantee(
            by="cross-validation", temperature=None, least_probability=None, half_widths=[2.5], size=None, empty=None
        ),
        "slices": None,
        "frontier": None,
        "retention": {"kind": "features on target inputs", "cka": 0.9},
    }
    mae = {
        "test": {"mae": estimate(3.0), "r2": estimate(0.2)},
        "val": {},
        "gain": {"mean": estimate(0.2)},
        "controls": {"mean": {"mae": estimate(3.2)}},
        "targets": "numbers",
        "summary_metrics": ["mae", "r2"],
    }
    seeds = [seed(0, val={"mae": 3.0}, test={"mae": 3.0})]
    run = make_run(classes=["y"], **changes, **mae, seeds=seeds)
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    lines = [json.dumps(h | {"val": {"mae": 3.0, "loss": 1.0}}) + "\n" for h in history]
    (run / "history.jsonl").write_text("".join(lines))
    (run / "gallery" / "gallery.json").unlink()
    _, page = page_of(run)
    assert "A regression task has no table of classes." in page.words["classes"]
    assert "Calibration takes a classification task" in page.words["calibration"]
    assert "± 2.5" in page.words["sets"] and "Out-of-fold rows were scored by the folds' models" in page.words["sets"]
    assert "No column was named" in page.words["slices"]
    assert "has no gallery" in page.words["errors"]
    assert "did not judge its labels" in page.words["suspects"]
    assert "no frontier" in page.words["source"] and "CKA 0.900" in page.words["source"]
    assert "only a proxy" in page.words["caution"]


def test_without_sets_their_section_says_why(make_run):
    few = sets_with_a_guarantee(
        rows=6, temperature=None, least_probability=None, law=None, test=None, size=None, empty=None
    )
    assert "they need 9 held-out rows, and there are 6" in page_of(make_run(sets=few))[1].words["sets"]
    words = page_of(make_run("third", sets=None, abstention=abstention()))[1].words["sets"]
    assert "error of at most 5 %" in words and "error among them" in words
    assert "none for several labels a row" in page_of(make_run("other", sets=None))[1].words["sets"]


def test_rows_whose_label_nobody_could_judge_are_counted(make_run):
    run = make_run()
    rows = sum(json.loads((run / "result.json").read_text())["rows"].values())
    found = {"why not": "", "of": rows - 7, "count": 0, "rows": []}
    (run / "gallery" / "suspects.json").write_text(json.dumps(found))
    words = page_of(run)[1].words["suspects"]
    assert f"None among {rows - 7} rows" in words and "Not judged: 7," in words
    (run / "gallery" / "suspects.json").write_text(json.dumps(found | {"of": rows}))
    assert "Not judged" not in page_of(run)[1].words["suspects"]


def test_a_figure_that_is_not_defined_is_a_dash(make_run):
    none = {"value": None, "low": None, "high": None, "n": 60}
    changes = {"test": {"accuracy": none, "macro_f1": none}, "gain": {"majority": none, "linear probe": none}}
    _, page = page_of(make_run(**changes))
    assert "fine-tuned, the saved model –" in " ".join(page.words["verdict"].split())


def test_several_runs_need_out_and_an_unfinished_one_is_refused(make_run, tmp_path):
    one, two = make_run("one"), make_run("two")
    with pytest.raises(UsageError, match=r"say which with --out"):
        report([one, two])
    (two / "result.json").write_text(json.dumps({"status": "failed", "error": "the loss is not finite"}))
    with pytest.raises(UsageError, match="is no finished run: its status is failed"):
        report([two])
    (one / "manifest.jsonl").write_text('{"id": "a", "split"')
    with pytest.raises(UsageError, match=r"manifest\.jsonl is damaged.* line 1: "):
        report([one])
    with pytest.raises(UsageError, match="is this a run folder"):
        report([tmp_path / "nowhere"])
    assert not list(tmp_path.rglob("*.html"))


def test_a_report_reads_run_files_without_torch(make_run):
    code = f"""
import sys
from regraft.report.render import report
report([{str(make_run())!r}])
print([m for m in ("torch", "timm", "transformers") if m in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]", said.stdout


def test_a_section_says_what_it_is_and_has_a_place_of_its_own():
    found = sections()
    assert len({m.ORDER for m in found}) == len(found) == len({m.TITLE for m in found})
    assert all(m.__doc__ and m.TEMPLATE.strip() for m in found)


def test_paths_lose_the_folders_above():
    assert brief('path = "/home/jane/a b"') == 'path = "…/a b"'
    assert brief("2 rows of /data/x/flowers were left out") == "2 rows of …/flowers were left out"
    assert brief("C:\\Users\\jane\\flowers") == "…/flowers"
    assert brief("bundled:efficientnet-lite0 and timm:a/b") == "bundled:efficientnet-lite0 and timm:a/b"
    assert brief("runs/one") == "runs/one" and brief("~/secret/runs/one") == "…/one"


def test_run_files_read_what_is_there(make_run):
    run = RunFiles.read(make_run())
    assert run.name == "run" and run.manifest["train"]["ant"] == 1 and len(run.history) == 3
    assert re.match(r"\[data\]", run.plan)


def test_a_single_epoch_shows_in_the_curves():
    line = {"seed": 0, "epoch": 1, "terms": {"task": 0.5}, "val": {}, "best": True, "rates": {}}

    def marks(lines):
        history = [records.checked(HistoryLine, line) for line in lines]
        found = curves.context(SimpleNamespace(history=history, primary="accuracy", name="r"))
        inside = re.findall(r'<g clip-path="[^"]*">.*?</g>', found["plot"], re.DOTALL)
        return sum(part.count("<use ") for part in inside)

    assert marks([line]) == 1
    assert marks([line, line | {"epoch": 2}]) == 2
