"""What a run shows, in plain words: never more than its numbers carry."""

import math
from dataclasses import dataclass
from typing import Literal

from mimkit.report.formatting import count, percent, short, signed
from mimkit.report.read import Row, RunData, before_training, last, number
from mimkit.report.rows import compared_with_untrained, in_common, job_rows, last_measured, measured, varying_keys

PROBES = {"linear": "Linear probe", "knn": "k-NN probe"}
MOST_NAMED = 3  # numbers or runs in a headline on a job's own rows
UNKNOWN_SENSE = "These are the job's own numbers: which way is better and how much they vary is not known here."
ONE_RUN_EACH = "One run each: how much a run varies with its random seed is not measured here."


@dataclass(frozen=True)
class Verdict:
    """One headline and the sentences that qualify it; the tone says how the page marks them."""

    tone: Literal["better", "worse", "open"]
    headline: str
    details: list[str]


def noise(accuracy: float, images: float | None) -> float | None:
    """Two standard errors of an accuracy in percent, in points: 2·sqrt(p(1 − p)/m); None without a number of images.

    Where all or none of the m images are right, it is that of one image less or more, as 0 would claim certainty.
    """
    if not images or images < 1 or not 0 <= accuracy <= 100:
        return None
    least = min(0.5, 1 / images)
    share = min(max(accuracy / 100, least), 1 - least)
    return 200 * math.sqrt(share * (1 - share) / images)


def noise_of_difference(first: Row, second: Row, key: str) -> float | None:
    """Two standard errors of the difference of two probes' accuracies, in points, as if of separate images."""
    sides = []
    for record in (first, second):
        accuracy = number(record.get(key))
        side = None if accuracy is None else noise(accuracy, number(record.get("test_images")))
        if side is None:
            return None
        sides.append(side)
    return math.hypot(*sides)


def chance(record: Row) -> float | None:
    """Accuracy in percent of guessing among the probe's classes."""
    classes = number(record.get("classes"))
    return 100 / classes if classes and classes >= 1 else None


def main_probe(run: RunData) -> str | None:
    """The probe that a verdict speaks of: linear, else k-NN, else None (no labels)."""
    return next((key for key in PROBES if last(run.probes, key) is not None), None)


def verdict(run: RunData) -> Verdict:
    """The headline of one run: of a pre-training its probes, of another job what it logged itself, if it did."""
    key = main_probe(run)
    scored = _scored(run, key) if key else None
    rows = job_rows(run)
    if not run.pretraining and (rows or not run.probes):
        found = _of_job(run, *(rows or ("", [])))
    elif key and scored:
        found = _with_labels(run, scored, key)
    elif run.probe and not key:
        found = _without_labels(run, run.probe)
    else:
        found = _not_probed(run, key)
    return Verdict(found.tone, found.headline, found.details + _warnings(run, learned=found.tone == "better"))


def compare(runs: list[RunData], names: list[str]) -> Verdict:
    """The headline of several runs: which probes best, if by more than noise; unprobed, what their jobs logged."""
    for key in PROBES:
        probed = [(p, name, r) for r, name in zip(runs, names, strict=True) if (p := _scored(r, key))]
        if len(probed) > 1:
            break
    else:
        return _compare_jobs(runs, names)

    ranked = sorted(probed, key=lambda entry: -entry[0][key])
    (first, best, _), (second, next_best, _) = ranked[:2]
    ahead, sure = first[key] - second[key], noise_of_difference(first, second, key)
    headline = f"{PROBES[key]}: {best} {percent(first[key])}, {next_best} {percent(second[key])}"
    tone: Literal["better", "open"] = "open"
    if sure is None:
        details = [f"A difference of {ahead:.1f} points; the number of held-out images is not known."]
    elif ahead > sure:
        tone = "better"
        details = [f"{best} leads by {ahead:.1f} points, more than the noise of ±{sure:.1f} (two standard errors)."]
    else:
        details = [
            f"The {ahead:.1f} points between them lie within the noise of ±{sure:.1f} (two standard errors): "
            "neither is shown to be better."
        ]
    details.append(ONE_RUN_EACH)
    if _data_differ([r for _, _, r in probed]):
        details.append("These runs saw different data, so their accuracies may not be comparable.")
    elif len({f"{p.get('test_images')} {p.get('classes')}" for p, _, _ in probed}) > 1:
        details.append("These runs were probed on different images, so their accuracies may not be comparable.")
    return Verdict(tone, headline, details + _lengths([r for _, _, r in probed]))


