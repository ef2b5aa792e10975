#!/usr/bin/env python3
"""What transformers + PEFT reach on this CPU with a random SmolLM2-135M; `bench-cpu.py` runs it beside flow.

usage: bench-peer-cpu.py judge|generate|train   needs torch, transformers and peft; prints one JSON object

judge: a prefill of 8 x 384 tokens for the last token's logits. generate: 64 new tokens for 16 prompts of 64. train: a LoRA
step over 4 x 384 tokens (r 16 on all linear layers, dropout 0.05, AdamW). Medians after a warm-up, in bf16 with the
attention that transformers chooses.
"""

import json
import os
import statistics
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(os.cpu_count())
torch.manual_seed(0)


def model():
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
    return LlamaForCausalLM(config).to(torch.bfloat16)


def tokens(rows, length):
    return torch.randint(0, 49152, (rows, length))


def judge():
    peer, ids = model().eval(), tokens(8, 384)
    return ids.numel(), 3, torch.no_grad()(lambda: peer(input_ids=ids, logits_to_keep=1))


def generate():
    peer, ids = model().eval(), tokens(16, 64)
    options = dict(max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(ids))
    return 16 * 64, 3, torch.no_grad()(lambda: peer.generate(input_ids=ids, **options))


def train():
    from peft import LoraConfig, get_peft_model

    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    peer = get_peft_model(model(), LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=linears)).train()
    trained = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.01)
    ids = tokens(4, 384)

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = peer(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return ids.numel(), 3, step


def main():
    works = {"judge": judge, "generate": generate, "train": train}
    if len(sys.argv) != 2 or sys.argv[1] not in works:
        sys.exit(__doc__)
    count, repeats, work = works[sys.argv[1]]()
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    print(json.dumps({"work": sys.argv[1], "tokens_per_second": round(count / median, 1), "seconds": round(median, 3)}))


main()
