"""`defectseg benchmark`."""

from typing import Annotated, Any

import typer

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import Device, Json, Verbose
from defectseg.cli.predict import expand
from defectseg.cli.show import print_json, print_rows


def benchmark(
    model: Annotated[
        str,
        typer.Argument(
            help="A model file, the run folder of train, or several, comma-separated, whose answers are averaged."
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Folders, images or glob patterns. Default: synthetic sheets.", metavar="[INPUT...]"),
    ] = None,
    runtime: Annotated[
        str,
        typer.Option(
            "--runtime",
            help="Several with commas between them; all: every one.",
            metavar="auto|torch|openvino|onnx|all",
        ),
    ] = "auto",
    images: Annotated[int, typer.Option("--images", help="How many images to measure on, at most.", metavar="N")] = 32,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Images at once; 1 is quickest for a single one.", metavar="N")
    ] = None,
    device: Device = "auto",
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure how fast a model is on this machine.

    Shows images per second of the network alone and of the whole pipeline, from files to files; how long one image
    takes, how much memory, how long until the first answer of a fresh process; and the time of each stage.

    Example: defectseg benchmark runs/1/model.safetensors --runtime all
    """
    from defectseg.benchmark.benchmark import benchmark as run_benchmark
    from defectseg.benchmark.benchmark import resolve_runtimes
    from defectseg.image.find import find_images
    from defectseg.model.locate import model_paths

    with progress_bar("measuring") as progress:
        result = run_benchmark(
            model_paths(model),
            find_images(*expand(inputs), keep_faulty=True) if inputs else (),
            runtimes=resolve_runtimes(runtime),
            num_images=images,
            device=device,
            workers=workers,
            progress=progress,
        )
    if json_output:
        print_json(result)
    else:
        _print(result)


def _print(result: dict[str, Any]) -> None:
    machine, images = result["machine"], result["images"]
    measured = [row for row in result["runtimes"] if "error" not in row]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{machine['cpu']}, {machine['cores']} cores, {' '.join(machine['cpu_flags'])}")
    print(versions)
    print(
        f"{images['count']} {'synthetic sheets' if images['synthetic'] else 'images'} of {_sizes(images['sizes'])} px\n"
    )
    print_rows([_HEADINGS, *map(_figures, measured)])
    print("\nOne image in each stage, ms; stages of different images overlap:")
    stages = list(measured[0]["stages_ms"])
    print_rows(
        [["", *stages], *([_name(row), *(f"{row['stages_ms'][stage]:.1f}" for stage in stages)] for row in measured)]
    )
    for row in result["runtimes"]:
        if "error" in row:
            print(f"\n{row['runtime']}: {row['error']}")


_HEADINGS = ("", "network/s", "pipeline/s", "share", "p50 ms", "p95 ms", "memory MB", "first answer s")


def _figures(row: dict[str, Any]) -> list[str]:
    memory = row["peak_memory_mb"]
    return [
        _name(row),
        f"{row['network_images_per_s']:.2f}",
        f"{row['pipeline_images_per_s']:.2f}",
        f"{row['pipeline_share']:.0%}",
        f"{row['latency_ms']['p50']:.1f}",
        f"{row['latency_ms']['p95']:.1f}",
        "unknown" if memory is None else f"{memory:.0f}",
        f"{row['cold_start_s']:.2f}",
    ]


def _name(row: dict[str, Any]) -> str:
    at_once = f", {row['parallel']} at once" if row["parallel"] > 1 else ""
    return f"{row['name']}{at_once}"


def _sizes(sizes: list[str]) -> str:
    return sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes"
