"""verl, OpenRLHF and tunix call a reward function as their own code does: files, threads, coroutines, HTTP, columns."""

import asyncio
import concurrent.futures
import functools
import http.server
import importlib.machinery
import importlib.util
import inspect
import json
import threading
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tastes

from pref_jax.errors import UserError
from pref_jax.integrations import openrlhf, tunix, verl
from pref_jax.integrations.scoring import Scored

ANSWERS = [f"{word} {other}" for word in tastes.WORDS[:6] for other in tastes.WORDS[6:9]]
USERS = ["ada", "bo", "eve"] * 6
CHAT = [{"role": "user", "content": "lunch"}]


@pytest.fixture(scope="module")
def want(model) -> np.ndarray:
    """Rewards of `ANSWERS` to `CHAT` for `USERS`, of whom eve is unknown."""
    return model.score([None if user == "eve" else user for user in USERS], [CHAT] * len(USERS), ANSWERS)


def from_file(path: Path, name: str) -> Any:
    """A name of a Python file, as verl and OpenRLHF import it."""
    spec = importlib.util.spec_from_file_location("custom_module", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


# --- verl ---


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> list[dict[str, Any]]:
    """Rows as verl's data sets hold them once they went through a parquet file: lists became arrays."""
    path = tmp_path_factory.mktemp("verl") / "train.parquet"
    rows = [
        {
            "data_source": "mine",
            "prompt": CHAT,
            "reward_model": {"style": "model", "ground_truth": ""},
            "extra_info": {"split": "train", "index": place, "user": user, "prompt": CHAT},
        }
        for place, user in enumerate(USERS)
    ]
    pd.DataFrame(rows).to_parquet(path)
    return pd.read_parquet(path).to_dict("records")


async def manager(compute_score: Any, rows: list[dict[str, Any]], kwargs: dict[str, Any]) -> list[dict[str, Any]]:
    """What verl's naive, dapo and gdpo managers do with every answer: a thread, or a coroutine, for each."""
    partly = functools.partial(compute_score, **kwargs)
    loop = asyncio.get_running_loop()

    async def single(row: dict[str, Any], text: str) -> dict[str, Any]:
        extra = row["extra_info"]
        extra["num_turns"], extra["rollout_reward_scores"] = None, {}
        call: dict[str, Any] = {"data_source": row["data_source"], "solution_str": text, "extra_info": extra}
        call["ground_truth"] = row["reward_model"]["ground_truth"]
        if inspect.iscoroutinefunction(compute_score):
            return await partly(**call)
        return await loop.run_in_executor(None, lambda: partly(**call))

    return await asyncio.gather(*(single(row, text) for row, text in zip(rows, ANSWERS, strict=True)))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_verls_managers(folder, parquet, want, tmp_path, asynchronous):
    code = f"from pref_jax.integrations import verl\ncompute_score = verl.reward_function({str(folder)!r}, "
    (tmp_path / "my_reward.py").write_text(f"{code}asynchronous={asynchronous}, uncertainty=True, vector=True)\n")
    compute_score = from_file(tmp_path / "my_reward.py", "compute_score")
    assert inspect.iscoroutinefunction(compute_score) == asynchronous
    router = {"reward_router_address": "127.0.0.1:1", "reward_model_tokenizer": None}
    found = asyncio.run(manager(compute_score, parquet, router))
    np.testing.assert_allclose([one["score"] for one in found], want, rtol=1e-4, atol=1e-4)
    assert [one["shared"] for one in found] == [float(user == "eve") for user in USERS]
    assert compute_score.counts["unknown_user"] == 6
    basis = sorted(name for name in found[0] if name.startswith("basis_"))
    for one in found:
        # verl puts every key into one column of numbers.
        assert one.keys() == found[0].keys()
        assert all(isinstance(value, float) and np.isfinite(value) for value in one.values())
        total = sum(one[name] * one[name.replace("basis", "weight")] for name in basis)
        assert total == pytest.approx(one["score"], rel=1e-4)
        assert one["deviation"] > 0


def test_verls_prompts_are_asked_for(model):
    compute_score = verl.reward_function(model)
    for extra in (None, {}, {"user": "ada", "index": 3}):
        with pytest.raises(UserError, match="extra_info: no prompt under 'prompt', there is"):
            compute_score("mine", "tea", "", extra)
    for extra in ({"user": "ada", "question": "lunch"}, {"user": "ada", "raw_prompt": np.array(CHAT, object)}):
        assert compute_score("mine", "tea", "", extra)["score"] == pytest.approx(
            model.score("ada", "lunch", ["tea"])[0]
        )
    named = verl.reward_function(model, prompt_column="asked", user_column="rater")
    found = named("mine", "", "", {"rater": 7, "asked": "lunch"})
    assert found == {"score": -5.0, "shared": 1.0, "empty": 1.0}


# --- OpenRLHF ---

BEGIN = "<|im_start|>user\nlunch<|im_end|>\n<|im_start|>assistant\n"


def queries() -> list[str]:
    return [f"{BEGIN}{text}<|im_end|>" for text in ANSWERS]


def test_openrlhfs_function_in_a_file(folder, want, tmp_path):
    torch = pytest.importorskip("torch", reason="OpenRLHF works on torch's tensors")
    code = "from pref_jax.integrations import openrlhf\nreward_func = openrlhf.reward_function("
    (tmp_path / "my_reward.py").write_text(f"{code}{str(folder)!r}, uncertainty=True)\n")
    reward_func = from_file(tmp_path / "my_reward.py", "reward_func")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda *one: reward_func(*([part] for part in one)), queries(), [BEGIN] * 18, USERS))
    # As its sample generator makes tensors of what one call returns.
    rewards = torch.cat([torch.tensor([one["rewards"]]) for one in found])
    np.testing.assert_allclose(rewards.numpy(), want, rtol=1e-4, atol=1e-4)
    scores = np.array([one["scores"].item() for one in found])
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-want)), rtol=1e-3, atol=1e-4)
    logs = [{name: value.flatten()[0].item() for name, value in one["extra_logs"].items()} for one in found]
    assert [log["shared"] for log in logs] == [float(user == "eve") for user in USERS]
    assert all(log["deviation"] > 0 for log in logs)


