"""The command line: one thin command per stage. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn, Optional

import typer

from lmfuse import __version__
from lmfuse.errors import LmfuseError

app = typer.Typer(
    name="lmfuse",
    help="Make one language model out of several, whatever their tokenizers, and measure whether it helped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeArgument = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
OutOption = Annotated[Optional[Path], typer.Option("--out", help="Folder of the run; default: runs/NAME.", show_default=False)]  # noqa: UP045
TemplateOption = Annotated[str, typer.Option(help="How conversations are read: own, openchat, or the path of a jinja file.")]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache", help="Folder of the artefacts that all runs share; default: $LMFUSE_CACHE or ~/.cache/lmfuse.", show_default=False
    ),
]


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"lmfuse {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


@app.command()
def plan(recipe: RecipeArgument, cache: CacheOption = None) -> None:
    """Check everything that can be checked before any weight is read; say what the run will need."""
    from lmfuse import plan as planning
    from lmfuse.inputs import Inputs
    from lmfuse.recipe import load_recipe
    from lmfuse.workspace import cache_folder

    planning.show(planning.make_plan(Inputs(load_recipe(recipe), recipe.parent, cache_folder(cache))))


@app.command()
def run(recipe: RecipeArgument, out: OutOption = None, cache: CacheOption = None) -> None:
    """Execute a recipe: collect, align, fuse, train every arm, evaluate, report. Running it again continues or reuses."""
    from lmfuse.pipeline import Pipeline

    with Pipeline.open(recipe, out, cache) as pipeline:
        pipeline.run()


@app.command()
def collect(
    recipe: RecipeArgument,
    source: Annotated[Optional[str], typer.Option(help="Only this source.", show_default=False)] = None,  # noqa: UP045
    out: OutOption = None,
    cache: CacheOption = None,
) -> None:
    """Collect the rows of the recipe's sources and stop: what a teacher machine does for a student machine."""
    from lmfuse.pipeline import Pipeline

    with Pipeline.open(recipe, out, cache) as pipeline:
        pipeline.collect_only(source)


@app.command()
def align(
    target: Annotated[str, typer.Argument(help="Target model: folder or hub name.", show_default=False)],
    source: Annotated[str, typer.Argument(help="Source model: folder or hub name.", show_default=False)],
    text: Annotated[Path, typer.Option(help="A text file to look at both tokenizers on.", show_default=False)],
    field: Annotated[str, typer.Option(help="Field of a record, or a template of fields.")] = "{text}",
    html: Annotated[Optional[Path], typer.Option(help="Write a page with lines of the text, cut by both.", show_default=False)] = None,  # noqa: UP045
    lines: Annotated[int, typer.Option(help="Excerpts on the page.")] = 20,
    rows: Annotated[Optional[Path], typer.Option(help="Folder of the source's rows: what it really lost.", show_default=False)] = None,  # noqa: UP045
    chat_template: TemplateOption = "own",
) -> None:
    """Show how well a source's tokens fit a target's: common boundaries, coverage, shared vocabulary, digits, what is lost."""
    from lmfuse.doctor import examine
    from lmfuse.doctor.terminal import show
    from lmfuse.report.doctor import write_page

    found = examine(target, source, text, field=field, lines=lines, rows=rows, chat_template=chat_template)
    show(found)
    if html is not None:
        typer.echo(write_page(found, html))


@app.command()
def train(
    recipe: RecipeArgument,
    arm: Annotated[str, typer.Option(help="The arm to train.")] = "fused",
    out: OutOption = None,
    cache: CacheOption = None,
) -> None:
    """Train one arm of a recipe, with everything that it needs first, and stop."""
    from lmfuse.pipeline import Pipeline

    with Pipeline.open(recipe, out, cache) as pipeline:
        pipeline.train_only(arm)


@app.command()
def answer(
    model: Annotated[str, typer.Argument(help="A chat model: folder or hub name.", show_default=False)],
    questions: Annotated[Path, typer.Argument(help='JSON lines: {"turns": [...]} or {"question": ...}.', show_default=False)],
    out: Annotated[Path, typer.Option(help="The file of conversations to write.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of one answer; one that is longer is cut, and is then context only.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest token each time.")] = 0.0,
    batch_prompts: Annotated[int, typer.Option(min=1, help="Questions answered together.")] = 8,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    chat_template: TemplateOption = "own",
) -> None:
    """Let a chat model answer questions, as conversations to train on or to measure with. Running it again continues."""
    from lmfuse import answers
    from lmfuse.models import ModelSpec

    settings = answers.Answering(max_new_tokens, temperature, batch_prompts, seed)
    answers.answer_file(ModelSpec(model, chat_template=chat_template), questions, settings, out)