def _compare_jobs(runs: list[RunData], names: list[str]) -> Verdict:
    """What the runs' own rows have in common; which way is better is not known, so no run is called the best."""
    numbers = "an accuracy" if all(run.pretraining for run in runs) else "numbers"
    common = in_common(runs)
    if not common:
        return Verdict("open", f"{count(len(runs))} runs, fewer than two of them with {numbers} to compare", [])
    kind, (key, *_) = common[0]
    found = []
    for run, name in zip(runs, names, strict=True):
        row = last_measured(run.other_rows.get(kind, []))
        if row:
            found.append((measured(row)[key], name, run))
    shown = [f"{name} {short(value)}" for value, name, _ in found]
    more = f" and {count(len(shown) - MOST_NAMED)} more" if len(shown) > MOST_NAMED else ""
    details = [UNKNOWN_SENSE, ONE_RUN_EACH]
    compared = [run for _, _, run in found]
    if _data_differ(compared):
        details.append("These runs saw different data, so their numbers may not be comparable.")
    headline = f"{kind}, {key}: {', '.join(shown[:MOST_NAMED])}{more}"
    return Verdict("open", headline, details + _lengths(compared))


def _data_differ(runs: list[RunData]) -> bool:
    return len({str(run.section("data").get("fingerprint")) for run in runs}) > 1


def _lengths(runs: list[RunData]) -> list[str]:
    steps = {run.step for run in runs}
    if len(steps) < 2:
        return []
    return [f"They have trained for different lengths, {count(min(steps))} to {count(max(steps))} steps."]


def _scored(run: RunData, key: str) -> Row | None:
    """The last probe after training began that has this accuracy."""
    return next((p for p in reversed(run.probes) if p["step"] > 0 and number(p.get(key)) is not None), None)


def _with_labels(run: RunData, trained: Row, key: str) -> Verdict:
    accuracy = trained[key]
    untrained = number((run.untrained or {}).get(key))
    guess, images = chance(trained), number(trained.get("test_images"))
    chances = "" if guess is None else f" (chance {guess:.3g} %)"
    on = "" if images is None else f", on {count(images)} held-out images"
    so_far = "" if run.finished else "So far: "
    if untrained is None:
        headline = f"{so_far}{PROBES[key]} {percent(accuracy)}{chances}{on}"
        return Verdict("open", headline, ["The untrained encoder was not probed, so what training added is unknown."])

    headline = f"{so_far}{PROBES[key]} {percent(accuracy)} against {percent(untrained)} for the untrained encoder"
    gain, sure = accuracy - untrained, noise_of_difference(trained, run.untrained or {}, key)
    tone: Literal["better", "worse", "open"] = "open"
    if sure is None:
        details = [f"A difference of {signed(gain)} points; the number of held-out images is not known."]
    elif abs(gain) <= sure:
        details = [
            f"The difference of {signed(gain)} points lies within the noise of ±{sure:.1f} (two standard errors): "
            "no improvement is shown."
        ]
    elif gain > 0:
        tone = "better"
        details = [
            f"Training added {gain:.1f} points, more than the noise of ±{sure:.1f} (two standard errors): "
            "the encoder has learned something that the labels confirm."
        ]
    else:
        tone = "worse"
        details = [
            f"The features are worse than untrained ones: {signed(gain)} points, more than the noise of ±{sure:.1f} "
            "(two standard errors)."
        ]
    best = max((p for p in run.probes if number(p.get(key)) is not None), key=lambda p: p[key])
    past = noise_of_difference(best, trained, key)
    if past is not None and best["step"] > 0 and best[key] - accuracy > past:
        details.append(f"An earlier probe was better: {percent(best[key])} at step {count(best['step'])}.")
    return Verdict(tone, headline + chances + on, details)