def test_openrlhfs_requests_to_a_server(model, want):
    reward_func = openrlhf.reward_function(model, tensors=False)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/get_reward"
            data = json.dumps(reward_func(body["query"], body["prompts"], body["labels"])).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    labels = [user if place % 2 else {"user": user, "prompt": CHAT} for place, user in enumerate(USERS)]
    payload = {"query": queries(), "prompts": [BEGIN] * len(USERS), "labels": labels}
    url = f"http://127.0.0.1:{server.server_address[1]}/get_reward"
    request = urllib.request.Request(url, json.dumps(payload).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = json.loads(answer.read())
    server.shutdown()
    server.server_close()
    np.testing.assert_allclose(found["rewards"], want, rtol=1e-4, atol=1e-4)
    assert all(0 <= score <= 1 for score in found["scores"])
    assert set(found) == {"rewards", "scores", "extra_logs"}


def test_openrlhfs_queries_come_from_a_tokenizer(model, folder):
    """Rendered, tokenized, cut at the left and decoded with special tokens, as its rollouts are."""
    tokenizer = model.text.tokenizer
    prompt = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    own = [*tokenizer(" tea milk", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    reward_func = openrlhf.reward_function(model, tensors=False)
    label = {"user": "ada", "prompt": CHAT}
    for cut in (0, 1):
        query = tokenizer.decode([*ids[cut:], *own], skip_special_tokens=False)
        found = reward_func([query.removesuffix(tokenizer.eos_token) + "</s>"], [prompt], [label])
        assert found["rewards"] == pytest.approx(model.score("ada", CHAT, ["tea milk"]), abs=1e-4)
    with pytest.raises(UserError, match="query 0: does not begin with its prompt"):
        reward_func(["something else"], [prompt], [label])
    assert reward_func([], [], [])["rewards"] == []


# --- tunix ---


def reward_manager(function: Any, prompts: list[str], completions: list[str], **columns: Any) -> np.ndarray:
    """What tunix's sequence-level manager does with one function."""
    asked = [
        name for name in inspect.signature(function).parameters if name not in ("prompts", "completions", "kwargs")
    ]
    assert not asked, "a parameter of its own could be taken for a field of the algorithm's config"
    found = function(prompts=prompts, completions=completions, **columns)
    assert found is not None
    assert isinstance(found, list)
    assert len(found) == len(prompts)
    rewards = np.zeros((len(prompts), 1))
    rewards[:, 0] = np.array(found)
    assert function.__name__
    return np.nansum(rewards, axis=1)


def test_tunixs_manager_and_command(folder, want, tmp_path):
    code = "from pref_jax.integrations import tunix\nfrom pref_jax.integrations.tunix import reward_function\n"
    (tmp_path / "taste.py").write_text(f"{code}taste = reward_function({str(folder)!r}, name='taste')\n")
    # Its command takes the functions that are of the file itself.
    loader = importlib.machinery.SourceFileLoader("taste", str(tmp_path / "taste.py"))
    spec = importlib.util.spec_from_loader("taste", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    functions = [
        member
        for name, member in inspect.getmembers(module)
        if inspect.isfunction(member) and not name.startswith("_") and member.__module__ == "taste"
    ]
    assert [function.__name__ for function in functions] == ["taste"]
    texts = [f"{text}<|im_end|>" for text in ANSWERS]
    found = reward_manager(functions[0], [BEGIN] * len(texts), texts, user=np.array(USERS), answer=np.arange(18))
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    last: Scored = functions[0].last
    assert last.shared.tolist() == [user == "eve" for user in USERS]
    assert functions[0].counts["unknown_user"] == 6


def test_tunixs_columns_hold_prompts_and_groups(model, want):
    function = tunix.reward_function(model, prompt_column="messages", uncertainty=True)
    messages = np.empty(18, object)
    messages[:] = [np.array(CHAT, object)] * 18
    found = reward_manager(function, ["whatever"] * 18, ANSWERS, user=USERS, messages=messages)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    assert (vars(function)["last"].deviation > 0).all()
    with pytest.raises(UserError, match="there is no column 'messages', but user"):
        function(prompts=["a"], completions=["b"], user=["ada"])
    groups = tunix.reward_function(model, vector=True, group_size=6)
    users = np.repeat(["ada", "bo", "eve"], 6)
    found = reward_manager(groups, [BEGIN] * 18, ANSWERS, user=users)
    np.testing.assert_allclose(found.reshape(3, 6).sum(1), 0, atol=1e-6)
    own = model.score("ada", CHAT, ANSWERS[:6])
    assert np.corrcoef(found[:6], own)[0, 1] > 0.5