@app.command()
def merge(
    recipe: Annotated[str, typer.Argument(help="A recipe (a YAML file, ours or mergekit's), or a method's name.", show_default=False)],
    out: Annotated[Optional[Path], typer.Argument(help="Folder of the merged model.", show_default=False)] = None,  # noqa: UP045
    model: Annotated[Optional[list[str]], typer.Option(help="With a method's name: a model; once for each.", show_default=False)] = None,  # noqa: UP045
    base: Annotated[Optional[str], typer.Option(help="With a method's name: the base model.", show_default=False)] = None,  # noqa: UP045
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="With a method's name: a parameter of it, dtype or tokenizer, as density=0.5.", show_default=False),
    ] = None,
    check: Annotated[bool, typer.Option("--plan", help="Check everything, say what would be merged, and stop.")] = False,
    to_mergekit: Annotated[Optional[Path], typer.Option(help="Write the recipe as a file for mergekit.", show_default=False)] = None,  # noqa: UP045
    threads: Annotated[Optional[int], typer.Option(min=1, help="How many; default: one for each core.", show_default=False)] = None,  # noqa: UP045
    cache: CacheOption = None,
) -> None:
    """Merge the weights of several models of one architecture into one model, tensor by tensor from disk to disk."""
    from lmfuse.merge_recipe import command as merge_command
    from lmfuse.workspace import cache_folder

    short = merge_command.Short(tuple(model or ()), base, tuple(settings or ()))
    merge_command.merge(recipe, out, short, cache=cache_folder(cache), threads=threads, to_mergekit=to_mergekit, plan_only=check)


@app.command()
def statistics(
    model: Annotated[str, typer.Argument(help="A model that will be merged: folder or hub name.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder of its statistics.", show_default=False)],
    text: Annotated[Path, typer.Option(help="Text to collect them on (.txt, .jsonl, .parquet).", show_default=False)],
    kind: Annotated[str, typer.Option(help="fisher (for the method fisher) or gram (for reg_mean).")] = "fisher",
    field: Annotated[str, typer.Option(help="Field of a record, or a template of fields.")] = "{text}",
    limit: Annotated[int, typer.Option(min=1, help="Windows of the text, drawn by their content.")] = 1000,
    window_tokens: Annotated[int, typer.Option(min=16, help="Longest window in tokens.")] = 256,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:1.")] = "auto",
) -> None:
    """Collect what fisher and reg_mean merging ask of a model: how much its numbers matter to it, or what its layers are given."""
    from lmfuse import statistics_command as command

    command.collect(model, out, text, kind=kind, field=field, limit=limit, window_tokens=window_tokens, dtype=dtype, device=device)


@app.command()
def evolve(
    recipe: RecipeArgument,
    out: OutOption = None,
    cache: CacheOption = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that judge children; they change nothing but the time.")] = 1,
    check: Annotated[bool, typer.Option("--plan", help="Check everything, say what the search needs, and stop.")] = False,
) -> None:
    """Breed several fine-tunes of one model into a better one, and report it on data that the search never saw. Running it again continues."""
    from lmfuse.evolve_recipe import command
    from lmfuse.workspace import cache_folder

    command.evolve(recipe, out, cache=cache_folder(cache), workers=workers, plan_only=check)


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Models: folders or hub names. Each is compared with the first.", show_default=False)],
    text: Annotated[list[Path], typer.Option(help="Text files (.txt, .jsonl, .parquet); each is a domain.", show_default=False)],
    field: Annotated[str, typer.Option(help="Field of a record, or a template of fields.")] = "{text}",
    limit: Annotated[Optional[int], typer.Option(help="Documents of each file.", show_default=False)] = None,  # noqa: UP045
    window_tokens: Annotated[int, typer.Option(help="Longest window in tokens.")] = 512,
    chat_template: TemplateOption = "own",
) -> None:
    """Measure bits per byte of any models on the same windows of text, with paired intervals."""
    from lmfuse import compare

    compare.show(compare.compare(models, text, field, limit, window_tokens, chat_template))


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)]) -> None:
    """Render a run's report again from its result files."""
    from lmfuse.report.page import render_folder

    typer.echo(render_folder(folder))