def _without_labels(run: RunData, trained: Row) -> Verdict:
    so_far = "" if run.finished else "So far: "
    now, before = number(trained.get("masked_loss")), number((run.untrained or {}).get("masked_loss"))
    details = [
        "Without labels there is no accuracy. A lower loss shows that hidden parts are predicted better; whether the "
        "features serve a task, only a task can show."
    ]
    if now is None:
        return Verdict("open", f"{so_far}No labels to probe with", details)
    if before is None:
        return Verdict("open", f"{so_far}No labels to probe with; loss on held-out images {short(now)}", details)
    fell = now < before
    what = (
        f"fell from {short(before)} (untrained) to {short(now)}"
        if fell
        else (f"did not fall: {short(now)} against {short(before)} untrained")
    )
    return Verdict(
        "open" if fell else "worse", f"{so_far}No labels to probe with; the loss on held-out images {what}", details
    )


def _of_job(run: RunData, kind: str, records: list[Row]) -> Verdict:
    """What a job's own rows say at the end, beside their values before training."""
    before = measured(before_training(records) or {})
    trained = last_measured(records)
    keys = varying_keys(records)
    if trained is None:
        loss = _training_loss(run)
        headline = f"Nothing measured after training began yet; {loss}" if loss else "Nothing trained yet"
        values = [f"{key} {short(before[key])}" for key in keys if key in before]
        return Verdict("open", headline, [f"Before training: {', '.join(values[:MOST_NAMED])}."] if values else [])
    now = measured(trained)
    values = [f"{key} {compared_with_untrained(now[key], before.get(key))}" for key in keys if key in now]
    so_far = "" if run.finished else "So far: "
    headline = f"{so_far}{kind} at step {count(trained['step'])}: {', '.join(values[:MOST_NAMED])}"
    details = [UNKNOWN_SENSE]
    if not before:
        details.append("Nothing was measured before training, so what training changed is unknown.")
    return Verdict("open", headline, details)


def _training_loss(run: RunData) -> str:
    """The last training loss beside the first, or an empty text."""
    losses = [record for record in run.train if number(record.get("loss")) is not None]
    if not losses:
        return ""
    first, now = losses[0], losses[-1]
    text = f"training loss {short(now['loss'])} at step {count(now['step'])}"
    return text + (f", from {short(first['loss'])} at step {count(first['step'])}" if len(losses) > 1 else "")


def _not_probed(run: RunData, key: str | None) -> Verdict:
    loss = _training_loss(run)
    headline = f"No probe after training began yet; {loss}" if loss else "Nothing trained yet"
    details = []
    if key is not None:
        details.append(f"{PROBES[key]} of the untrained encoder: {percent(last(run.probes, key))}.")
    return Verdict("open", headline, details)


def _warnings(run: RunData, *, learned: bool) -> list[str]:
    found = []
    if not run.finished:
        planned = f" of {count(run.planned)}" if run.planned else ""
        found.append(f"This run is unfinished: still running or interrupted at step {count(run.step)}{planned}.")
    if run.nonfinite:
        times = len(run.nonfinite)
        found.append(f"{count(times)} {'step' if times == 1 else 'steps'} gave a loss or gradient that was not finite.")
    for key, what in (("effective_rank", "effective rank"), ("feature_std", "spread")):
        now, before = number((run.probe or {}).get(key)), number((run.untrained or {}).get(key))
        if not learned and now is not None and before is not None and now < before / 4:
            found.append(
                f"The features' {what} fell from {short(before)} (untrained) to {short(now)}: they may be collapsing, "
                "becoming the same for every image."
            )
    return found
