"""TensorBoard's event files, written record by record, so that a run that goes on knows where each begins."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lifelong.agent.runtime.appended import EVENTS, Appended
from lifelong.agent.runtime.records import framed

#: lines, by patterns of their tags; or {tag: (tag of the lower end, of the upper)} for lines with a margin
Chart = tuple[str, ...] | Mapping[str, tuple[str, str]]


class Events:
    """One event file of this process beside those of earlier ones, begun with the first record.

    TensorBoard reads the files in the order of their names. Its name says a later second than every other, even if the
    clock went back, so what it holds comes after what they hold.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file: Appended | None = None
        #: whether nothing was written before this process
        self.new = not any(folder.glob(EVENTS))

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """One point of every scalar."""
        self._write(step, [{"tag": name, "simple_value": value} for name, value in scalars.items()])

    def histograms(self, step: int, histograms: Mapping[str, Sequence[float]]) -> None:
        """One point of every histogram, of positive numbers, in 30 buckets of equal ratio."""
        values = []
        for name, numbers in histograms.items():
            x = np.asarray(numbers, np.float64)
            low, high = max(float(x.min()), 1e-12), max(float(x.max()), 1e-12)
            edges = np.geomspace(low / 1.0001, high * 1.0001, 31)
            counts, _ = np.histogram(x.clip(low, high), edges)
            told = {"min": low, "max": high, "num": len(x), "sum": float(x.sum()), "sum_squares": float((x * x).sum())}
            buckets = {"bucket_limit": edges[1:].tolist(), "bucket": counts.astype(float).tolist()}
            values.append({"tag": name, "histo": {**told, **buckets}})
        self._write(step, values)

    def text(self, tag: str, text: str, step: int) -> None:
        """A text page."""
        plugin = {"plugin_data": {"plugin_name": "text"}}
        tensor = {"dtype": "DT_STRING", "string_val": [text.encode()], "tensor_shape": {"dim": [{"size": 1}]}}
        self._write(step, [{"tag": f"{tag}/text_summary", "metadata": plugin, "tensor": tensor}])

    def image(self, tag: str, png: bytes, width: int, height: int, step: int) -> None:
        """A picture, as PNG."""
        self._write(step, [{"tag": tag, "image": {"encoded_image_string": png, "width": width, "height": height}}])

    def layout(self, chapters: Mapping[str, Mapping[str, Chart]]) -> None:
        """What the page of custom scalars shows: {chapter: {title: chart}}. Those of several runs are merged."""
        from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Layout
        from tensorboard.plugins.custom_scalar.layout_pb2 import Chart as Drawn

        def drawn(title: str, chart: Chart) -> Any:
            if isinstance(chart, tuple):
                return Drawn(title=title, multiline={"tag": list(chart)})
            series = [{"value": value, "lower": low, "upper": high} for value, (low, high) in chart.items()]
            return Drawn(title=title, margin={"series": series})

        categories = [
            Category(title=name, chart=[drawn(title, chart) for title, chart in charts.items()])
            for name, charts in chapters.items()
        ]
        plugin = {"plugin_data": {"plugin_name": "custom_scalars"}}
        tensor = {"dtype": "DT_STRING", "string_val": [Layout(category=categories).SerializeToString()]}
        self._write(0, [{"tag": "custom_scalars__config__", "metadata": plugin, "tensor": tensor}])

    def hyperparameters(self, values: Mapping[str, str | bool | float]) -> None:
        """The row of this run on the page of hyper-parameters; its scalars are the results there."""
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

        start = SessionStartInfo(start_time_secs=time.time())
        for name, value in values.items():
            kind = (
                "bool_value"
                if isinstance(value, bool)
                else "string_value"
                if isinstance(value, str)
                else "number_value"
            )
            setattr(start.hparams[name], kind, value)
        content = HParamsPluginData(version=0, session_start_info=start).SerializeToString()
        plugin = {"plugin_data": {"plugin_name": "hparams", "content": content}}
        empty = {"dtype": "DT_FLOAT", "float_val": [0.0], "tensor_shape": {}}
        self._write(0, [{"tag": "_hparams_/session_start_info", "metadata": plugin, "tensor": empty}])

    def _write(self, step: int, values: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # imports slowly, and only runs need it
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self.file is None:
            self.file = Appended(self._path())
            self._record(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._record(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _record(self, event: Any) -> None:
        assert self.file is not None
        self.file.write(framed(event.SerializeToString()))

    def _path(self) -> Path:
        seconds = [int(path.name.split(".")[3]) for path in self.folder.glob(EVENTS)]
        second = max([int(time.time()), *(s + 1 for s in seconds)])
        return self.folder / EVENTS.replace("*", f"{second:010d}.{socket.gethostname()}.{os.getpid()}.0")
