"""`defectseg benchmark`."""

from typing import Annotated, Any

from typer import Argument, Option

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import Device, Json, Model, Verbose
from defectseg.cli.predict import expand
from defectseg.cli.show import print_json, print_rows


def benchmark(
    model: Model,
    inputs: Annotated[
        list[str] | None,
        Argument(help="Folders, images or glob patterns. Default: synthetic sheets.", metavar="[INPUT...]"),
    ] = None,
    runtime: Annotated[
        str, Option(help="Runtimes to measure, comma-separated, or all.", metavar="auto|torch|openvino|onnx|all")
    ] = "auto",
    images: Annotated[int, Option(help="Largest number of images to measure on.", min=1, metavar="N")] = 32,
    workers: Annotated[
        int | None,
        Option(help="Images that the network works on at once; 1 answers a single image soonest.", metavar="N"),
    ] = None,
    device: Device = "auto",
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure how fast a model is on this machine.

    Shows images per second of the network alone and of the pipeline from image files to result files; the time for a
    single image, the memory, and the time from the start of a process to its first answer; and the time of each stage.

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
    print(f"{machine['cpu']}, {machine['cores']} cores, {' '.join(machine['cpu_flags'])}")
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    kind = "synthetic sheets" if images["synthetic"] else "images"
    size = images["sizes"][0] if len(images["sizes"]) == 1 else f"{len(images['sizes'])} sizes"
    print(f"{images['count']} {kind} of {size} px\n")
    head = ["", "network/s", "pipeline/s", "share", "p50 ms", "p95 ms", "memory MB", "first answer s"]
    figures, stages = [head], list[list[str]]()
    for row in result["runtimes"]:
        if "error" in row:
            continue
        name = f"{row['name']}, {row['parallel']} at once" if row["parallel"] > 1 else row["name"]
        memory, latency = row["peak_memory_mb"], row["latency_ms"]
        figures.append(
            [
                name,
                f"{row['network_images_per_s']:.2f}",
                f"{row['pipeline_images_per_s']:.2f}",
                f"{row['pipeline_share']:.0%}",
                f"{latency['p50']:.1f}",
                f"{latency['p95']:.1f}",
                "unknown" if memory is None else f"{memory:.0f}",
                f"{row['cold_start_s']:.2f}",
            ]
        )
        stages = stages or [["", *row["stages_ms"]]]
        stages.append([name, *(f"{ms:.1f}" for ms in row["stages_ms"].values())])
    print_rows(figures)
    print("\nOne image in each stage, ms; stages of different images overlap:")
    print_rows(stages)
    for row in result["runtimes"]:
        if "error" in row:
            print(f"\n{row['runtime']}: {row['error']}")
