"""The commands `pref sample` and `pref best-of`: answers by a language model, and the best of them for a user."""

from typing import TYPE_CHECKING, Annotated

import typer

from pref_jax.cli_lines import STDIN, check_output, load_model, read_texts, score, write_lines
from pref_jax.cli_options import Base, BatchSize, Folder, Output, Requests, example, option
from pref_jax.json_fields import decimals

if TYPE_CHECKING:
    from pref_jax.lm.next_token import SamplingConfig

Count = Annotated[int, typer.Option("--n", "-n", min=1, help="Answers to each prompt.")]
Temperature = Annotated[float, typer.Option(help="0: the likeliest tokens.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens of this probability together.")]
TopK = Annotated[int, typer.Option(help="Draw from so many likeliest tokens; 0: from all.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")]
Seed = Annotated[int, typer.Option(help="Of all draws.")]
ASK = """echo '{"user": "ada", "prompt": "How long?"}' | pref """


def add_commands(app: typer.Typer) -> None:
    """Adds the commands to `pref`."""
    app.command(
        epilog=example(f"{ASK}sample Qwen/Qwen3-0.6B -n 4", "pref sample MODEL prompts.jsonl | pref rank mine")
    )(sample)
    app.command(
        epilog=example("pref best-of mine candidates.jsonl", f"{ASK}best-of mine --policy Qwen/Qwen3-0.6B -n 16")
    )(best_of)


def sample(
    policy: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, GGUF file.", show_default=False)],
    path: Requests = STDIN,
    n: Count = 1,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    max_new_tokens: MaxNewTokens = 256,
    seed: Seed = 0,
    output: Output = STDIN,
    batch_size: BatchSize = 32,
) -> None:
    """Sample answers of a causal language model.

    Lines are {prompt}, a string or a list of chat messages. Each comes back with responses, log_probs (natural, of
    whole answers) and finished (false where max_new_tokens cut one off); other fields, such as user, are kept.
    """
    from pref_jax.data.sources.jsonl.requests import read_prompts

    check_output(output)
    settings = _settings(temperature, top_p, top_k, max_new_tokens)
    requests = read_prompts(path, ("responses", "log_probs", "finished"))
    if requests:
        from pref_jax.lm.policy import open_policy

        model = open_policy(policy, batch_size=batch_size)
        found = model.sample([request.prompt for request in requests], n, settings=settings, seed=seed)
        for request, answers in zip(requests, found, strict=True):
            request.line["responses"] = [answer.text for answer in answers]
            request.line["log_probs"] = [round(answer.log_prob, 4) for answer in answers]
            request.line["finished"] = [answer.stopped for answer in answers]
    write_lines(output, [request.line for request in requests])


def best_of(
    folder: Folder,
    path: Requests = STDIN,
    policy: Annotated[str, option(metavar="MODEL", help="Writes the answers; by default the model's base.")] = "",
    n: Count = 16,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    max_new_tokens: MaxNewTokens = 256,
    seed: Seed = 0,
    output: Output = STDIN,
    base: Base = "",
    batch_size: BatchSize = 32,
) -> None:
    """Find the best answer for each line's user.

    Lines are {user, prompt, responses}; where responses are missing, n answers of a language model are sampled and
    added. Each line comes back with best (a text), reward (its own) and rewards (of all).
    """
    settings = _settings(temperature, top_p, top_k, max_new_tokens)
    requests = read_texts(folder, path, output, ("best", "reward", "rewards"), several=True, sampled=True)
    if requests:
        from pref_jax.best_of import pick, sampled

        model = load_model(folder, base, batch_size=batch_size)
        if empty := [place for place, request in enumerate(requests) if not request.responses]:
            prompts = [requests[place].prompt for place in empty]
            found = sampled(policy or model.text, prompts, n, settings=settings, seed=seed)
            for place, texts in zip(empty, found, strict=True):
                requests[place] = requests[place]._replace(responses=texts)
                requests[place].line["responses"] = texts
        for request, scores in zip(requests, score(model, requests), strict=True):
            best = pick(request.responses, scores.mean)
            request.line["best"], request.line["reward"] = best.text, decimals([best.rewards.max()])[0]
            request.line["rewards"] = decimals(best.rewards)
    write_lines(output, [request.line for request in requests])


def _settings(temperature: float, top_p: float, top_k: int, max_new_tokens: int) -> "SamplingConfig":
    from pref_jax.lm.next_token import SamplingConfig

    return SamplingConfig(temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=max_new_tokens)
