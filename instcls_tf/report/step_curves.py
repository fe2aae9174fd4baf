"""Modelled seconds of a step against the number of workers, as a picture."""

from __future__ import annotations

from typing import Any

from instcls_tf.report.figures import new_figure, save_figure

_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


def draw_steps(path: str, points: list[dict[str, Any]]) -> None:
    """Writes a PNG file: seconds of this design and of plain data parallelism, and efficiency.

    Args:
      path: the file.
      points: of `plan.scaling.plan_scaling`.

    Raises:
      UserError: the file cannot be written.
    """
    figure = new_figure(10, 4.2)
    time, efficiency = figure.subplots(1, 2)
    for place, number in enumerate(dict.fromkeys(point["num_instances"] for point in points)):
        of_number = [point for point in points if point["num_instances"] == number]
        colour, workers = _COLOURS[place % len(_COLOURS)], [point["workers"] for point in of_number]
        seconds, plain = ([point[f"{of}seconds_per_step"] for point in of_number] for of in ("", "plain_"))
        time.plot(workers, seconds, "o-", color=colour, label=f"N = {number:,}")
        time.plot(workers, plain, ":", color=colour)
        efficiency.plot(workers, [100 * point["efficiency"] for point in of_number], "o-", color=colour)
        hollow = [point for point in of_number if not point["fits"]]
        where = [point["workers"] for point in hollow]
        time.plot(where, [point["seconds_per_step"] for point in hollow], "o", color="white", markersize=3)
    time.plot([], [], ":", color="grey", label="plain data parallelism")
    time.set(xscale="log", yscale="log", xlabel="workers T", ylabel="seconds per step")
    time.set_title("hollow: does not fit into the memory", fontsize="medium")
    time.legend()
    efficiency.set(xscale="log", xlabel="workers T", ylabel="efficiency, %", ylim=(0, 105))
    for axes in (time, efficiency):
        ticks = sorted({point["workers"] for point in points})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
    save_figure(path, figure)
