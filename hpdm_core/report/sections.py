"""The parts of a report on one run or folder of samples; what is absent is said in one line."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from hpdm_core.data.store import VideoStore
from hpdm_core.data.write import tile_videos
from hpdm_core.metrics.results import NamedResult
from hpdm_core.metrics.seams import frame_changes, join_ratio, seam_heatmap
from hpdm_core.report.chart import Series, line_chart, number
from hpdm_core.report.curves import curve_figures
from hpdm_core.report.markup import Section, facts, figure, folded, grid, paragraph, table
from hpdm_core.report.media import clip_picture, heat_image, image_uri
from hpdm_core.report.neighbours import Neighbour
from hpdm_core.report.reading import GRID_GAP, SampleGrid, ShownClip, Subject, real_like
from hpdm_core.training.samples import FPS, MAX_COLUMNS
from hpdm_core.training.source import weightless_family
from hpdm_core.video import resize_frames

MAX_STEPS_SHOWN = 6
MAX_HEAT = 4.0
MAX_GRID_SIDE = 420


def overview(subject: Subject, store: VideoStore | None) -> Section:
    """What it is, in figures, and its config."""
    shown: dict[str, str] = {}
    if subject.config is not None:
        parameters = sum(p.numel() for p in weightless_family(subject.config).parameters())
        shown |= {"Family": subject.config.family, "Parameters": number(parameters)}
    if subject.log:
        last = subject.log[-1]
        shown |= {
            "Steps": f"{last['step']:,}",
            "Videos seen": f"{last.get('videos_seen', 0):,}",
            "Time": clock(max(float(entry.get("seconds", 0.0)) for entry in subject.log)),
            "Last loss": "none" if last["loss"] is None else number(last["loss"]),
            "Peak memory": f"{max(e.get('memory_gib', 0.0) for e in subject.log):.2f} GiB",
        }
    if not subject.is_run:
        shown["Samples"] = str(len(subject.clips))
    if store is not None:
        shown["Real clips"] = f"{len(store):,}"
    if subject.results:
        shown["Evaluations"] = str(len(subject.results))
    config = folded("The whole config", subject.config_text) if subject.config_text else ""
    note = subject.config.description if subject.config is not None else ""
    return Section("overview", "Overview", facts(shown) + config, note[:1].upper() + note[1:])


def curves(subject: Subject) -> Section:
    """Everything that the log counts."""
    if not subject.log:
        return Section("curves", "Curves", paragraph(f"There is no log in {subject.path}.", "empty"))
    return Section("curves", "Curves", curve_figures(subject.log), "A line is a running mean; raw values are pale.")


def samples(subject: Subject, store: VideoStore | None) -> Section:
    """Samples across checkpoints, or the clips of a folder, with real clips beside them."""
    if not subject.clips:
        remedy = "train with --set train.sample_every_steps=N to see them grow, or name a folder of hpdm sample"
        return Section("samples", "Samples", paragraph(f"No samples in {subject.path}: {remedy}.", "empty"))
    html = _grids(subject, store) if subject.grids else _gallery(subject.clips, store)
    absent = "" if store is not None else " No real clips beside them: give --store STORE."
    note = "The same seeds at each checkpoint." if subject.grids else "Each beside a real clip of its class."
    return Section("samples", "Samples", html, (note if subject.grids or store else "") + absent)


def metrics(results: Sequence[NamedResult]) -> Section:
    """Every evaluation result found, with what its numbers depend on."""
    if not results:
        hint = "No evaluation results here. hpdm eval-fvd --json FILE writes them; --watch RUN writes them into a run."
        return Section("metrics", "Metrics", paragraph(hint, "empty"))
    headers = ("Metric", "Value", "95 % interval", "Real", "Generated", "Protocol", "Hash", "Network", "File")
    rows = [_metric_row(item, name) for item in results for name in item.result["metrics"]]
    warnings = dict.fromkeys(str(w) for item in results for w in item.result.get("warnings", ()))
    remarks = "".join(paragraph(warning, "note") for warning in warnings)
    records = "".join(
        folded(f"Protocol {item.result['protocol'].get('name', '')} of {item.path.name}",
               json.dumps(item.result["protocol"], indent=1, sort_keys=True))
        for item in results[-1:]
    )  # fmt: skip
    note = "Numbers of different hashes do not compare."
    return Section("metrics", "Metrics", table(headers, rows) + remarks + records, note)


def seams(subject: Subject, store: VideoStore | None) -> Section:
    """Where neighbouring pixels differ more than usual: tile borders show as lines."""
    if not subject.clips:
        return Section("seams", "Seams", paragraph("No samples to look for seams in.", "empty"))
    same = [c.video for c in subject.clips if c.video.shape[1:] == subject.clips[0].video.shape[1:]]
    size = (same[0].shape[1], same[0].shape[2])
    videos = {"Samples": same}
    if store is not None:
        videos["Real clips"] = [resize_frames(c.video, size) for c in real_like(store, subject.clips)]
    heats = {name: np.mean([seam_heatmap(video) for video in clips], axis=0) for name, clips in videos.items()}
    maps = [
        figure(f'<img class="map" src="{image_uri(heat_image(h, MAX_HEAT))}" alt="Heat-map of {name.lower()}" '
               f'width="{size[1]}" height="{size[0]}">', f"{name}, mean of {len(videos[name])}")
        for name, h in heats.items()
    ]  # fmt: skip
    profiles = [Series(name, range(size[1]), heat.mean(axis=0).tolist()) for name, heat in heats.items()]
    chart = line_chart(profiles, title="Change from pixel to pixel by column", x_label="column", smooth=False)
    maps.append(figure(chart, "Change by column; a seam is a spike", "chart"))
    note = (
        f"Squared difference of neighbouring pixels: black is none, pale yellow {MAX_HEAT:g} times the clip's mean. "
        "Tile borders that do not match show as straight lines that the real clips lack."
    )
    return Section("seams", "Seams", grid(maps, "maps"), note)


def joins(subject: Subject, store: VideoStore | None) -> Section | None:
    """Where videos made clip by clip join: how much they change there; None where none is longer than one clip."""
    clips = [clip for clip in subject.clips if clip.joins]
    if not clips:
        return None
    rows = [(clip.caption, str(len(clip.joins)), number(join_ratio(clip.video, clip.joins))) for clip in clips]
    frames = min(len(clip.video) for clip in clips)
    lines = {"Samples": clips, "Real clips": [] if store is None else real_like(store, clips)}
    profiles = []
    for name, shown in lines.items():
        length = min((frames, *(len(clip.video) for clip in shown)))
        if shown and length > 1:
            mean = np.mean([frame_changes(clip.video[:length]) for clip in shown], axis=0)
            profiles.append(Series(name, range(1, length), mean.tolist()))
    chart = line_chart(profiles, title="Change from frame to frame", x_label="frame", smooth=False)
    shown_joins = ", ".join(str(join) for join in clips[0].joins[:12]) + (", …" if len(clips[0].joins) > 12 else "")
    html = figure(chart, f"Mean absolute difference in grey levels; clips join at {shown_joins}", "chart")
    note = "Each clip is made from the one before; where they do not fit, the video jumps: a ratio far above 1."
    ratios = table(("Sample", "Joins", "Change at joins ÷ inside clips"), rows)
    return Section("joins", "Joins of clips", html + ratios, note)


def neighbours(clips: Sequence[ShownClip], found: Sequence[Neighbour], compared: int) -> Section:
    """Each sample beside its nearest real clip."""
    if not found:
        text = "No nearest real clips: the clips are too short for the feature network, or too few."
        return Section("nearest", "Nearest real clips", paragraph(text, "empty"))
    pairs = [
        pair(clip, item.clip, f"{clip.caption}. Nearest: {item.clip.caption} (distance {item.distance:.2f})",
             ("sample", "nearest real"))
        for clip, item in zip(clips, found, strict=True)
    ]  # fmt: skip
    note = (
        f"Among {compared} real clips, by the features of a seeded random I3D, which is not the network of FVD. "
        "A distance of 1 is what real clips have to their own nearest; far below 1 would mean a copy."
    )
    return Section("nearest", "Nearest real clips", grid(pairs, "pairs"), note)


def pair(left: ShownClip, right: ShownClip, caption: str, words: tuple[str, str]) -> str:
    """Two clips side by side in one figure."""
    halves = "".join(
        f"<div><p>{word}</p>{clip_picture(clip.video, clip.fps, f'{word}: {clip.caption}')}</div>"
        for word, clip in zip(words, (left, right), strict=True)
    )
    return figure(f'<div class="pair">{halves}</div>', caption)


def clock(seconds: float) -> str:
    """`1 h 02 min`, `3 min 20 s` or `42 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def spread_grids(grids: Sequence[SampleGrid]) -> list[SampleGrid]:
    """At most MAX_STEPS_SHOWN of them, the first and the last included."""
    places = np.linspace(0, len(grids) - 1, min(MAX_STEPS_SHOWN, len(grids))).round().astype(int)
    return [grids[i] for i in dict.fromkeys(places.tolist())]


def _grids(subject: Subject, store: VideoStore | None) -> str:
    """The run's grids of samples in order, at the speed of the real clips where that is known."""
    fps = _training_rate(subject, store)
    pictures = {f"after {item.step:,} steps": item.grid for item in spread_grids(subject.grids)}
    if store is not None:
        real = real_like(store, subject.clips)
        frames = min(len(clip.video) for clip in real)
        height, width = subject.clips[0].video.shape[1:3]
        videos = np.stack([resize_frames(clip.video[:frames], (height, width)) for clip in real])
        sheet = tile_videos(videos, columns=min(len(videos), MAX_COLUMNS))
        pictures["real clips of the same classes"] = sheet[:, :-GRID_GAP, :-GRID_GAP]
    figures = [
        figure(clip_picture(video, fps, f"Grid: {caption}", max_side=MAX_GRID_SIDE), caption)
        for caption, video in pictures.items()
    ]
    return grid(figures, "steps")


def _training_rate(subject: Subject, store: VideoStore | None) -> float:
    """Frames per second of what training reads from the store; that of previews where no clip says it."""
    known = store.fps if store is not None else None
    stride = subject.config.data.frame_stride if subject.config is not None else 1
    return known / stride if known else FPS


def _gallery(clips: Sequence[ShownClip], store: VideoStore | None) -> str:
    if store is None:
        return grid([figure(clip_picture(c.video, c.fps, c.caption), c.caption) for c in clips], "clips")
    real = real_like(store, clips)
    return grid([pair(c, r, c.caption, ("sample", "real")) for c, r in zip(clips, real, strict=True)], "pairs")


def _metric_row(item: NamedResult, name: str) -> tuple[str, ...]:
    result, metric = item.result, item.result["metrics"][name]
    interval = metric.get("ci95")
    networks = ", ".join(str(network.get("name", "")) for network in result.get("networks", ()))
    return (
        str(metric.get("label") or name),
        number(float(metric["value"])),
        " to ".join(number(float(v)) for v in interval) if interval else "none",
        *(str(metric.get(side) if metric.get(side) is not None else "none") for side in ("n_real", "n_fake")),
        str(result["protocol"].get("name", "")),
        str(result["protocol_hash"]),
        networks or "none",
        item.path.name,
    )