@app.command()
def methods(
    name: Annotated[Optional[str], typer.Argument(help="Show one method in full.", show_default=False)] = None,  # noqa: UP045
) -> None:
    """List every method, or explain one."""
    from lmfuse import catalogue

    if name is not None:
        entry = catalogue.find(name)
        typer.echo(f"{entry.name} ({entry.family.key})\n\n{entry.text}\n")
        for parameter in entry.parameters:
            typer.echo(f"  {parameter.name}: {parameter.kind}, default {parameter.default}")
        return
    for family in catalogue.FAMILIES:
        typer.echo(f"{family.key}: {family.question}")
        for entry in catalogue.entries():
            if entry.family is family:
                typer.echo(f"  {entry.name:<16} {entry.summary}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    cache: CacheOption = None,
    show_recipe: Annotated[bool, typer.Option("--show-recipe", help="Print the demo's recipe and stop.")] = False,
) -> None:
    """Fuse three small models that ship with the package into a fourth, in two minutes, without network or GPU."""
    from lmfuse import demo as embedded

    if show_recipe:
        typer.echo(embedded.recipe_text())
        return
    embedded.run(out, cache)


ModelsOption = Annotated[
    list[str], typer.Option(help="A model: folder or hub name; once for each, the reference model first.", show_default=False)
]
SetOption = Annotated[Optional[list[str]], typer.Option("--set", help="A parameter of the method, as length=8.", show_default=False)]  # noqa: UP045
DeviceOption = Annotated[list[str] | None, typer.Option(help="auto, cpu, cuda:1; one for all, or one for each model.", show_default=False)]


