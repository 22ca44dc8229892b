"""Which charts a report has, and the sentence under each that tells a newcomer how to read it."""

import math
from dataclasses import dataclass

from markupsafe import Markup

from mimkit.report.charts import ReferenceLine, Series, color, line_chart, shade, smooth
from mimkit.report.formatting import count
from mimkit.report.read import Points, Row, RunData, number, points
from mimkit.report.verdict import PROBES, chance, noise

TALL = 240  # pixels, of the charts that matter most
KNOWN = {"step", "epoch", "loss", "lr", "grad_norm"}
GROUPS = {
    "fusion": (
        "Fusion weights",
        "The share that each tapped block contributes to the features that the decoder reads; weight on early blocks "
        "means that the reconstruction needs low-level detail. There is no good direction.",
    ),
    "level": ("Loss of each level", "The loss at each depth that reconstructs; lower is better."),
}


@dataclass(frozen=True)
class Figure:
    """A chart with its title and the sentence below it."""

    title: str
    caption: str
    chart: Markup


def learning(run: RunData) -> list[Figure]:
    """The probes and the training loss."""
    probes = [key for key in PROBES if points(run.probes, key)]
    series = [_probe_series(run, key, PROBES[key].removesuffix(" probe"), color(i)) for i, key in enumerate(probes)]
    references = []
    for i, key in enumerate(probes):
        before = number((run.untrained or {}).get(key))
        if before is not None and run.probe:
            references.append(ReferenceLine(label="untrained", value=before, color=color(i)))
    guess = chance(run.probes[-1]) if run.probes else None
    if guess is not None and probes:
        references.append(ReferenceLine(label="chance", value=guess))
    probe = line_chart(series, title="Probe accuracy by step", unit=" %", references=references, height=TALL)
    return _present(
        Figure(
            "Probe accuracy",
            "How well a simple classifier on the frozen features names held-out images; higher is better, and what "
            "counts is the rise above the dashed line of the untrained encoder. The bands are ±2 standard errors.",
            probe,
        ),
        _loss(run),
    )


def health(run: RunData) -> list[Figure]:
    """What probes measure without labels."""
    return _present(
        *(
            Figure(title, caption, _probe_measure(run, key, title, zero=zero))
            for key, title, caption, zero in (
                (
                    "masked_loss",
                    "Loss on held-out images",
                    "The training objective on images that the encoder never trained on; lower is better. If it rises "
                    "while the training loss falls, the run is memorising its images.",
                    False,
                ),
                (
                    "effective_rank",
                    "Effective rank",
                    "How many independent directions the features use; higher is better, and a fall towards 1 is a "
                    "collapse.",
                    True,
                ),
                (
                    "feature_std",
                    "Spread of the features",
                    "How much the features differ between images, 1 for evenly spread; a fall towards 0 is a collapse.",
                    True,
                ),
            )
        )
    )


def groups(run: RunData) -> list[Figure]:
    """What the method or job itself logs while it trains: keys that share what stands before a slash make one chart."""
    families: dict[str, list[str]] = {}
    for record in run.train:
        for key, value in record.items():
            if key not in KNOWN and number(value) is not None:
                keys_of = families.setdefault(key.partition("/")[0], [])
                if key not in keys_of:
                    keys_of.append(key)
    figures = []
    for family, keys in families.items():
        labels = [(key.partition("/")[2] or key).replace("_", " ") for key in keys]
        ordered = len(keys) > 2 and all(label[-1:].isdigit() for label in labels)
        series = [
            Series(label=label, points=points(run.train, key), color=shade(i, len(keys)) if ordered else color(i))
            for i, (key, label) in enumerate(zip(keys, labels, strict=True))
        ]
        title, caption = family, f"Logged by the {'method' if run.pretraining else 'job'} during training."
        if run.pretraining:
            title, caption = GROUPS.get(family, (title, caption))
        figures.append(
            Figure(
                title,
                caption,
                line_chart(series, title=f"{title} by step", zero=run.pretraining and family == "fusion"),
            )
        )
    return _present(*figures)


def optimisation(run: RunData) -> list[Figure]:
    """Learning rate and size of the gradient."""
    norms = points(run.train, "grad_norm")
    log = _wide(norms)
    return _present(
        Figure(
            "Learning rate",
            "The size of an update: it warms up, then decays as planned. There is no good direction.",
            line_chart(
                [Series(label="learning rate", points=points(run.train, "lr"), color=color(0))],
                title="Learning rate by step",
                zero=True,
            ),
        ),
        Figure(
            "Gradient norm",
            "How hard the loss pulls on the weights; steady is good, and sudden peaks are steps that nearly failed."
            + (" The vertical scale is logarithmic." if log else ""),
            line_chart(
                _with_mean("gradient norm", norms, color(3)), title="Gradient norm by step", log=log, zero=not log
            ),
        ),
    )


