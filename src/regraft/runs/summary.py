"""The end of a run in words, from result.json alone; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import printable
from ..io.command_lines import command
from .records import SHOWN

WORDS = {
    "transfer helps": "over training from scratch",
    "transfer hurts": "against training from scratch",
    "no evidence": "over training from scratch",
}

SEEDS = 3  # below this an interval is about these models, not the method


def summary(path: Path, result: dict[str, Any]) -> str:
    """The block that ends every run; ``regraft list`` and ``evaluate`` speak the same words.

    ``result`` is as runfiles.finished gives it.
    """
    return "\n".join(f"{head:<8} {printable(text)}".rstrip() for head, text in lines(path, result))


def lines(path: Path, r: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield str(path), "  " + how_it_went(r)
    names = [r["primary"], *(m for m in SHOWN[r["task"]] if m != r["primary"])]
    first = "" if len(r["seeds"]) == 1 else f" (seed {r['seeds'][0]['seed']}, the model that is saved)"
    figures = "   ".join(f"{m} {estimate(r['test'][m])}" for m in names)
    yield "TARGET", f"test, n = {r['rows']['test']}{first}   {figures}"
    for arm, metrics in r["mean"].items():
        m = metrics[r["primary"]]
        name = "fine-tuned" if arm == "fit" else arm
        seeds = len(r["seeds"])
        yield ("", f"{name}, mean of {seeds} seeds   {r['primary']} {number(m['mean'])} (sd {number(m['sd'])})")
    for name, metrics in r["controls"].items():
        value = metrics[r["primary"]]["value"]
        if name == "scratch" and r["mean"]:  # its gain is over all seeds, so its figure is too
            value = r["mean"]["scratch"][r["primary"]]["mean"]
        yield "", over(r, name, value)
    if r["cross_validation"]:
        yield "", folds(r)
    if r.get("calibration"):
        yield "", calibration(r["calibration"])
    if r["frontier"] is not None:
        yield "FRONTIER", frontier(r)
    if r["retention"] is not None:
        yield "SOURCE", retention(r["retention"])
    yield "WEIGHTS", weights(r["source"])
    yield "VERDICT", verdict(r)
    yield (
        "NEXT",
        f"{command('report', path)}   ·   {command('predict', path)} FILE …   ·   {command('evaluate', path)} DATA",
    )


def how_it_went(r: dict[str, Any]) -> str:
    minutes, seconds = divmod(round(r["timing"]["total"]), 60)
    time = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    fit = r["fit"]
    if not fit["fitted"]:
        how = "the linear probe stands: fine-tuning did not beat it by cross-validation"
    elif not r["rows"]["val"]:
        how = f"{fit['epochs']} epochs (no val)"
    elif fit["best_epoch"] == 0:
        how = f"the starting point was best of {fit['epochs']} epochs on val"
    else:
        how = f"best epoch {fit['best_epoch']} of {fit['epochs']} on val ({fit['stopped']})"
    seeds = [s["seed"] for s in r["seeds"]]
    which = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    return f"done in {time} · {how} · {which}"


def over(r: dict[str, Any], name: str, value: float | None) -> str:
    """A control and the paired gain over it; only scratch carries a verdict."""
    gain = r["gain"][name]
    text = f"over {name} {number(value)}   {signed(gain)}"
    if name == "linear probe" and r["fit"]["fitted"] and gain["low"] is not None:
        if gain["low"] > 0:
            return f"{text}   fine-tuning helps over the probe (these two models)"
        if gain["high"] < 0:
            return f"{text}   fine-tuning hurts over the probe (these two models)"
        return f"{text}   paired"
    if name != "scratch":
        return f"{text}   paired"
    how = (r.get("scratch") or {}).get("chosen")
    return f"{text}   {over_seeds(r)}" + (f"   {how}" if how else "")


def over_seeds(r: dict[str, Any]) -> str:
    """What an interval over the run's seeds is about."""
    seeds = len(r["seeds"])
    if seeds == 1:
        return "paired"
    return f"over {seeds} seeds" if seeds >= SEEDS else f"paired, about these {seeds} seeds only"


def folds(r: dict[str, Any]) -> str:
    """The rows of train by models that never saw them."""
    c, m = r["cross_validation"], r["primary"]
    text = f"{c['folds']} folds of train, n = {c['fit'][m]['n']}   α = 1 {estimate(c['fit'][m])}"
    if "linear probe" not in c:
        return text
    return f"{text}, linear probe {estimate(c['linear probe'][m])}   {signed(c['gain'])} paired"