@app.command()
def generate(
    models: ModelsOption,
    prompt: Annotated[str | None, typer.Option(help="What to go on with, or with a chat template to answer.", show_default=False)] = None,
    file: Annotated[Optional[Path], typer.Option(help="JSON lines of prompts instead; needs --out.", show_default=False)] = None,  # noqa: UP045
    out: Annotated[
        Path | None, typer.Option(help="With --file: the file to write. Running it again continues.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option(help="How they write together; `lmfuse methods` lists the ways.")] = "cool",
    settings: SetOption = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show every passage with its author, all proposals and their scores.")] = False,
    system: Annotated[str, typer.Option(help="A system message.", show_default=False)] = "",
    chat_template: Annotated[str, typer.Option(help="none, own, openchat, or the path of a jinja file.")] = "none",
    max_bytes: Annotated[int, typer.Option(min=1, help="Of a text.")] = 4096,
    max_tokens: Annotated[Optional[int], typer.Option(min=1, help="Of a text, of the reference model.", show_default=False)] = None,  # noqa: UP045
    stop: Annotated[Optional[list[str]], typer.Option(help="A string that ends a text; once for each.", show_default=False)] = None,  # noqa: UP045
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens of this probability together.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    batch_prompts: Annotated[int, typer.Option(min=1, help="With --file: texts that are written at the same time.")] = 8,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")] = "bfloat16",
    device: DeviceOption = None,
) -> None:
    """Let several models, whatever their tokenizers, write one text together, without training."""
    from lmfuse import generate_command as command
    from lmfuse.named_models import NamedModels

    named, decoder = (
        NamedModels(tuple(models), chat_template, dtype, tuple(device or ("auto",))),
        command.parse_method(method, settings or ()),
    )
    how = command.make_settings(
        max_bytes=max_bytes, max_tokens=max_tokens, stop=tuple(stop or ()), temperature=temperature, top_p=top_p, seed=seed
    )
    command.generate(named, decoder, how, prompt=prompt, file=file, out=out, system=system, explain=explain, batch_prompts=batch_prompts)


@app.command()
def chat(
    models: ModelsOption,
    method: Annotated[str, typer.Option(help="How they write together; `lmfuse methods` lists the ways.")] = "cool",
    settings: SetOption = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show every passage with its author, all proposals and their scores.")] = False,
    system: Annotated[str, typer.Option(help="A system message.", show_default=False)] = "",
    chat_template: Annotated[str, typer.Option(help="own, openchat, or the path of a jinja file.")] = "own",
    max_bytes: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 4096,
    max_tokens: Annotated[Optional[int], typer.Option(min=1, help="Of an answer, of the reference model.", show_default=False)] = None,  # noqa: UP045
    stop: Annotated[Optional[list[str]], typer.Option(help="A string that ends an answer; once for each.", show_default=False)] = None,  # noqa: UP045
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens of this probability together.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")] = "bfloat16",
    device: DeviceOption = None,
) -> None:
    """Talk with several models that answer as one; /new begins again, Ctrl-D ends, Ctrl-C ends an answer."""
    from lmfuse import generate_command as command
    from lmfuse.named_models import NamedModels

    named, decoder = (
        NamedModels(tuple(models), chat_template, dtype, tuple(device or ("auto",))),
        command.parse_method(method, settings or ()),
    )
    how = command.make_settings(
        max_bytes=max_bytes, max_tokens=max_tokens, stop=tuple(stop or ()), temperature=temperature, top_p=top_p, seed=seed
    )
    command.chat(named, decoder, how, system=system, explain=explain)


@app.command()
def serve(
    models: ModelsOption,
    method: Annotated[str, typer.Option(help="How several write together; `lmfuse methods` lists the ways.")] = "cool",
    settings: SetOption = None,
    name: Annotated[str, typer.Option(help="What they are called together; default: lmfuse.", show_default=False)] = "",
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait for a model; more are sent away.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one answer, of the reference model.")] = 4096,
    max_prompt_bytes: Annotated[int, typer.Option(min=1, help="Of the texts of one prompt.")] = 262_144,
    max_seconds: Annotated[float, typer.Option(min=0.001, help="Of writing one answer.")] = 300.0,
    max_wait: Annotated[float, typer.Option(min=0.001, help="Seconds in line; who waits for longer is sent away.")] = 600.0,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="Where a request names none; 0: the likeliest token each time.")] = 0.0,
    api_key_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A file with the key that clients must show; default: $LMFUSE_API_KEY, or none.", show_default=False),
    ] = None,
    allow_host: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A name of this machine that clients without a key may ask for; repeat it.", show_default=False),
    ] = None,
    chat_template: Annotated[str, typer.Option(help="own, openchat, the path of a jinja file, or none: completions only.")] = "own",
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")] = "bfloat16",
    device: DeviceOption = None,
) -> None:
    """Serve models, together and each alone: OpenAI's API with who wrote what, and a chat page. Ends at Ctrl-C."""
    from lmfuse.serve import check_installed
    from lmfuse.serve.ending import ending_quietly

    check_installed()
    with ending_quietly():
        from lmfuse.generate_command import parse_method
        from lmfuse.named_models import NamedModels
        from lmfuse.serve import command
        from lmfuse.serve.intake import Limits

        limits = Limits(prompt_bytes=max_prompt_bytes, max_tokens=max_tokens, seconds=max_seconds, wait_seconds=max_wait)
        named = NamedModels(tuple(models), chat_template, dtype, tuple(device or ("auto",)))
        decoder, names = parse_method(method, settings or ()), tuple(allow_host or ())
        serving = command.Serving(decoder, name, host, port, queue, limits, temperature, api_key_file, names)
        command.serve(named, serving, lambda line: typer.echo(line, err=True))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def harness(context: typer.Context) -> None:
    """Run lm_eval with the model `lmfuse`: --model_args models=A+B,method=cool --tasks TASK; every other option is lm_eval's own."""
    from lmfuse.evaluate.harness import main as run_harness

    run_harness(context.args)


def main() -> None:
    """Run the command line; turn our errors into two lines and the documented exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")  # every length of a batch is kernels of its own: 1024 fill gigabytes
    try:
        app()
    except LmfuseError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        if error.hint:
            typer.echo(f"  try: {error.hint}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        _stop_at_os_error(error)
    except MemoryError:
        typer.secho("error: out of memory", fg="red", err=True)
        typer.echo("  try: a smaller batch (rows.batch_tokens, train.batch_documents), or bfloat16 weights", err=True)
        sys.exit(5)
    except SystemExit as stop:
        if stop.code == 130:  # typer has turned Ctrl-C into this
            typer.secho("interrupted; the same command continues", fg="yellow", err=True)
        raise


def _stop_at_os_error(error: OSError) -> NoReturn:
    """Say what the system refused: a full disk (exit 5), or a path that cannot be used (exit 2)."""
    from lmfuse.disk import is_full
    from lmfuse.memory import is_out_of_memory

    full, small = is_full(error), is_out_of_memory(error)
    what = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    typer.secho(f"error: {what}", fg="red", err=True)
    remedy = "free some disk space" if full else "close other programs" if small else "check the path and its permissions"
    typer.echo(f"  try: {remedy}", err=True)
    sys.exit(5 if full or small else 2)


if __name__ == "__main__":
    main()