def speed(run: RunData) -> list[Figure]:
    """Images per second, and how long a step waits for them."""
    return _present(
        Figure(
            "Speed",
            "Training images processed each second; higher is faster.",
            line_chart(
                [Series(label="images/s", points=points(run.speed, "images_per_second"), color=color(2))],
                title="Images per second by step",
                zero=True,
            ),
        ),
        Figure(
            "Waiting for data",
            "Share of the time that the model waits for the next images; near 0 is good. If it is large, use more "
            "loader workers or pack the images.",
            line_chart(
                [Series(label="waiting", points=points(run.speed, "data_wait", scale=100), color=color(1))],
                title="Share of time waiting for data, by step",
                unit=" %",
                zero=True,
            ),
        ),
    )


def common_axis(runs: list[RunData], records: list[Row]) -> str:
    """What runs are laid over each other by: "epoch" if their epochs differ in steps and all records say it."""
    steps_differ = len({str(run.info.get("steps_per_epoch")) for run in runs if "steps_per_epoch" in run.info}) > 1
    return "epoch" if steps_differ and all(number(record.get("epoch")) is not None for record in records) else "step"


def overlays(runs: list[RunData], names: list[str], *, same_loss: bool) -> list[Figure]:
    """The curves of several runs in one chart each, by epoch where a step of one is not a step of another.

    Args:
        runs, names: the runs and how they are called.
        same_loss: their losses measure the same thing.
    """
    x = common_axis(runs, [record for run in runs for record in (*run.train, *run.probes)])
    warning = "" if same_loss else " Jobs, targets or distances differ, so compare the shapes, not the heights."

    def figure(title: str, caption: str, curves: list[Points], *, unit: str = "", key: str = "") -> Figure:
        series = [
            Series(label=name, points=found, color=color(i), dots=bool(key))
            for i, (name, found) in enumerate(zip(names, curves, strict=True))
        ]
        references = []
        for i, run in enumerate(runs):
            before = number((run.untrained or {}).get(key))
            if before is not None:
                references.append(ReferenceLine(value=before, color=color(i)))
        return Figure(
            title, caption, line_chart(series, title=f"{title} by {x}", x_name=x, unit=unit, references=references)
        )

    def probed(key: str) -> list[Points]:
        return [points(run.probes, key, x=x) for run in runs]

    dashed = " Dashed: the same encoder untrained."
    accuracy = f"Accuracy on held-out images with frozen features; higher is better.{dashed}"
    return _present(
        *(figure(title, accuracy, probed(key), unit=" %", key=key) for key, title in PROBES.items()),
        figure(
            "Training loss",
            f"Running means; lower is better.{warning}",
            [_mean(points(run.train, "loss", x=x)) for run in runs],
        ),
        figure(
            "Loss on held-out images",
            f"The training objective on images never trained on; lower is better.{warning}{dashed}",
            probed("masked_loss"),
            key="masked_loss",
        ),
        figure(
            "Effective rank",
            f"How many independent directions the features use; higher is better.{dashed}",
            probed("effective_rank"),
            key="effective_rank",
        ),
    )


def _loss(run: RunData) -> Figure:
    losses = points(run.train, "loss")
    log = _wide(losses)
    marks = [(record["step"], f"step {count(record['step'])}: not finite") for record in run.nonfinite[:50]]
    caption = "The loss on training images, which training lowers; lower is better."
    if run.pretraining:
        caption = "The distance between prediction and target on the hidden parts of training images; lower is better."
    if log:
        caption += " The vertical scale is logarithmic."
    if marks:
        caption += " Vertical lines mark steps that were not finite."
    series = _with_mean("loss", losses, color(0))
    return Figure(
        "Training loss", caption, line_chart(series, title="Training loss by step", marks=marks, log=log, height=TALL)
    )


def _probe_series(run: RunData, key: str, label: str, css: str) -> Series:
    spread = []
    for probe in run.probes:
        accuracy = number(probe.get(key))
        sure = None if accuracy is None else noise(accuracy, number(probe.get("test_images")))
        if accuracy is not None and sure is not None:
            spread.append((probe["step"], max(0.0, accuracy - sure), min(100.0, accuracy + sure)))
    return Series(label=label, points=points(run.probes, key), color=css, dots=True, spread=spread)


def _probe_measure(run: RunData, key: str, title: str, *, zero: bool) -> Markup:
    before = number((run.untrained or {}).get(key))
    series = Series(
        label="trained" if run.probe else "untrained", points=points(run.probes, key), color=color(0), dots=True
    )
    references = (
        [] if before is None or not run.probe else [ReferenceLine(label="untrained", value=before, color=color(0))]
    )
    return line_chart([series], title=f"{title} by step", references=references, zero=zero)


def _with_mean(label: str, found: Points, css: str) -> list[Series]:
    mean = _mean(found)
    if mean == found:
        return [Series(label=label, points=found, color=css)]
    return [
        Series(label=f"{label} as logged", points=found, color=css, faint=True),
        Series(label="running mean", points=mean, color=css),
    ]


def _mean(found: Points) -> Points:
    """Smoothed over a fortieth of the run; a short one is left as it is."""
    return smooth(found, len(found) // 40) if len(found) >= 80 else found


def _wide(found: Points) -> bool:
    """Whether the values span so much that a linear axis would hide most of them."""
    finite = [y for _, y in found if math.isfinite(y)]
    return bool(finite) and min(finite) > 0 and max(finite) > 30 * min(finite)


def _present(*figures: Figure) -> list[Figure]:
    return [figure for figure in figures if figure.chart]