def frontier(r: dict[str, Any]) -> str:
    """The point between the start and the fit that was chosen, and what it is worth on test."""
    f, gain = r["frontier"], signed(r["frontier"]["gain over alpha 1"])
    alphas = sorted({s["alpha"] for s in r["seeds"]} if r["fit"]["fitted"] else {f["alpha"]})
    chosen = " to ".join(f"{a:g}" for a in dict.fromkeys((alphas[0], alphas[-1])))
    ends = "0 the start, 1 the fit"
    keeps = "" if f.get("retain") is None else f", keeping {f['retain']:g} of the source for sure"
    by = f"chosen by {f['chosen_by']}{keeps}"
    if alphas == [1]:
        return f"α = 1 ({ends}), {by}: no point between is better"
    return f"α = {chosen} ({ends}), {by}   {gain} over α = 1   {over_seeds(r)}"


def calibration(c: dict[str, Any]) -> str:
    """How far confidence is from accuracy, as it is and at the temperature fitted on val."""
    before, after = estimate(c["before"]["ece"]), estimate(c["after"]["ece"])
    return f"calibration error {before}; logits divided by {c['temperature']:.2f}, as fits val (--calibrated), {after}"


def retention(r: dict[str, Any]) -> str:
    """What the source task lost; or how far the backbone moved, by a proxy that is named as one."""
    if r["kind"] == "source data":
        n = r["before"]["n"]
        kept = "" if r["ratio"] is None else f", {r['ratio']:.1%} kept"
        over = ""
        lost = r["forgetting"]
        if r["forgetting over seeds"] is not None:
            lost, over = r["forgetting over seeds"], f" {over_seeds(r)}"
        claim = "" if r["claim"] else f"; under {r['claim from']} rows: no claim"
        return (
            f"{r['metric']} {number(r['before']['value'])} before, {number(r['after']['value'])} after{kept}   "
            f"forgetting {signed(lost)}{over}   n = {n} source rows{claim}"
        )
    if r["kind"] == "agreement on target inputs":
        text = f"its own head still gives the same class to {estimate(r['agreement'])} of test rows"
    else:
        cka = "undefined" if r["cka"] is None else f"{r['cka']:.3f}"
        text = f"features on test rows resemble the source's: CKA {cka}"
    return f"{text} (a proxy: no source data)"


def weights(source: dict[str, Any]) -> str:
    if source["nothing_kept"]:
        return f"none kept: {source['name']} starts from random weights"
    t = source["tensors"]
    kept = t["kept"] + t["resized"]
    backbone = kept + len([n for n in source["fresh"] if not n.startswith("head.")])
    resized = f" ({t['resized']} resized)" if t["resized"] else ""
    text = f"{kept} of {backbone} backbone tensors kept{resized}; fresh: {some(source['fresh'])}"
    return f"{text}; unused: {some(source['unused'])}" if source["unused"] else text


def some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def verdict(r: dict[str, Any]) -> str:
    v = r["verdict"]
    times = r["test_opened"]
    opened = "test opened once" if times == 1 else f"test opened {times} times"
    opened = "how often test was opened could not be counted" if times == 0 else opened
    if r["source"]["nothing_kept"]:
        return f"no transfer to measure: nothing was kept; {opened}"
    if "scratch" not in r["controls"]:
        return f"TRANSFER not measured (--controls scratch --seeds 3); {opened}"
    if v["words"] == "not measured":
        return f"TRANSFER not measured: {v['why']}; {opened}"
    gain = signed(v["gain"])
    return f"{v['words']}: {gain} {WORDS[v['words']]} ({v['why']}; {opened})"


def estimate(e: dict[str, Any]) -> str:
    return interval(e, "")


def signed(e: dict[str, Any]) -> str:
    return interval(e, "+")


def interval(e: dict[str, Any], sign: str) -> str:
    value, low, high = (number(e[part], sign) for part in ("value", "low", "high"))
    return value if e["value"] is None else f"{value} [{low}, {high}]"


def number(value: float | None, sign: str = "") -> str:
    """A dash for what is not defined: it is null in result.json."""
    return "–" if value is None else f"{value:{sign}.3f}"
