#!/usr/bin/env python3
"""What transformers + PEFT reach on this CPU with a random SmolLM2-135M, for `flow bench … --model random:smollm2-135m`.

usage: bench-peer-cpu.py            needs torch, transformers and peft; prints one JSON object per line

The same shapes as the defaults of scripts/bench-cpu.sh: a prefill of 8 x 384 tokens for the last token's logits, a LoRA step
over 4 x 384 tokens (r 16 on all linear layers, dropout 0.05, AdamW), 64 new tokens for 16 prompts of 64. Medians of 5 after
a warm-up, bf16 as in the tool's own choice on processors that compute it natively.
"""

import json
import os
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(os.cpu_count())
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
model = LlamaForCausalLM(config).to(torch.bfloat16)
model.config._attn_implementation = "sdpa"


def median(work, repeats=5):
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def tell(what, tokens, seconds):
    print(json.dumps({"work": what, "tokens_per_second": round(tokens / seconds, 1), "seconds": round(seconds, 3)}), flush=True)


ids = torch.randint(0, config.vocab_size, (8, 384))
with torch.no_grad():
    model.eval()
    tell("prefill", ids.numel(), median(lambda: model(input_ids=ids, logits_to_keep=1)))
    prompt = torch.randint(0, config.vocab_size, (16, 64))
    options = dict(max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(prompt))
    tell("generate", 16 * 64, median(lambda: model.generate(input_ids=prompt, **options), 3))

linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=linears))
for parameter in model.parameters():
    if parameter.requires_grad:
        parameter.data = parameter.data.float()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-5, weight_decay=0.01)
model.train()
ids = torch.randint(0, config.vocab_size, (4, 384))


def step():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


tell("train", ids.numel(), median(step))
